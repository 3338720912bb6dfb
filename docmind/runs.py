"""Runs: answers being written and documents being added, with what happened in them. Knows no Streamlit.

One pair of tables serves both: a job is a run, a receipt is its last event. Events hold no text of documents.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import psutil

from docmind import store
from docmind.library import now

if TYPE_CHECKING:
    from docmind.library import Library

RunKind = Literal["answer", "ingestion"]
RunState = Literal["running", "complete", "stopped", "cut", "failed"]
CLOCK_SECONDS = 2.0  # a process's time of birth is known to a hundredth of a second, and a clock may be set


def start_run(library: Library, kind: RunKind) -> str:
    """Record that a run begins; returns its id. Runs whose process died without a word are closed first."""
    run_id = uuid.uuid4().hex
    with store.writing(library.path) as db:
        for row in db.execute("SELECT id, pid, started_at FROM runs WHERE state = 'running'").fetchall():
            if not _is_alive(row["pid"], row["started_at"]):
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


def _is_alive(pid: int, started_at: str) -> bool:
    """Whether the process that began a run is still there; a younger one of the same number is another.

    In a container every start has the same number.
    """
    try:
        born = psutil.Process(pid).create_time()
    except psutil.Error:
        return False
    return bool(born <= datetime.fromisoformat(started_at).timestamp() + CLOCK_SECONDS)
