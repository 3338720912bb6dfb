"""Runs belong to the process: followed from anywhere, stopped, and kept whatever the page does."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from docmind import chats, runs
from docmind.answer import Answer
from docmind.backends import backend
from docmind.events import StepStarted, TextDelta
from docmind.ingest import FileFinished, FileStarted, Summary
from docmind.store import reading

PATIENCE_SECONDS = 120
QUESTION = "How many containers did the harbour of Ellmere handle in 2023?"
LONG = "Tell me all about the harbour, the quay, the pilots and the herring."


@pytest.fixture(scope="module", autouse=True)
def end_models():
    """No child outlives the tests."""
    yield
    from docmind.backends import llama_cpp

    gc.collect()
    llama_cpp.close_all()


@pytest.fixture
def talkative(stocked):
    """A profile whose model writes for long."""
    folder = stocked.config.home / "models"
    folder.mkdir(exist_ok=True)
    model = backend("llama.cpp").models(stocked.config)[0].name
    (folder / "talkative.toml").write_text(
        f'backend = "llama.cpp"\nmodel = "{model}"\nmax_output_tokens = 2000\ntemperature = 1.0\n'
        'system_prompt = "Tell a very long story about the evidence. Never stop."\n'
    )
    return "talkative"


def _states(library):
    with reading(library.path) as db:
        return {row["id"]: row["state"] for row in db.execute("SELECT id, state FROM runs")}


def _wait_for(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_goes_on_while_nobody_looks_and_can_be_followed_from_any_point(stocked):
    """What a late page sees is what an early one saw, and what the library keeps."""
    run = runs.start_answer(stocked, QUESTION, chat_id="c1")
    assert runs.answering("c1") is run
    assert runs.find(run.run_id) is run
    assert run.wait(PATIENCE_SECONDS)
    events = run.events_after()
    assert isinstance(events[0], StepStarted)
    assert isinstance(events[-1], Answer)
    assert run.events_after(len(events) - 1) == events[-1:]
    assert run.events_after(len(events)) == []
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    kept = chats.messages(stocked, "c1")[-1]
    assert kept.text == text == events[-1].text != ""
    assert (run.state, run.error, kept.finished, kept.run_id) == ("complete", None, "complete", run.run_id)
    assert _states(stocked)[run.run_id] == "complete"
    assert kept.citations[0]["quote"]
    assert kept.details["timings"]["answer_tokens"] > 0
    assert runs.answering("c1") is None
    assert run in runs.live("answer")
    assert run not in runs.live("ingestion")


def test_the_end_is_kept_before_it_is_told(stocked):
    """Whoever sees the answer in the run finds it in the library."""
    run = runs.start_answer(stocked, QUESTION, chat_id="c1")
    _wait_for(lambda: any(isinstance(event, Answer) for event in run.events_after()))
    assert chats.messages(stocked, "c1")[-1].finished == "complete"
    run.wait(PATIENCE_SECONDS)


def test_a_stopped_answer_keeps_what_was_shown(stocked, talkative):
    """And says so."""
    run = runs.start_answer(stocked, LONG, chat_id="c1", profile=talkative)
    _wait_for(lambda: any(isinstance(event, TextDelta) for event in run.events_after()))
    run.stop()
    assert run.wait(PATIENCE_SECONDS)
    assert run.state == "stopped"
    kept = chats.messages(stocked, "c1")[-1]
    assert (kept.finished, kept.details["reason"]) == ("stopped", "stopped")
    assert kept.text == "".join(event.text for event in run.events_after() if isinstance(event, TextDelta))


def test_a_growing_answer_is_kept_every_few_seconds(stocked, talkative, monkeypatch):
    """A killed program loses no more than that."""
    monkeypatch.setattr("docmind.answer.KEEP_SECONDS", 0.0)
    run = runs.start_answer(stocked, LONG, chat_id="c1", profile=talkative)
    _wait_for(lambda: chats.messages(stocked, "c1") and chats.messages(stocked, "c1")[-1].text)
    kept = chats.messages(stocked, "c1")[-1]
    assert kept.finished is None
    run.stop()
    assert run.wait(PATIENCE_SECONDS)
    assert chats.messages(stocked, "c1")[-1].text.startswith(kept.text)


def test_two_people_at_once_each_get_their_own_answer(stocked):
    """In their own chats, one after the other."""
    both = [runs.start_answer(stocked, QUESTION, chat_id=chat) for chat in ("mine", "yours")]
    assert all(run.wait(PATIENCE_SECONDS) for run in both)
    assert [run.state for run in both] == ["complete", "complete"]
    for chat in ("mine", "yours"):
        assert [message.role for message in chats.messages(stocked, chat)] == ["user", "assistant"]


def test_a_failed_run_says_why_and_keeps_the_question(library):
    """An empty library has no answers."""
    run = runs.start_answer(library, "Anything?", chat_id="c1")
    assert run.wait(PATIENCE_SECONDS)
    assert (run.state, run.error.reason) == ("failed", "library_empty")
    asked, answer = chats.messages(library, "c1")
    assert (asked.text, answer.finished, answer.details["reason"]) == ("Anything?", "failed", "library_empty")
    assert answer.details["hint"]


def test_an_error_of_the_program_itself_ends_the_run(library, monkeypatch):
    """Nobody waits for ever, and the log has the rest."""
    monkeypatch.setattr("docmind.routing.find_profile", lambda *_: 1 / 0)
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    run = runs.start_answer(library, "Anything?", chat_id="c1")
    assert run.wait(PATIENCE_SECONDS)
    assert (run.state, run.error.reason) == ("failed", "internal")
    _wait_for(lambda: seen)
    assert seen[0].exc_type is ZeroDivisionError
    assert chats.messages(library, "c1")[-1].finished == "failed"


def test_documents_are_added_in_a_run(library, tmp_path):
    """Its events are those of ingestion."""
    (tmp_path / "a.txt").write_text("The quay is 300 metres long.")
    run = runs.start_ingestion(library, [tmp_path / "a.txt"], collections=["harbour"])
    assert run.wait(PATIENCE_SECONDS)
    events = run.events_after()
    assert [type(event) for event in (events[0], *events[-2:])] == [FileStarted, FileFinished, Summary]
    assert run.state == "complete"
    assert [document.collections for document in library.documents()] == [("harbour",)]
    assert _states(library)[run.run_id] == "complete"


def test_a_stopped_ingestion_keeps_the_files_before(library, tmp_path):
    """And leaves the one being read out whole."""
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(f"Quay {number} is long.")
    run = runs.start_ingestion(library, [tmp_path])
    _wait_for(lambda: any(isinstance(event, FileFinished) for event in run.events_after()))
    run.stop()
    assert run.wait(PATIENCE_SECONDS)
    finished = [event for event in run.events_after() if isinstance(event, FileFinished)]
    assert run.state == _states(library)[run.run_id] == "stopped"
    assert 0 < len(finished) < 30
    assert len(library.documents()) == len(finished)


def test_ingestion_steps_back_while_an_answer_is_written(stocked, talkative, tmp_path):
    """It goes on when the answer has ended."""
    for number in range(5):
        (tmp_path / f"{number:02}.txt").write_text(f"Quay {number} is long.")
    answer = runs.start_answer(stocked, LONG, chat_id="c1", profile=talkative)
    _wait_for(lambda: any(isinstance(event, TextDelta) for event in answer.events_after()))
    adding = runs.start_ingestion(stocked, [tmp_path])
    _wait_for(lambda: adding.events_after())
    seen = len(adding.events_after())
    was_writing = answer.is_running
    answer.stop()
    assert answer.wait(PATIENCE_SECONDS)
    assert adding.wait(PATIENCE_SECONDS)
    assert was_writing
    assert seen < 5
    assert adding.state == "complete"


def test_everything_is_stopped_and_kept_at_the_end_of_the_program(stocked, talkative):
    """As when the server is told to end."""
    run = runs.start_answer(stocked, LONG, chat_id="c1", profile=talkative)
    _wait_for(lambda: any(isinstance(event, TextDelta) for event in run.events_after()))
    runs.stop_all(PATIENCE_SECONDS)
    assert not run.is_running
    assert chats.messages(stocked, "c1")[-1].finished == "stopped"


def test_runs_that_ended_long_ago_are_forgotten_here(library, monkeypatch):
    """The library has them."""
    run = runs.start_answer(library, "Anything?", chat_id="c1")
    assert run.wait(PATIENCE_SECONDS)
    monkeypatch.setattr(runs, "KEPT_SECONDS", -1.0)
    assert run not in runs.live()
    assert runs.find(run.run_id) is None


def test_threads_of_runs_do_not_keep_the_program_alive(library):
    """They are daemons."""
    run = runs.start_answer(library, "Anything?", chat_id="c1")
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("docmind-"))
    run.wait(PATIENCE_SECONDS)
