"""What is done with models belongs to the process: one thing at a time with each, followed from anywhere, stopped."""

from __future__ import annotations

import threading
import time

import pytest
from servers.ollama import serve
from waiting import PATIENCE_SECONDS, wait_until

from docmind import detection, model_runs, runs
from docmind.backends import Progress, llama_cpp
from docmind.errors import BackendBusy, ModelDamaged, ModelNotFound

NEW = "gemma3:1b"


@pytest.fixture(autouse=True)
def nothing_left():
    """Each test loads its model anew, and sees no run of another."""
    llama_cpp.close_all()
    yield
    for run in model_runs.model_runs():
        run.stop()
        assert run.wait(PATIENCE_SECONDS)
        runs.dismiss(run.run_id)
    llama_cpp.close_all()


@pytest.fixture
def server(monkeypatch):
    """A stand-in for Ollama, where DocMind looks for one."""
    with serve() as running:
        monkeypatch.setenv("OLLAMA_HOST", running.url)
        yield running


def test_of_a_long_run_only_some_events_are_kept_and_its_latest_progress(monkeypatch):
    """Bytes come a hundred times a second."""
    run = model_runs.ModelRun("pull", "ollama", NEW)
    now = [0.0]
    monkeypatch.setattr(model_runs.time, "monotonic", lambda: now[0])
    for step in range(1000):
        now[0] = step * 0.01
        run.report(Progress("downloading", step * 1000, 1_000_000))
    assert run.progress.done == 999_000
    assert 35 <= len(run.events_after()) <= 41
    assert run.bytes_per_second == pytest.approx(100_000)
    run.report(Progress("checking", 5, 1_000_000))
    assert run.bytes_per_second is None, "that was the speed of something else"


def test_one_thing_at_a_time_is_done_with_a_model(server, config):
    """Whoever asks; with another one it is free to begin."""
    server.pull_end = "silence"
    first = model_runs.start(config, "pull", "ollama", NEW)
    assert first in runs.live("model")
    assert model_runs.going_on("ollama", NEW) is first
    for action in ("pull", "delete"):
        with pytest.raises(BackendBusy, match="is being pulled") as caught:
            model_runs.start(config, action, "ollama", NEW)
        assert caught.value.hint
    other = model_runs.start(config, "load", "ollama", "qwen3:4b")
    assert other.wait(PATIENCE_SECONDS)
    assert (other.state, server.loaded) == ("complete", {"qwen3:4b": 8192})
    assert first.is_running
    first.stop()
    assert first.wait(PATIENCE_SECONDS)
    server.pull_end = "success"
    second = model_runs.start(config, "pull", "ollama", NEW)
    assert second.wait(PATIENCE_SECONDS)
    assert (first.state, second.state, NEW in server.models) == ("stopped", "complete", True)
    last = model_runs.start(config, "delete", "ollama", NEW)
    assert last.wait(PATIENCE_SECONDS)
    assert NEW not in server.models
    assert model_runs.model_runs("ollama") == [other, last], "what was said of this model before is forgotten"
    assert [path for path, _ in server.requests].count("/api/pull") == 2


def test_what_was_found_is_looked_at_anew_after_each_run(server, config):
    """Also when it failed."""
    before = detection.detect_all(config)
    run = model_runs.start(config, "pull", "ollama", NEW)
    assert run.wait(PATIENCE_SECONDS)
    after = {model.name for one in detection.detect_all(config) for model in one.models}
    assert after - {model.name for one in before for model in one.models} == {NEW}


def test_a_stopped_pull_is_no_error_and_a_failed_one_says_why(server, config):
    """A run that has ended can be dismissed, one that goes on cannot."""
    server.pull_end = "silence"
    run = model_runs.start(config, "pull", "ollama", NEW)
    wait_until(lambda: run.progress.done)
    runs.dismiss(run.run_id)
    assert model_runs.model_runs() == [run]
    run.stop()
    assert run.wait(PATIENCE_SECONDS)
    assert (run.state, run.error) == ("stopped", None)
    failed = model_runs.start(config, "pull", "ollama", "no-such-model")
    assert failed.wait(PATIENCE_SECONDS)
    assert (failed.state, failed.error.reason) == ("failed", "model_missing")
    assert failed.error.hint
    runs.dismiss(failed.run_id)
    assert failed not in model_runs.model_runs()


def test_the_end_of_the_program_stops_a_pull(server, config):
    """Nothing is left behind that nobody can stop."""
    server.pull_end = "silence"
    run = model_runs.start(config, "pull", "ollama", NEW)
    wait_until(lambda: run.progress.done)
    runs.stop_all(PATIENCE_SECONDS)
    assert run.state == "stopped"


# Trying a model


def test_a_test_ends_by_itself_and_meanwhile_no_other_begins(config):
    """A second model in memory would slow the first down."""
    run = model_runs.start_test(config, "llama.cpp", llama_cpp.STARTER, {}, profile="starter")
    with pytest.raises(BackendBusy):  # it has to start a process and to load a model first
        model_runs.start_test(config, "llama.cpp", "another", {})
    assert run.wait(PATIENCE_SECONDS)
    assert (run.state, run.error, run.profile) == ("complete", None, "starter")
    assert run.result.text


@pytest.mark.parametrize("phase", ["at once", "loading", "writing"])
def test_a_test_can_be_stopped_in_any_phase(config, phase):
    """It ends with what was written so far, and is no error."""
    run = model_runs.start_test(config, "llama.cpp", llama_cpp.STARTER, {"max_tokens": 4000})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while phase != "at once" and run.progress.doing != phase:
        assert time.monotonic() < deadline
        assert run.is_running
    run.stop()
    assert run.wait(PATIENCE_SECONDS)
    assert run.error is None
    # A model this small may have come to its end before the stop reached it.
    assert run.result.is_stopped or phase == "writing"
    assert bool(run.result.text) == (phase == "writing")


def test_a_model_that_is_not_there_is_an_error_with_a_hint(config):
    """The hint names those that are."""
    run = model_runs.start_test(config, "llama.cpp", "nonsense", {})
    assert run.wait(PATIENCE_SECONDS)
    assert isinstance(run.error, ModelNotFound)
    assert llama_cpp.STARTER in run.error.hint
    assert run.result is None


def test_a_damaged_model_is_an_error(config):
    """Also when its header is right and its weights are missing."""
    starter = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    folder = config.model_folders[0]
    folder.mkdir(parents=True)
    with starter.open("rb") as whole:
        (folder / "half.gguf").write_bytes(whole.read(4_000_000))
    run = model_runs.start_test(config, "llama.cpp", "half", {})
    assert run.wait(PATIENCE_SECONDS)
    assert isinstance(run.error, ModelDamaged)
    assert run.error.hint


def test_what_nobody_foresaw_is_an_error_too(monkeypatch):
    """A page that waits for the end is told, and the log has the rest."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    run = model_runs.start_test(None, "llama.cpp", llama_cpp.STARTER, {})
    assert run.wait(PATIENCE_SECONDS)
    assert run.error.reason == "internal"
    assert "doctor" in run.error.hint
    wait_until(lambda: seen)
