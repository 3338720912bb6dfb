"""What the Models page does with models: pull, load, unload, delete, get one from a hub; and keys of servers."""

from __future__ import annotations

import struct

import keyring
import pytest
from servers import hub as hubs
from servers import ollama as ollamas
from servers import openai_compatible as openais
from test_keys import Guarded
from waiting import PATIENCE_SECONDS, wait_until

from docmind import keys, model_runs
from docmind.backends import llama_cpp
from pages.parts.safe import plain

NEW = "gemma3:1b"
REPOSITORY = "maker/Better-GGUF"
KEY = "sk-canary-0123456789"


@pytest.fixture
def ollama(monkeypatch):
    """A stand-in for Ollama where DocMind looks for one."""
    with ollamas.serve() as running:
        monkeypatch.setenv("OLLAMA_HOST", running.url)
        yield running


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: one model that fits, in two sizes, and one that fits no machine."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hubs.serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.add(REPOSITORY, "better-Q2_K.gguf", gguf(size=2_000_000))
        running.add(REPOSITORY, "better-Q4_K_M.gguf", gguf(size=3_000_000))
        running.add("maker/Huge-GGUF", "huge-Q4_K_M.gguf", gguf(layers=4_000))
        running.add("maker/words", "README.md", b"# Words")
        yield running


def gguf(layers=4, size=1_000_000):
    """A header, and bytes that make no model."""
    values = {"general.architecture": b"llama", "llama.block_count": layers, "llama.embedding_length": 2560,
              "llama.attention.head_count": 32, "llama.context_length": 8192}  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for key, value in values.items():
        head += struct.pack("<Q", len(key)) + key.encode()
        head += struct.pack("<IQ", 8, len(value)) + value if isinstance(value, bytes) else struct.pack("<II", 4, value)
    return head + bytes(size - len(head))


def texts(app):
    """What is drawn as markdown, bars of progress among it; nothing went wrong."""
    assert not app.exception
    bars = [bar.proto.text for bar in app.get("progress")]
    return [*(element.value for element in [*app.markdown, *app.caption]), *bars]


def says(app, words):
    """Whether something on the page has these words."""
    return any(words in text for text in texts(app))


def ask(app, field, text, submit):
    """Fill a field of a form and submit it."""
    app.text_input(key=field).input(text)
    app.button(key=submit).click().run()
    assert not app.exception


def states(app, place):
    """The state of each model of a table."""
    table = app.dataframe[place].value
    return dict(zip(table["Model"], table["State"], strict=True))


def the_run(action):
    """The only run of its kind."""
    (run,) = [run for run in model_runs.model_runs() if run.action == action]
    return run


def ended(app, action):
    """Waits for the run of its kind, and draws the page as it is then."""
    run = the_run(action)
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    return run


# Pulling, loading, deleting


def test_a_pull_is_seen_in_every_tab_and_ends_as_the_model_that_is_chosen(models_page, ollama):
    """How far it is, a way to stop, and going on where it ended."""
    ollama.pull_pause_seconds = 600.0
    app = models_page()
    assert app.text_input(key="pulled by ollama").placeholder == "qwen3:4b-instruct"
    ask(app, "pulled by ollama", NEW, "start pull ollama")
    run = the_run("pull")
    wait_until(lambda: run.progress.total)
    other = models_page()
    assert says(other, f"Downloading **{plain(NEW)}** · ")
    assert says(other, " of 815 MB · ")
    ask(other, "pulled by ollama", NEW, "start pull ollama")
    assert "is being pulled" in other.error[0].value
    other.button(key=f"stop {run.run_id}").click().run()
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert says(app, f"Stopped. What came of **{plain(NEW)}** is kept")
    assert NEW not in states(app, 1)
    ollama.pull_pause_seconds = 0.0
    ask(app, "pulled by ollama", f" {NEW} ", "start pull ollama")
    ended(app, "pull")
    assert states(app, 1)[NEW] == "ready"
    assert app.selectbox(key="model of ollama").value == NEW
    assert says(app, f"**{plain(NEW)}** was pulled and can be chosen.")
    app.button(key=f"dismiss {the_run('pull').run_id}").click().run()
    assert not says(app, "was pulled")


def test_a_pull_that_fails_says_why_until_it_is_dismissed(models_page, ollama):
    """With what to do."""
    app = models_page()
    ask(app, "pulled by ollama", "no-such-model", "start pull ollama")
    run = ended(app, "pull")
    assert "no model 'no-such-model'" in app.error[0].value
    assert "ollama.com/library" in app.error[0].value.replace("\u2060", "").replace("\\", "")
    app.button(key=f"dismiss {run.run_id}").click().run()
    assert not app.error
    ask(app, "pulled by ollama", "  ", "start pull ollama")
    assert not model_runs.model_runs(), "no name is no pull"


def test_a_model_is_loaded_and_unloaded(models_page, ollama):
    """What it takes of the memory is said."""
    ollama.gpu_share = 0.5
    app = models_page()
    app.selectbox(key="model of ollama").select("qwen3:4b").run()
    app.button(key="load ollama").click().run()
    ended(app, "load")
    assert states(app, 1)["qwen3:4b"] == "in memory"
    assert says(app, "In memory: 3.4 GB, 1.7 GB of it on graphics cards.")
    app.button(key="unload ollama").click().run()
    ended(app, "unload")
    assert states(app, 1)["qwen3:4b"] == "ready"
    assert not says(app, "In memory:")


def test_a_model_is_deleted_only_after_a_second_word(models_page, ollama):
    """Its name and size stand beside the question."""
    app = models_page()
    app.selectbox(key="model of ollama").select("qwen3:4b").run()
    app.button(key="delete ollama").click().run()
    assert says(app, f"**{plain('qwen3:4b')}** (2.6 GB) will be deleted from the disk of Ollama.")
    app.button(key="keep ollama").click().run()
    assert not says(app, "will be deleted")
    assert not model_runs.model_runs()
    app.button(key="delete ollama").click().run()
    app.button(key="delete for good ollama").click().run()
    ended(app, "delete")
    assert "qwen3:4b" not in states(app, 1)
    assert "qwen3:4b" not in ollama.models


def test_an_ollama_without_models_keeps_its_card_for_the_first(models_page, ollama):
    """And an old one its warning."""
    ollama.models.clear()
    ollama.version = "0.9.1"
    app = models_page()
    assert says(app, ":orange-badge[no model found]")
    assert not app.warning
    ask(app, "pulled by ollama", NEW, "start pull ollama")
    ended(app, "pull")
    assert says(app, ":gray-badge[running]")
    assert "known security fault" in app.warning[0].value


# From a hub


def test_a_model_is_looked_up_judged_fetched_chosen_and_tried(models_page, hub, config):
    """The whole way, with the bytes of a model that really answers."""
    starter = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    hub.add("maker/Real-GGUF", "real-Q4_K_M.gguf", starter.read_bytes())
    app = models_page()
    ask(app, "look source", "maker/Real-GGUF", "look up")
    ended(app, "look")
    assert app.dataframe[1].value.to_dict("records")[0]["Fits"] == "fits"
    assert says(app, "Fits in memory\\: about 0.4 GB")
    app.button(key="download").click().run()
    ended(app, "download")
    assert says(app, f"**{plain('real-Q4_K_M')}** was downloaded and can be chosen. SHA-256 ")
    assert says(app, ", as the source says.")
    assert says(app, "It is on this machine already.")
    assert app.selectbox(key="model of llama.cpp").value == "real-Q4_K_M"
    app.button(key="test backend llama.cpp").click().run()
    assert ended(app, "test").error is None
    assert says(app, f"{plain('real-Q4_K_M')} · first token ")


def test_a_stopped_download_says_how_much_is_kept_and_goes_on(models_page, hub):
    """The smaller file is there to be chosen, the good one is chosen first."""
    hub.faults["better-Q4_K_M.gguf"] = hubs.Fault(hang_after=1_000_000)
    app = models_page()
    ask(app, "look source", REPOSITORY, "look up")
    ended(app, "look")
    choice = app.selectbox[1]
    assert choice.options == ["better-Q2_K", "better-Q4_K_M"]
    # The header of the look has been read by then, so the fault is met by the download.
    app.button(key="download").click().run()
    run = the_run("download")
    wait_until(lambda: run.progress.done >= 700_000)
    app.run()
    assert says(app, f"Downloading **{plain('better-Q4_K_M')}** · 1 MB of 3 MB")
    assert "download" not in [button.key for button in app.button], "not twice"
    app.button(key=f"stop {run.run_id}").click().run()
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert says(app, "is kept: the next time it goes on from there")
    assert says(app, "1 MB of it are here from before: the download goes on from there.")
    hub.faults.clear()
    app.button(key="download").click().run()
    ended(app, "download")
    assert states(app, 0)["better-Q4_K_M"] == "fits"


def test_what_fits_no_machine_needs_a_second_word(models_page, hub):
    """The sentence says why."""
    app = models_page()
    ask(app, "look source", "maker/Huge-GGUF", "look up")
    ended(app, "look")
    assert says(app, ":orange[Too large")
    assert app.button(key="download").disabled
    app.checkbox[0].check().run()
    assert not app.button(key="download").disabled
    app.button(key="close look").click().run()
    assert "download" not in [button.key for button in app.button]


@pytest.mark.parametrize(
    ("source", "words"),
    [("maker/nothing", "maker/nothing"), ("no repository", "is no repository"), ("https://[", "no address of a model")],
)
def test_what_is_not_on_the_hub_is_an_error_with_a_remedy(models_page, hub, source, words):
    """In place of the list."""
    app = models_page()
    ask(app, "look source", source, "look up")
    assert ended(app, "look").error.hint
    assert words in app.error[0].value.replace("\\", "")


def test_a_repository_without_gguf_files_says_so(models_page, hub):
    """It is no error."""
    app = models_page()
    ask(app, "look source", "maker/words", "look up")
    ended(app, "look")
    assert says(app, "maker/words has no GGUF file.")


def test_local_only_says_why_nothing_is_fetched(models_page, config):
    """Nothing is asked."""
    config.home.mkdir(parents=True, exist_ok=True)
    config.settings.write_text("local_only = true", encoding="utf-8")
    app = models_page()
    assert says(app, "“Local only” is on: nothing is fetched.")
    assert app.text_input(key="look source").disabled
    assert app.button(key="look up").disabled


# Keys


@pytest.fixture
def guarded(monkeypatch):
    """Stands for the system's keyring, of which none runs here."""
    before = keyring.get_keyring()
    monkeypatch.setattr(keys, "SAFE", keys.SAFE | {Guarded.__module__})
    ring = Guarded()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


@pytest.fixture
def locked(monkeypatch):
    """A server that demands a key."""
    with openais.serve("vllm") as running:
        running.key = KEY
        monkeypatch.setenv("OPENAI_COMPATIBLE_URL", running.url)
        yield running


def everything(app):
    """All that a page sends to the browser and all that its session keeps, as text."""
    drawn = [str(element.proto) for block in (app.main, app.sidebar) for element in block if hasattr(element, "proto")]
    state = app.session_state._state._state  # both the values of widgets and what was kept under names
    kept = [str(state._old_state), str(state._new_session_state), str(state._new_widget_state)]
    return "\n".join([*drawn, *kept])


def test_a_key_is_taken_once_and_seen_nowhere(models_page, locked, caplog):
    """Not on the page, not in the session, not in the log; it can be forgotten."""
    address = keys.origin(locked.url)
    shown = plain(address)
    app = models_page()
    line = next(found for found in app.expander if found.label.startswith("OpenAI\\-") or "refuses" in found.label)
    assert "refuses the key" in line.label
    field = app.text_input(key=f"key for {address}")
    assert field.label == f"Key for {shown}"
    assert field.proto.type == field.proto.PASSWORD
    ask(app, f"key for {address}", "two words", f"keep {address}")
    assert "That is no key." in app.error[0].value
    assert "two words" not in everything(app)
    ask(app, f"key for {address}", KEY, f"keep {address}")
    assert says(app, "The key is kept until DocMind ends: this system has no keyring that guards keys.")
    assert says(app, ":gray-badge[running]")
    assert KEY not in everything(app)
    assert KEY not in caplog.text
    again = models_page()
    assert says(again, f"A key is kept for {shown}.")
    assert f"key for {address}" not in [field.key for field in again.text_input], "it works"
    again.button(key=f"forget {address}").click().run()
    assert says(again, "The key is forgotten.")
    assert keys.find_key(locked.url) is None
    assert again.text_input(key=f"key for {address}").value == ""


def test_the_keyring_that_keeps_a_key_is_named(models_page, locked, guarded):
    """It holds it for the address alone."""
    address = keys.origin(locked.url)
    app = models_page()
    ask(app, f"key for {address}", KEY, f"keep {address}")
    assert says(app, "The key is kept in Guarded.")
    assert guarded.kept == {("docmind", address): KEY}
    app.button(key=f"forget {address}").click().run()
    assert guarded.kept == {}


def test_a_server_that_needs_no_key_is_not_asked_for_one(models_page, ollama):
    """On this device, that is; one that refuses is."""
    app = models_page()
    address = keys.origin(ollama.url)
    assert f"key for {address}" not in [field.key for field in app.text_input]
    ollama.key = KEY
    app.button(key="refresh").click().run()
    ask(app, f"key for {address}", KEY, f"keep {address}")
    assert says(app, "The key is kept")
    assert app.selectbox(key="model of ollama").options
