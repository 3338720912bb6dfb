"""Runs: answers being written, documents being added, and what is done with models. They belong to the process; pages
only look. No Streamlit.

`start_answer`, `start_ingestion` and what `docmind.model_runs` starts begin a run in a thread of its own and return at
once. What happens in it are events, kept in order, that any number of pages follow from any point (`Run.events_after`).
A refreshed or closed page changes nothing about a run. One pair of tables records answers and ingestions of all
processes: a job is a run, a receipt is its last event; those events hold no text of documents.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import psutil

from docmind import store
from docmind.errors import DocMindError
from docmind.library import now

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from docmind.library import Library

log = logging.getLogger(__name__)

RunKind = Literal["answer", "ingestion", "model"]
RunState = Literal["running", "complete", "stopped", "cut", "failed"]
CLOCK_SECONDS = 2.0  # a process's time of birth is known to a hundredth of a second, and a clock may be set
KEPT_SECONDS: Final = 600.0  # how long a run that has ended can still be followed here; then the library has it
STEP_BACK_SECONDS: Final = 0.1
SHUTDOWN_SECONDS: Final = 5.0


# Runs of this process ---------------------------------------------------------------------------------------------


class Run:
    """A run of this process: its events so far, and a way to stop it. Safe to use from any thread.

    Attributes:
        state: "running" until its last event is there and everything is kept in the library.
        error: Why it failed; None otherwise.
        chat_id, question: Of an answer; None and "" for anything else.
    """

    def __init__(self, kind: RunKind, *, chat_id: str | None = None, question: str = "") -> None:
        self.run_id = uuid.uuid4().hex
        self.kind = kind
        self.chat_id = chat_id
        self.question = question
        self.state: RunState = "running"
        self.error: DocMindError | None = None
        self.started = time.monotonic()
        self.stop_requested = threading.Event()
        self._ended: float | None = None
        self._events: list[Any] = []
        self._changed = threading.Condition()

    @property
    def is_running(self) -> bool:
        """Whether more events may come."""
        return self._ended is None

    def events_after(self, sequence: int = 0) -> list[Any]:
        """The events from number `sequence` on, the first being 0: those of `docmind.answer` or `docmind.ingest`."""
        with self._changed:
            return self._events[sequence:]

    def stop(self) -> None:
        """Ask it to end; what was done so far is kept."""
        self.stop_requested.set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the end; False when it was still running after that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended is not None, timeout_seconds)

    def _add(self, event: Any) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _end(self, state: RunState, error: DocMindError | None = None) -> None:
        with self._changed:
            self.state, self.error, self._ended = state, error, time.monotonic()
            self._changed.notify_all()

    def _is_over_for(self, seconds: float) -> bool:
        return self._ended is not None and time.monotonic() - self._ended > seconds


R = TypeVar("R", bound=Run)
_runs: dict[str, Run] = {}
_runs_lock = threading.Lock()


def start_answer(
    library: Library,
    question: str,
    *,
    chat_id: str,
    profile: str | None = None,
    backend: str | None = None,
    model: str | None = None,
    collections: Sequence[str] = (),
    documents: Sequence[str] = (),
    continues: bool = False,
) -> Run:
    """Begin to answer a question in a chat, or to go on with its last answer; the arguments are those of `ask`."""
    from docmind.answer import Answer, ask

    run = Run("answer", chat_id=chat_id, question=question)

    def work() -> RunState:
        state: RunState = "stopped"
        events = ask(
            library, question, profile=profile, backend=backend, model=model, collections=collections,
            documents=documents, chat=chat_id, continues=continues, stop=run.stop_requested, run_id=run.run_id,
        )  # fmt: skip
        for event in events:
            run._add(event)
            if isinstance(event, Answer):
                state = event.finished
        return state

    return started(run, work)


def start_ingestion(library: Library, paths: Sequence[Path], *, collections: Sequence[str] = ()) -> Run:
    """Begin to add files and folders; it steps back while an answer is being written here."""
    from docmind.ingest import add

    run = Run("ingestion")

    def work() -> RunState:
        events: Generator[Any, None, None] = add(library, paths, collections=collections, run_id=run.run_id)
        try:
            for event in events:
                run._add(event)
                # On two cores a model writes eight times slower beside the embedding of pages (decision 14).
                while _is_answering() and not run.stop_requested.is_set():
                    time.sleep(STEP_BACK_SECONDS)
                if run.stop_requested.is_set():
                    return "stopped"
        finally:
            events.close()
        return "complete"

    return started(run, work)


def live(kind: RunKind | None = None) -> list[Run]:
    """The runs of this process that are going on or ended within the last minutes, the newest last."""
    with _runs_lock:
        for run_id in [run.run_id for run in _runs.values() if run._is_over_for(KEPT_SECONDS)]:
            del _runs[run_id]
        return [run for run in _runs.values() if kind in (None, run.kind)]


def find(run_id: str | None) -> Run | None:
    """A run of this process by its id; None when it is of another, or over for long."""
    with _runs_lock:
        return _runs.get(run_id or "")


def dismiss(run_id: str) -> None:
    """Forget a run that has ended, for everybody who looks; one that is going on stays."""
    with _runs_lock:
        if run_id in _runs and not _runs[run_id].is_running:
            del _runs[run_id]


def answering(chat_id: str) -> Run | None:
    """The answer that is being written in a chat."""
    return next((run for run in live("answer") if run.chat_id == chat_id and run.is_running), None)


def stop_all(timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
    """Stop every run and wait until what they have is kept, at most that long: the program is about to end."""
    running = [run for run in live() if run.is_running]
    for run in running:
        run.stop()
    deadline = time.monotonic() + timeout_seconds
    for run in running:
        run.wait(max(deadline - time.monotonic(), 0))


def started(run: R, work: Callable[[], RunState]) -> R:
    """The run, registered and going on in a thread; `work` says how it ended, or raises why it failed."""

    def drive() -> None:
        state: RunState = "failed"
        error: DocMindError | None = None
        try:
            state = work()
        except DocMindError as caught:
            error = caught
        except BaseException:
            error = DocMindError(
                "Something in DocMind went wrong.", "The log has the details; `docmind doctor` names it.",
                reason="internal",
            )  # fmt: skip
            log.exception("%s %s failed", run.kind, run.run_id)
            raise
        finally:
            run._end(state, error)  # whatever happened: nobody waits for ever

    with _runs_lock:
        if not _runs:
            atexit.unregister(stop_all)
            atexit.register(stop_all)
        _runs[run.run_id] = run
    threading.Thread(target=drive, name=f"docmind-{run.kind}", daemon=True).start()
    return run


def _is_answering() -> bool:
    with _runs_lock:
        return any(run.kind == "answer" and run.is_running for run in _runs.values())


# Runs of all processes, as recorded -------------------------------------------------------------------------------


def start_run(library: Library, kind: RunKind, run_id: str | None = None) -> str:
    """Record that a run begins; returns its id. Runs whose process died without a word are closed first."""
    run_id = run_id or uuid.uuid4().hex
    with store.writing(library.path) as db:
        for row in db.execute("SELECT id, state, pid, started_at FROM runs WHERE state = 'running'").fetchall():
            if not is_going(row):
                db.execute("UPDATE runs SET state = 'failed', ended_at = ? WHERE id = ?", (now(), row["id"]))
        db.execute("INSERT INTO runs VALUES (?, ?, 'running', ?, ?, NULL)", (run_id, kind, os.getpid(), now()))
    return run_id


def add_event(library: Library, run_id: str, kind: str, data: dict[str, Any], document_id: str | None = None) -> None:
    """Append one event; an event that names a document goes when the document is removed."""
    with store.writing(library.path) as db:
        db.execute(
            "INSERT INTO run_events SELECT ?1, coalesce(max(sequence), 0) + 1, ?2, ?3, ?4, ?5"
            " FROM run_events WHERE run_id = ?1",
            (run_id, now(), kind, document_id, json.dumps(data)),
        )


def finish_run(library: Library, run_id: str, state: RunState) -> None:
    """Record how a run ended."""
    with store.writing(library.path) as db:
        db.execute("UPDATE runs SET state = ?, ended_at = ? WHERE id = ?", (state, now(), run_id))


def is_going(row: sqlite3.Row) -> bool:
    """Whether a recorded run (its `state`, `pid` and `started_at`) goes on: its process is still there.

    A younger process of the same number is another: in a container every start has the same number.
    """
    if row["state"] != "running":
        return False
    try:
        born = psutil.Process(row["pid"]).create_time()
    except psutil.Error:
        return False
    return bool(born <= datetime.fromisoformat(row["started_at"]).timestamp() + CLOCK_SECONDS)
