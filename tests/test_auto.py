"""Auto: the first backend in the person's order that has a model of the role; and settings no backend has."""

from __future__ import annotations

import dataclasses

import pytest
from servers.ollama import Model, Reply, serve

from docmind import routing
from docmind.answer import ask
from docmind.backends import REGISTRY, Detection, ModelInfo, backend
from docmind.cli import main
from docmind.errors import BackendError, BackendUnavailable, ProfileError
from docmind.events import FellBack, TextLeaves
from docmind.profiles import AUTO, ROLES, Profile, find_profile, save_profile
from docmind.settings import Settings, save_settings

QUAY = "How much did the repairs of the north quay cost?"
COST = "Repairs of the north quay cost 3.7 million euros."
MODELS = (
    Model("qwen3:4b-instruct", 262_144, 2_500_000_000), Model("qwen3.5:9b", 262_144, 6_600_000_000),
    Model("gpt-oss:20b", 131_072, 14_000_000_000),
)  # fmt: skip


@pytest.fixture
def ollama(monkeypatch):
    """The stand-in with a model of each role."""
    with serve(MODELS) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


def auto(**values):
    """A profile that may take the scripted backend and Ollama."""
    models = {"scripted": ("script", "other"), "ollama": ("qwen3.5*",)}
    return Profile(**{"name": "mine", "backend": AUTO, "models": models, "fallbacks": (), "agent": "react"} | values)


def order(config, *names):
    """The person's order."""
    save_settings(config, Settings(backend_order=names))


# What it comes to -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "model"),
    [("fast", "qwen3:4b-instruct"), ("balanced", "qwen3.5:9b"), ("technical", "gpt-oss:20b"),
     ("reasoning", "gpt-oss:20b")],
)  # fmt: skip
def test_each_shipped_role_comes_to_a_model_that_is_really_there(config, ollama, role, model):
    """And says why it is not an earlier backend's."""
    resolved = routing.resolve(config, find_profile(config, role))
    assert [(profile.name, profile.backend, profile.model) for profile in resolved.profiles] == [
        (role, "ollama", model)
    ]
    assert resolved.words == f"{role} → Ollama · {model}; llama.cpp (built in): none of the models"


def test_every_role_is_shipped(config):
    """Four words, four profiles."""
    assert [find_profile(config, role).role for role in ROLES] == list(ROLES)


def test_the_options_of_a_backend_go_to_it_alone(config, ollama):
    """Thinking is switched on where it can be."""
    (profile,) = routing.resolve(config, find_profile(config, "reasoning")).profiles
    assert profile.options == {"thinking": "on"}
    assert routing.options(profile) == {"thinking": "on", "context_window": 16_384}


def test_the_person_s_order_decides_and_the_others_follow(config, ollama, script):
    """Those not named come as in the registry."""

    def names():
        return [profile.backend for profile in routing.resolve(config, auto()).profiles]

    assert names() == ["ollama", "scripted"]
    order(config, "scripted", "gone")
    assert names() == ["scripted", "ollama"]
    assert routing.resolve(config, auto()).words == "mine → Scripted · script"


def test_a_model_in_memory_is_taken_before_one_that_is_not_but_only_of_one_pattern(config):
    """The list is best first; within a pattern nothing has to be loaded anew."""
    models = [
        ModelInfo(name, None, 4_000_000_000, None, name.endswith("Loaded"))
        for name in ("A-1", "A-2-Loaded", "B-Loaded")
    ]
    found = [Detection("llama.cpp", "L", True, None, None, None, None, tuple(models))]
    for patterns, model in ((("a*", "b*"), "A-2-Loaded"), (("*b-*", "a*"), "B-Loaded"), (("a-1",), "A-1")):
        resolved = routing._resolve(config, auto(models={"llama.cpp": patterns}), found)
        assert resolved.profiles[0].model == model


def test_without_a_list_a_named_model_or_any_is_taken(config, script):
    """So that `--backend auto` works too; one too small for the agent is asked directly."""
    order(config, "scripted")
    assert routing.resolve(config, auto(models={})).profiles[0].model == "script"
    tiny = routing.resolve(config, auto(models={}, model="TINY")).profiles[0]
    assert (tiny.model, tiny.agent) == ("tiny", "direct")
    assert routing.choose(config, None, AUTO, None).model == ""


@pytest.mark.parametrize(
    ("settings", "is_taken"),
    [(Settings(), False), (Settings(allowed=("http://192.168.1.20:11434",)), True),
     (Settings(allowed=("http://192.168.1.20:11434",), local_only=True), False)],
    ids=["not asked", "allowed", "local only"],
)  # fmt: skip
def test_a_backend_beyond_this_device_counts_only_where_it_is_allowed(config, settings, is_taken):
    """Even first in the order: that is no consent."""
    save_settings(config, dataclasses.replace(settings, backend_order=("ollama",)))
    found = [Detection("ollama", "Ollama", True, None, None, "http://192.168.1.20:11434", None,
                       (ModelInfo("qwen3.5:9b", None, None, None, False),))]  # fmt: skip
    resolved = routing._resolve(config, auto(), found)
    assert bool(resolved.profiles) is is_taken
    assert ("192.168.1.20 is on your network, which is not allowed" in resolved.words) is not is_taken


def test_an_address_of_its_own_is_asked_anew_before_there_is_said_to_be_nothing(config, monkeypatch):
    """A model may have come since; only a page goes by what was said before."""
    with serve(()) as server:
        profile = auto(models={"ollama": ("qwen3.5*",)}, options={"ollama": {"url": server.url}})
        assert not routing.resolve(config, profile).profiles
        server.models["qwen3.5:9b"] = MODELS[1]
        assert not routing.resolve(config, profile, is_patient=False).profiles
        assert not routing.resolve(config, profile).profiles, "it was just asked"
        monkeypatch.setattr(routing, "RECENT_SECONDS", 0.0)
        (found,) = routing.resolve(config, profile).profiles
    assert (found.model, found.options) == ("qwen3.5:9b", {"url": server.url})


def test_where_nothing_is_there_one_way_to_get_a_model_is_named(config, ollama):
    """A command before advice."""
    gone = Profile("mine", AUTO, models={"llama.cpp": ("*Big-Model*",), "ollama": ("nowhere:9b*",)})
    with pytest.raises(BackendUnavailable) as caught:
        routing.find_model(config, gone)
    assert caught.value.reason == "no_model"
    assert caught.value.hint == "Run: ollama pull nowhere:9b"
    assert "Ollama: none of the models" in str(caught.value)
    gone = dataclasses.replace(gone, models={"llama.cpp": ("*Big-Model*",)})
    with pytest.raises(BackendUnavailable) as caught:
        routing.find_model(config, gone)
    assert caught.value.hint == f"Put a GGUF file of Big-Model into {config.model_folders[0]}."


# Answers through it ---------------------------------------------------------------------------------------------------


def test_an_answer_says_what_was_chosen_and_which_settings_were_left_out(stocked, script):
    """In its JSON; the scripted backend knows no top_k."""
    order(stocked.config, "scripted")
    save_profile(stocked.config, auto(agent="direct", top_k=5, idle_seconds=9.0, temperature=0.5))
    script.append(COST)
    answer = list(ask(stocked, QUAY, profile="mine"))[-1].as_json()
    assert (answer["backend"], answer["model"], answer["profile"]) == ("scripted", "script", "mine")
    assert answer["choice"] == "mine → Scripted · script"
    assert answer["settings_left_out"] == ["top_k", "idle_seconds"]


def test_a_model_that_gives_up_is_followed_by_the_next_backend_s(stocked, ollama, script):
    """The evidence is used again."""
    order(stocked.config, "ollama", "scripted")
    save_profile(stocked.config, auto())
    ollama.enqueue()
    script.append(f"Thought: I see it.\nAnswer: {COST}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("docmind.backends.ollama_llm.OllamaLLM.warm_up", _gives_up)
        events = list(ask(stocked, QUAY, profile="mine"))
    (fell,) = [event for event in events if isinstance(event, FellBack)]
    assert (fell.before, fell.after) == ("ollama · qwen3.5:9b", "scripted · script")
    assert events[-1].backend == "scripted"


def _gives_up(self):
    raise BackendError("The server refused.", "See its log.")


def test_with_nothing_there_the_fallback_answers_with_a_note(stocked, script):
    """The note says how to get a model of the role."""
    save_profile(stocked.config, Profile("second", "scripted", "script"))
    save_profile(stocked.config, Profile("mine", AUTO, models={"ollama": ("nowhere*",)}, fallbacks=("second",)))
    script.append(COST)
    events = list(ask(stocked, QUAY, profile="mine"))
    (fell,) = [event for event in events if isinstance(event, FellBack)]
    assert (fell.before, fell.reason) == ("auto · mine", "no_model")
    answer = events[-1]
    assert answer.finished == "complete"
    assert answer.choice == "mine → no model; Ollama: not running"


# Settings and options -------------------------------------------------------------------------------------------------

EVERYTHING = {
    "max_output_tokens": 100, "context_window": 4096, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "stop": ("END",),
    "first_token_seconds": 30.0, "idle_seconds": 30.0, "total_seconds": 30.0,
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTRY)
def test_every_setting_reaches_the_backend_or_is_said_to_be_left_out(name):
    """One mapping for each; nothing is dropped in silence."""
    profile = Profile("p", name, "m", **EVERYTHING)
    routing.check(profile)
    arguments, options = routing.call_arguments(profile), routing.options(profile)
    per_call = {option.name for option in backend(name).OPTIONS if option.per_call}
    assert set(arguments) <= per_call
    left_out = set(routing.settings_left_out(profile))
    for setting in EVERYTHING:
        argument = routing.ARGUMENTS.get(setting, setting)
        assert (argument in arguments or argument in options) is not (setting in left_out), setting
    assert routing.settings_left_out(Profile("p", name, "m")) == (), "what nobody set is not missed"


def test_the_agent_s_own_words_leave_a_system_prompt_out():
    """And that is said."""
    profile = Profile("p", "llama.cpp", "m", system_prompt="Be brief.")
    assert "system_prompt" not in routing.settings_left_out(profile)
    assert "system_prompt" in routing.settings_left_out(dataclasses.replace(profile, agent="react"))


def test_what_a_server_refused_is_said_by_the_profile_s_name_for_it():
    """A backend names arguments."""
    receipt = {"settings_left_out": ["max_tokens", "seed"]}
    assert routing.all_left_out(Profile("p", "llama.cpp", "m", idle_seconds=5.0), receipt) == (
        "idle_seconds", "max_output_tokens", "seed"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "error", "words"),
    [
        (Profile("p", "olama", "m"), BackendUnavailable, "Did you mean 'ollama'?"),
        (Profile("p", "ollama", "m", options={"keep_alve": "5m"}), BackendError, "Did you mean 'keep_alive'?"),
        (Profile("p", "ollama", "m", options={"gpu_layers": -1}), BackendError, "0 to 1000"),
        (Profile("p", AUTO, options={"threads": 2}), ProfileError, "[options."),
        (Profile("p", AUTO, options={"ollama": {"thinking": "loud"}}), BackendError, "one of off"),
        (Profile("p", AUTO, models={"olama": ("x",)}), BackendUnavailable, "Did you mean 'ollama'?"),
    ],
    ids=["backend", "option", "range", "no table", "choice", "list"],
)
def test_options_are_checked_against_what_the_backend_takes(profile, error, words):
    """Before a profile is saved."""
    with pytest.raises(error) as caught:
        routing.check(profile)
    assert words in caught.value.hint


def test_an_answer_of_auto_that_was_cut_goes_on_with_the_model_it_came_to(stocked, script):
    """Its settings and its name stay those of the profile."""
    order(stocked.config, "scripted")
    save_profile(stocked.config, auto(agent="direct", temperature=0.5))
    script.append(["Repairs of the north quay ", "length"])
    assert list(ask(stocked, QUAY, profile="mine", chat="c"))[-1].finished == "cut"
    script.append("cost 3.7 million euros.")
    answer = list(ask(stocked, "", chat="c", continues=True))[-1]
    assert (answer.finished, answer.profile, answer.backend) == ("complete", "mine", "scripted")
    assert answer.choice == "mine → Scripted · script"


def test_the_command_says_where_text_goes_before_it_is_sent(stocked, ollama, monkeypatch, capsys):
    """When that is beyond this device; the stand-in is taken for such a place."""
    monkeypatch.setattr("docmind.answer.checked_place", lambda config, url, carries_text: "your network")
    ollama.enqueue(Reply(("Answer: ", COST)))
    events = ask(stocked, QUAY, backend="ollama", model="qwen3:4b-instruct")
    told = [(event.place, event.host, len(ollama.chats)) for event in events if isinstance(event, TextLeaves)]
    assert told == [("your network", "127.0.0.1", 0)]
    ollama.enqueue(Reply(("Answer: ", COST)))
    main(["ask", QUAY, "--backend", "ollama", "--model", "qwen3:4b-instruct", "--home", str(stocked.config.home)])
    assert "Question and passages go to 127.0.0.1 on your network." in capsys.readouterr().err


def test_the_command_says_what_was_chosen_and_what_was_left_out(stocked, script, capsys):
    """Below the figures, away from the answer."""
    order(stocked.config, "scripted")
    save_profile(stocked.config, auto(agent="direct", top_k=5))
    script.append(COST)
    assert main(["ask", QUAY, "--profile", "mine", "--home", str(stocked.config.home)]) == 0
    out, err = capsys.readouterr()
    assert "mine → Scripted · script" in err
    assert "scripted does not take top_k as set." in err
    assert "top_k" not in out
