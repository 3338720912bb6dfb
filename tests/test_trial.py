"""Trying a model, with the real starter: what comes back, how far it is, and that it can be stopped."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from docmind.backends import llama_cpp
from docmind.errors import BackendError, ModelDamaged, ModelNotFound
from docmind.trial import MAX_TOKENS, TrialRun, try_model

PATIENCE_SECONDS = 60


@pytest.fixture(autouse=True)
def no_child_stays():
    """Each test loads its model anew."""
    llama_cpp.close_all()
    yield
    llama_cpp.close_all()


def test_a_trial_shows_words_and_figures(config):
    """The starter answers; the window is the one it was loaded with; its phases come in order."""
    seen = []
    trial = try_model(config, "llama.cpp", llama_cpp.STARTER, {"context_window": 1024}, threading.Event(), seen.append)
    assert "harbour" in trial.text.lower()
    assert trial.context_window == 1024
    assert trial.first_token_seconds > 0
    assert trial.tokens_per_second > 0
    assert trial.load_seconds > 0
    assert not trial.is_stopped
    phases = [phase for phase, _ in itertools.groupby(progress.phase for progress in seen)]
    assert phases == ["loading", "reading", "writing"]
    assert seen[-1].text.strip() == trial.text
    assert len([progress for progress in seen if progress.phase == "writing"]) <= MAX_TOKENS + 2


def test_a_model_in_memory_is_not_loaded_again(config):
    """Then there is no time of loading."""
    llm = llama_cpp.build(config, llama_cpp.STARTER)
    llm.warm_up()
    trial = try_model(config, "llama.cpp", llama_cpp.STARTER, {}, threading.Event())
    assert trial.load_seconds is None
    assert trial.text
    assert llm.is_loaded


def test_a_run_ends_by_itself_with_the_trial(config):
    """In a thread of its own."""
    run = TrialRun(config, "llama.cpp", llama_cpp.STARTER, {})
    assert run.wait(PATIENCE_SECONDS)
    assert not run.is_running
    assert run.error is None
    assert run.trial.text


@pytest.mark.parametrize("phase", ["at once", "loading", "writing"])
def test_a_run_can_be_stopped_in_any_phase(config, phase):
    """It ends with what was written so far, and is no error."""
    run = TrialRun(config, "llama.cpp", llama_cpp.STARTER, {"max_tokens": 4000})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while phase != "at once" and run.progress.phase != phase:
        assert time.monotonic() < deadline
        assert run.is_running
    run.stop()
    assert run.is_stopping or not run.is_running
    assert run.wait(PATIENCE_SECONDS)
    assert run.error is None
    # A model this small may have come to its end before the stop reached it.
    assert run.trial.is_stopped or phase == "writing"
    assert bool(run.trial.text) == (phase == "writing")


def test_a_model_that_is_not_there_is_an_error_with_a_hint(config):
    """The hint names those that are."""
    run = TrialRun(config, "llama.cpp", "nonsense", {})
    assert run.wait(PATIENCE_SECONDS)
    assert isinstance(run.error, ModelNotFound)
    assert llama_cpp.STARTER in run.error.hint
    assert run.trial is None


def test_a_damaged_model_is_an_error(config):
    """Also when its header is right and its weights are missing."""
    starter = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    with starter.open("rb") as whole:
        (folder / "half.gguf").write_bytes(whole.read(4_000_000))
    run = TrialRun(config, "llama.cpp", "half", {})
    assert run.wait(PATIENCE_SECONDS)
    assert isinstance(run.error, ModelDamaged)
    assert run.error.hint


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_nobody_foresaw_is_an_error_too():
    """A page that waits for the end is told, and Python prints the rest."""
    run = TrialRun(None, "llama.cpp", llama_cpp.STARTER, {})
    assert run.wait(PATIENCE_SECONDS)
    assert isinstance(run.error, BackendError)
    assert "doctor" in run.error.hint
