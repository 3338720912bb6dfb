"""The parent's side of the reading process: starts it, feeds it, limits it, and believes nothing it says unchecked.

A reading process has met hostile files and may be in their hands: every line from it is checked for form, length and
order, a reason crosses only as a code from the closed list, and a process that breaks a rule is ended. The other side
is `docmind.parse.worker`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from docmind.errors import DocumentError
from docmind.parse.kinds import kind_of
from docmind.parse.pages import (
    MAX_FILE_CHARACTERS,
    MAX_OUTLINE,
    MAX_PAGE_CHARACTERS,
    MAX_PAGES,
    MAX_TITLE,
    DocumentInfo,
    Kind,
    PageSource,
    ParsedPage,
    ParseEnd,
    ParseEvent,
)
from docmind.parse.reasons import FILE_REASONS, FileReason, PageReason, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from docmind.config import Config

_LINE_BYTES: Final = 48 << 20  # a page of 2,000,000 characters and its boxes stay below
_LINES_AHEAD: Final = 4  # pages read before they are wanted; then the worker waits
_WATCH_SECONDS: Final = 0.1
# Tuples, not sets: what is looked for may be of any type, also one that cannot be hashed.
_REFUSABLE: Final = ("encrypted", "damaged", "no_pages", "wrong_type", "not_found", "not_readable")
_ENDINGS: Final = (None, "too_much_text", "memory_limit")
# What Python needs to start, and no more: keys and tokens are none of a hostile file's business.
_KEPT_VARIABLES: Final = re.compile(
    r"PATH|HOME|USERPROFILE|APPDATA|LOCALAPPDATA|SYSTEMROOT|TEMP|TMP|TMPDIR|LANG|LC_\w+|LD_LIBRARY_PATH|DYLD_\w+"
    r"|PYTHON(?:HOME|PATH|USERBASE)|VIRTUAL_ENV",
    re.IGNORECASE,
)


class Parser:
    """Reads files one after another in a disposable process, replaced every so many files and after any limit.

    Use it as a context manager, from one thread at a time::

        with Parser(config) as parser:
            for event in parser.parse(path): ...
    """

    def __init__(self, config: Config, command: Sequence[str] | None = None) -> None:
        """`command` is another program that speaks the worker's protocol; the tests use it."""
        self.config = config
        self._command = tuple(command or _worker_command(config))
        self._worker: ReadingProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading process; the next `parse` starts another."""
        worker, self._worker = self._worker, None
        if worker:
            worker.end()

    def parse(self, path: Path) -> Iterator[ParseEvent]:
        """Reads a file.

        Closing the iterator early cancels: the process is ended and nothing stays behind.

        Yields:
            One `DocumentInfo`, a `ParsedPage` for every page in order as soon as it is read, and one `ParseEnd`. Its
            `reason` is None, or says why something is missing; then pages that did not come were not reached.

        Raises:
            DocumentError: The file is refused as a whole, with a reason from the closed list: nothing of it was read.
        """
        path = Path(path).absolute()
        kind = kind_of(path)
        before = fingerprint(path)
        if self._worker and self._worker.files >= self.config.parse_files_per_worker:
            self.close()
        is_done = False
        pages = 0
        try:
            worker, lines = self._asked(path, kind)
            for event in _checked(lines, kind, path):
                if isinstance(event, ParsedPage):
                    pages += 1
                    worker.pages_of_this_file = pages
                if not isinstance(event, ParseEnd):
                    yield event
                    continue
                is_done = event.reason != "memory_limit"
                reason = event.reason
                break
            else:
                reason = worker.last_words()
            if fingerprint(path) != before:
                reason = "changed_while_reading"
        except _BrokenRule:
            reason = "worker_crashed"
        except DocumentError:
            is_done = True
            raise
        finally:
            if self._worker:
                self._worker.rest()
            if not is_done:
                self.close()
        if reason and not pages and reason != "too_much_text":
            raise refusal(reason, path)
        yield ParseEnd(reason, FILE_REASONS[reason].hint if reason else "")

    def _asked(self, path: Path, kind: Kind) -> tuple[ReadingProcess, Iterator[bytes]]:
        """A process that was given the file, and its lines."""
        if self._worker is None or not self._worker.is_alive():
            self.close()
            self._worker = ReadingProcess(self._command, self.config)
        self._worker.ask(path, kind)
        lines = self._worker.lines()
        first = next(lines, None)
        if first is None and self._worker.files > 1 and not self._worker.verdict:
            # It may have died after the file before, whose last threads the system was still clearing away. If this
            # file is what it died of, a new process will show it.
            self.close()
            return self._asked(path, kind)
        return self._worker, lines if first is None else itertools.chain([first], lines)


def _worker_command(config: Config) -> list[str]:
    # -P: the current folder, which may hold anything, is not searched for modules.
    limits = (config.parse_memory_bytes, config.parse_cpu_seconds, config.parse_cpu_seconds_per_page)
    return [sys.executable, "-P", "-m", "docmind.parse.worker", *map(str, limits)]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if _KEPT_VARIABLES.fullmatch(name)}
    package_root = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, kept.get("PYTHONPATH"))))
    # numpy would start a thread per core, with its memory, for arrays of a page's size.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def fingerprint(path: Path) -> tuple[int, int] | None:
    """Size and time of last change; None when the file is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class ReadingProcess:
    """A process that meets hostile files, with the two threads that listen to it and watch over it.

    Attributes:
        files: How many it was given.
        pages_of_this_file: How many pages of the present one came; whoever takes the lines counts them.
        verdict: Why the watcher ended it; None as long as it has not.
    """

    def __init__(self, command: Sequence[str], config: Config) -> None:
        import psutil  # here so that importing docmind.parse stays cheap

        self.files = 0
        self.pages_of_this_file = 0
        self.verdict: FileReason | None = None
        self._config = config
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._watched = psutil.Process(self._process.pid)
        self._lines: queue.Queue[bytes | None] = queue.Queue(_LINES_AHEAD)
        self._over = threading.Event()
        self._busy_since: tuple[float, float] | None = None  # CPU and wall seconds when the file was given
        self._threads = [
            threading.Thread(target=work, name=f"docmind-parse-{work.__name__.strip('_')}", daemon=True)
            for work in (self._listen, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(self, path: Path, kind: Kind) -> None:
        """Gives the process a file to read."""
        self.files += 1
        self.pages_of_this_file = 0
        self._busy_since = self._cpu_seconds() or 0.0, time.monotonic()
        # A process that died meanwhile shows by its closed output.
        with contextlib.suppress(OSError):
            assert self._process.stdin
            self._process.stdin.write(json.dumps({"path": str(path), "kind": kind}).encode("ascii") + b"\n")
            self._process.stdin.flush()

    def rest(self) -> None:
        """No file is being read from here on."""
        self._busy_since = None

    def lines(self) -> Iterator[bytes]:
        """What the process says, until it is gone."""
        return iter(self._lines.get, None)

    def last_words(self) -> FileReason:
        """Why a process that went silent did: what the watcher ended it for, or what its exit says."""
        status = self._process.wait()
        # pdfium and the C++ library abort when an allocation fails; of all damaged files measured none did for another
        # reason. The watcher seldom sees it coming: one large allocation fails before any of it is used.
        by_signal: dict[int, FileReason] = {}
        if sys.platform == "linux":  # where the worker has these limits
            by_signal = {-signal.SIGABRT: "memory_limit", -signal.SIGXCPU: "time_limit"}
        return self.verdict or by_signal.get(status, "worker_crashed")

    def end(self) -> None:
        """Ends the process and waits until nothing of it is left."""
        self._over.set()
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()

    def _listen(self) -> None:
        """Thread: passes lines on, a few ahead of what is wanted; None after the last one."""
        assert self._process.stdout
        line: bytes | None = b""
        while line is not None:
            line = self._process.stdout.readline(_LINE_BYTES) or None
            while not self._over.is_set():
                with contextlib.suppress(queue.Full):
                    self._lines.put(line, timeout=_WATCH_SECONDS)
                    break

    def _watch(self) -> None:
        """Thread: ends the process when it takes more than a file may. Works the same on every platform."""
        config = self._config
        moved = 0, 0.0, time.monotonic()  # pages, CPU seconds and wall time when it last got on
        while not self._over.wait(_WATCH_SECONDS):
            cpu, memory, since = self._cpu_seconds(), self._memory_bytes(), self._busy_since
            if cpu is None or memory is None:
                return  # it is gone
            now = time.monotonic()
            if memory > config.parse_memory_bytes:
                self.verdict = "memory_limit"
            elif since:
                # The time a file may take grows with the pages that came, not with those it claims to have.
                earned = config.parse_cpu_seconds + config.parse_cpu_seconds_per_page * self.pages_of_this_file
                got_on = self.pages_of_this_file != moved[0] or cpu > moved[1] + 0.01 or self._lines.full()
                if got_on or since[1] > moved[2]:
                    moved = self.pages_of_this_file, cpu, now
                if cpu - since[0] > earned:
                    self.verdict = "time_limit"
                elif now - moved[2] > config.parse_stall_seconds:
                    self.verdict = "stalled"
            if self.verdict:
                self._process.kill()
                return

    def _cpu_seconds(self) -> float | None:
        import psutil

        try:
            times = self._watched.cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)

    def _memory_bytes(self) -> int | None:
        import psutil

        try:
            return int(self._watched.memory_info().rss)
        except psutil.Error:
            return None


# ---- What the worker says, checked ------------------------------------------------------------------------------


class _BrokenRule(Exception):
    """The worker said something that no honest worker says."""


def _checked(lines: Iterator[bytes], kind: Kind, path: Path) -> Iterator[ParseEvent]:
    """The events of one file, each checked; ends without `ParseEnd` when the worker goes silent.

    Raises:
        DocumentError: The worker refused the file.
        _BrokenRule: A line is not what the protocol allows at this point.
    """
    info: DocumentInfo | None = None
    last, characters = 0, 0
    for line in lines:
        name, value = _message(line)
        if name == "refused" and info is None and value in _REFUSABLE:
            raise refusal(value, path)
        if name == "end" and value in _ENDINGS and (info is not None or value == "memory_limit"):
            if info is not None and value is None and last != info.pages:
                raise _BrokenRule
            yield ParseEnd(value)
            return
        if name == "info" and info is None:
            info = _info(value, kind)
            yield info
        elif name == "page" and info is not None and last < info.pages:
            page = _page(value, last + 1)
            last, characters = page.number, characters + len(page.text)
            if characters > MAX_FILE_CHARACTERS:
                raise _BrokenRule
            yield page
        else:
            raise _BrokenRule


def _message(line: bytes) -> tuple[str, Any]:
    if not line.endswith(b"\n"):
        raise _BrokenRule
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BrokenRule from error
    if not isinstance(message, dict) or len(message) != 1:
        raise _BrokenRule
    return next(iter(message.items()))


def _info(value: Any, kind: Kind) -> DocumentInfo:
    match value:
        case [str(said), int(pages), str(title), list(outline)] if said == kind and 0 < pages <= MAX_PAGES:
            pass
        case _:
            raise _BrokenRule
    entries: list[tuple[int, str]] = []
    for entry in outline[:MAX_OUTLINE]:
        match entry:
            case [int(page), str(heading)] if 0 < page <= MAX_PAGES:
                entries.append((int(page), _line_of_text(heading)))
            case _:
                raise _BrokenRule
    return DocumentInfo(kind, int(pages), _line_of_text(title), tuple(entries))


def _line_of_text(text: str) -> str:
    if len(text) > MAX_TITLE or not text.isprintable():
        raise _BrokenRule
    return text


def _page(value: Any, expected: int) -> ParsedPage:
    from docmind.parse.boxes import unpack

    match value:
        case [int(number), str(text), "text", None, *rest] if number == expected:
            source: PageSource = "text"
            reason: PageReason | None = None
        case [int(number), str(text), "none", ("blank" | "scanned" | "unreadable") as reason, *rest] if (
            number == expected
        ):
            source = "none"
        case _:
            raise _BrokenRule
    match rest:
        case [str(produced_by), str(boxes), float(width), float(height)]:
            pass
        case _:
            raise _BrokenRule
    if len(text) > MAX_PAGE_CHARACTERS or len(produced_by) > 50 or not produced_by.isprintable():
        raise _BrokenRule
    if not (0 <= width < math.inf and 0 <= height < math.inf):
        raise _BrokenRule
    try:
        text.encode("utf-8")  # no lone surrogates
        packed = base64.b64decode(boxes, validate=True)
        rows = unpack(packed)
    except (ValueError, binascii.Error) as error:
        raise _BrokenRule from error
    if "\0" in text or (len(rows) and rows[-1, 1] > len(text)):
        raise _BrokenRule
    return ParsedPage(expected, text, source, reason, produced_by, packed, width, height)
