"""What has been seen of a run that adds documents, and what is said about it. Draws nothing.

Everything here gives words for the screen: names and hints come from strangers and are escaped.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from docmind import runs
from docmind.ingest import FileFinished, FileResult, FileStarted, PagesRead, Summary, Waiting
from pages.parts.safe import plain, plain_with_code

if TYPE_CHECKING:
    from docmind.ingest import Outcome
    from docmind.runs import Run

OBSERVED_SECONDS: Final = 2.0  # a speed is told when it was seen for this long
OVERDUE_BATCHES: Final = 3.0  # and no more when the next pages take so many times as long as those before
HINT_CHARACTERS: Final = 600
ENDED: Final[dict[Outcome, str]] = {
    "added": "added",
    "replaced": "replaced by a new version",
    "unchanged": "already here",
    "partial": "read in part",
    "refused": "not added",
}


@dataclass(slots=True)
class Progress:
    """What this session has seen of a run.

    Attributes:
        seen: How many of its events.
        holder: Who is adding documents before it; None when it has its turn.
        done, pages: Of the file that is read now; `pages` is 0 until it is open.
        observations: (time in seconds, pages done) of that file, each as first seen here.
    """

    run: Run
    seen: int = 0
    holder: str | None = None
    name: str = ""
    number: int = 0
    total: int = 0
    done: int = 0
    pages: int = 0
    observations: list[tuple[float, int]] = field(default_factory=list)
    results: list[FileResult] = field(default_factory=list)
    seconds: float | None = None
    was_seen_running: bool = False

    def follow(self) -> None:
        """Take in what has happened since the last look."""
        self.was_seen_running = self.was_seen_running or self.run.is_running
        events = self.run.events_after(self.seen)
        self.seen += len(events)
        for event in events:
            match event:
                case Waiting(holder):
                    self.holder = holder
                case FileStarted(path, number, total):
                    self.holder, self.name, self.number, self.total = None, PurePath(path).name, number, total
                    self.done, self.pages, self.observations = 0, 0, []
                case PagesRead(_, done, total):
                    self.done, self.pages = done, total
                case FileFinished(result):
                    self.results.append(result)
                case Summary(_, seconds):
                    self.seconds = seconds
        if self.done and (not self.observations or self.observations[-1][1] != self.done):
            self.observations.append((time.monotonic(), self.done))

    def seconds_left(self, now: float) -> float | None:
        """How long the file will take at the speed seen here; None when too little of it was seen."""
        if len(self.observations) < 2:
            return None
        (first, before), (last, done) = self.observations[0], self.observations[-1]
        batch_seconds = (last - first) / (len(self.observations) - 1)
        if last - first < OBSERVED_SECONDS or now - last > OVERDUE_BATCHES * batch_seconds:
            return None
        return max(0.0, (self.pages - done) * (last - first) / (done - before) - (now - last))

    @property
    def fraction(self) -> float:
        """How much of all files is done, from 0 to 1; each file counts the same."""
        of_file = self.done / self.pages if self.pages else 0.0
        return min(1.0, (max(0, self.number - 1) + of_file) / self.total) if self.total else 0.0

    @property
    def needs_attention(self) -> list[FileResult]:
        """The files that were refused, or read in part."""
        return [result for result in self.results if result.status in ("refused", "partial")]


def what_is_done(progress: Progress) -> str:
    """What is being done, in one line of markdown."""
    if progress.run.stop_requested.is_set():
        return "Stopping when this batch of pages is done"
    if progress.holder is not None:
        if progress.holder.startswith(f"process {os.getpid()} on "):
            return "Waiting until the documents before these are added"
        return f"Waiting: another DocMind is adding documents ({plain(progress.holder)})"
    if not progress.number:
        return "Looking for files"
    parts = [f"**{plain(progress.name, limit=60)}**"]
    if progress.total > 1:
        parts.append(f"file {progress.number:,} of {progress.total:,}")
    if not progress.pages:
        parts.append("opening")
    elif progress.done >= progress.pages:
        parts.append("storing")
    else:
        parts.append(f"reading page {progress.done + 1:,} of {progress.pages:,}")
    if any(run.is_running for run in runs.live("answer")):
        parts.append("waits while an answer is written")
    elif (left := progress.seconds_left(time.monotonic())) is not None and progress.done < progress.pages:
        parts.append(left_words(left) + (" for this file" if progress.number < progress.total else ""))
    return " · ".join(parts)


def left_words(seconds: float) -> str:
    """Seconds left as a person would say it: no digits that nobody knows."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds / 5) * 5} s left"
    return f"about {round(seconds / 60)} min left"


def summary(progress: Progress) -> str:
    """How many files ended how, in one line."""
    counts = Counter(result.status for result in progress.results)
    parts = [f"{counts[status]:,} {words}" for status, words in ENDED.items() if counts[status]]
    if progress.run.state == "stopped":
        parts = ["Stopped", *(parts or ["nothing was added"])]
    elif progress.run.state == "complete" and not parts:
        return "No files were found there."
    if progress.seconds is not None:
        parts.append(f"{progress.seconds:.1f} s")
    return " · ".join(parts)


def line(result: FileResult) -> str:
    """One file that needs attention: what happened and what to do."""
    hint = plain_with_code(result.hint or result.reason or "", limit=HINT_CHARACTERS)
    if result.status == "refused":  # its hint begins with the name
        return f":red-badge[not added] {hint}"
    return f":orange-badge[read in part] **{plain(PurePath(result.path).name)}** {hint}"
