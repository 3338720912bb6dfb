"""Profiles on the Models page: made, changed, copied, deleted, with what is wrong said in place; Auto and its order."""

from __future__ import annotations

import itertools

import pytest
from servers.ollama import Model, serve
from waiting import PATIENCE_SECONDS

from docmind import detection, model_runs
from docmind.backends import Detection, ModelInfo, llama_cpp
from docmind.backends.places import allow
from docmind.profiles import AUTO, Profile, find_profile, load_profiles, save_profile
from docmind.settings import read_settings
from pages.parts.safe import plain, plain_with_code

STARTER = llama_cpp.STARTER


@pytest.fixture
def page(app, library, nothing_left):
    """The Models page of the whole app, with its sidebar."""
    app.switch_page("pages/models.py")

    def open_page():
        detection.forget()
        return app.run()

    return open_page


@pytest.fixture
def mine(config):
    """One of the person's own."""
    profile = Profile(
        "mine", "llama.cpp", STARTER, role="fast", temperature=0.25, stop=("END",), options={"threads": 2},
        idle_seconds=9.0, source="user",
    )  # fmt: skip
    save_profile(config, profile)
    return profile


def field(app, kind, name):
    """A field of the open form."""
    token = app.session_state["editing"]["token"]
    return getattr(app, kind)(key=f"{token} {name}")


def choose(app, profile, action):
    """Choose from a profile's menu."""
    app.menu_button(key=f"menu {profile}").click(action).run()
    assert not app.exception


def press(app, key):
    """Press a button."""
    app.button(key=key).click().run()
    assert not app.exception


def drawn(app):
    """Everything that is drawn as markdown."""
    return [element.value for element in [*app.markdown, *app.caption, *app.error, *app.subheader]]


def test_a_profile_is_made_from_nothing_and_can_be_used(page, config):
    """Only what was set is in its file."""
    app = page()
    press(app, "new profile")
    field(app, "text_input", "name").input("My own")
    field(app, "selectbox", "model llama.cpp").select(STARTER)
    field(app, "selectbox", "role").select("technical")
    field(app, "number_input", "temperature").set_value(0.5)
    field(app, "number_input", "llama.cpp threads").set_value(1)
    press(app, "save profile")
    assert "editing" not in app.session_state
    assert find_profile(config, "My own") == Profile(
        "My own", "llama.cpp", STARTER, role="technical", temperature=0.5, options={"threads": 1}, source="user"
    )
    assert "**My own** :gray-badge[technical]" in drawn(app)
    press(app, "use My own")
    assert app.session_state["profile"] == "My own"


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [("", STARTER, "has no name"), ("mine", STARTER, "a profile 'mine' of yours"), ("x", None, "has no model"),
     ("balanced", STARTER, "came with DocMind")],
    ids=["no name", "taken", "no model", "shipped"],
)  # fmt: skip
def test_what_is_wrong_is_said_in_place_and_nothing_typed_is_lost(page, config, mine, name, model, words):
    """The next try needs only what was missing."""
    app = page()
    before = load_profiles(config)
    press(app, "new profile")
    field(app, "text_input", "name").input(name)
    field(app, "text_input", "description").input("Long words, typed with care.")
    if model:
        field(app, "selectbox", "model llama.cpp").select(model)
    press(app, "save profile")
    (error,) = app.error
    assert plain_with_code(words).split("'")[0] in error.value
    assert load_profiles(config) == before
    assert field(app, "text_input", "description").value == "Long words, typed with care."
    field(app, "text_input", "name").input("another")
    field(app, "selectbox", "model llama.cpp").select(STARTER)
    press(app, "save profile")
    assert find_profile(config, "another").description == "Long words, typed with care."


def test_an_edited_profile_keeps_what_was_not_touched(page, config, mine):
    """And takes another name, without staying under the old one."""
    app = page()
    choose(app, "mine", "Edit")
    assert field(app, "number_input", "temperature").value == 0.25
    field(app, "text_input", "name").input("renamed")
    field(app, "number_input", "temperature").set_value(None)
    press(app, "save profile")
    names = [profile.name for profile in load_profiles(config) if profile.source == "user"]
    assert names == ["renamed"]
    kept = find_profile(config, "renamed")
    assert (kept.temperature, kept.stop, kept.options, kept.idle_seconds) == (None, ("END",), {"threads": 2}, 9.0)


def test_giving_up_changes_nothing(page, config, mine):
    """Cancel."""
    app = page()
    choose(app, "mine", "Edit")
    field(app, "text_input", "name").input("renamed")
    press(app, "cancel profile")
    assert find_profile(config, "mine") == mine
    assert "**mine** :gray-badge[fast]" in drawn(app)


def test_a_shipped_profile_is_copied_with_its_models(page, config):
    """Those of backends that are not here too."""
    app = page()
    choose(app, "reasoning", "Duplicate")
    press(app, "save profile")
    copy, shipped = find_profile(config, "reasoning copy"), find_profile(config, "reasoning")
    assert (copy.models, copy.options, copy.agent) == (shipped.models, shipped.options, shipped.agent)
    assert copy.backend == AUTO


def test_an_edited_shipped_profile_is_one_s_own_until_it_is_deleted(page, config):
    """Deleting asks first."""
    app = page()
    shipped = find_profile(config, "fast")
    choose(app, "fast", "Edit")
    assert any("brings it back" in text for text in drawn(app))
    field(app, "number_input", "max_output_tokens").set_value(99)
    press(app, "save profile")
    assert find_profile(config, "fast").max_output_tokens == 99
    choose(app, "fast", "Delete")
    assert find_profile(config, "fast").source == "user"
    press(app, "keep fast")
    choose(app, "fast", "Delete")
    press(app, "delete fast")
    assert find_profile(config, "fast") == shipped


def test_another_backend_brings_its_own_options(page, monkeypatch):
    """The form is drawn from them; what its models are is there to choose."""
    with serve((Model("qwen3:4b-instruct"),)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        app = page()
        press(app, "new profile")
        field(app, "selectbox", "backend").select("ollama").run()
        assert not app.exception
        assert field(app, "selectbox", "model ollama").options == ["qwen3:4b-instruct"]
        assert field(app, "selectbox", "ollama thinking").value == "off"
        assert field(app, "text_input", "ollama keep_alive").placeholder == "5m"
        with pytest.raises(KeyError):
            field(app, "number_input", "llama.cpp threads")


def test_settings_a_backend_does_not_have_are_shown(page, mine):
    """On the card, and in the form."""
    app = page()
    assert any(plain("llama.cpp does not take idle_seconds as set") in text for text in drawn(app))
    choose(app, "mine", "Edit")
    assert any(text.startswith("llama.cpp (built in) has no setting for:") for text in drawn(app))


def test_the_order_of_backends_is_changed_by_one_step(page, config):
    """And kept."""
    app = page()
    assert app.button(key="up llama.cpp").disabled
    press(app, "up ollama")
    assert read_settings(config).backend_order[:2] == ("ollama", "llama.cpp")
    assert app.button(key="up ollama").disabled
    press(app, "down ollama")
    assert read_settings(config).backend_order[:2] == ("llama.cpp", "ollama")


def test_a_click_counts_also_when_a_backend_answers_while_the_page_is_drawn(page, config, monkeypatch):
    """The page is drawn anew for it, after the click was taken."""
    app = page()
    detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)
    asked = itertools.count()
    monkeypatch.setattr(detection, "said", lambda config: min(next(asked), 3))  # something else at the first four looks
    press(app, "up ollama")
    assert read_settings(config).backend_order[:2] == ("ollama", "llama.cpp")
    assert next(asked) > 4, "it was not drawn anew"


def test_where_text_goes_when_a_model_fails_is_said_of_auto_too(page, config, monkeypatch):
    """What it comes to is asked then."""
    url = "http://192.168.1.20:11434"
    models = (ModelInfo("qwen3:4b-instruct", 8192, 2_500_000_000, None, True),)
    found = [*detection.detect_all(config, wait_seconds=PATIENCE_SECONDS)]
    found = [d for d in found if d.backend != "ollama"]
    found.append(Detection("ollama", "Ollama", True, None, None, url, "0.20", models))
    monkeypatch.setattr(detection, "detect_all", lambda *args, **kwargs: found)
    monkeypatch.setattr("docmind.routing.detect_all", lambda *args, **kwargs: found)
    allow(config, url)
    save_profile(config, Profile("mine", "llama.cpp", STARTER, fallbacks=("fast",), source="user"))
    app = page()
    app.session_state["pending_profile"] = "mine"
    app.run()
    assert any("If it fails" in text and plain("192.168.1.20") in text for text in drawn(app))


def test_a_profile_with_a_value_that_is_none_is_told_and_the_page_stands(page, config):
    """Written by hand; in use too."""
    folder = config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text('backend = "auto"\nrole = "fast"\n[options]\nollama = "http://x"\n')
    (folder / "other.toml").write_text(f'backend = "llama.cpp"\nmodel = "{STARTER}"\nfallbacks = ["gone", "mine"]\n')
    app = page()
    app.session_state["pending_profile"] = "mine"
    app.run()
    assert not app.exception
    assert any("options stand in a table" in text for text in drawn(app))
    assert any(plain("Cannot go on when it fails: gone, mine.") in text for text in drawn(app))
    app.sidebar.selectbox[0].select("llama.cpp").run()
    assert not app.exception


def test_auto_is_an_entry_of_the_sidebar_with_its_roles(page, monkeypatch):
    """It says what it comes to before a question is sent; a role without a model says so."""
    with serve((Model("qwen3:4b-instruct"),)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        app = page()
        backend = app.sidebar.selectbox[0]
        assert backend.options[0] == "Auto: first that answers"
        backend.select(AUTO).run()
        assert not app.exception
        role = app.sidebar.selectbox[1]
        assert (role.label, role.options) == ("Role", ["fast", "balanced", "technical", "reasoning"])
        assert app.session_state["profile"] == "fast"
        captions = [caption.value for caption in app.sidebar.caption]
        assert plain("→ Ollama · qwen3:4b-instruct") in captions
        assert ":green[●] on this device" in captions
        role.select("balanced").run()
        assert app.session_state["profile"] == "balanced"
        assert any("no model of this role; starter answers" in caption.value for caption in app.sidebar.caption)


def test_a_profile_s_test_is_made_with_its_settings(page, mine):
    """With the figures, as they came."""
    app = page()
    press(app, "test profile mine")
    (run,) = [run for run in model_runs.model_runs() if run.action == "test" and run.profile == "mine"]
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert run.error is None
    assert any("tokens/s" in text and "window 8,192 tokens" in text for text in drawn(app))
