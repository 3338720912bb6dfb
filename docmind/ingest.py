"""Files → library: parse, cut, embed, and make visible in one transaction. Knows no Streamlit and no chat model.

`add` is a generator of what happens. Closing it stops: the file being read is left out whole, files before it stay.
A process that dies leaves the same: every document is there completely or not at all, and adding the folder again
takes up where it ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from docmind import embed, runs, store, uploads, vectors
from docmind.errors import DocMindError, DocumentError, EmbeddingFailed, LibraryBusy, LibraryError, LibraryFull
from docmind.library import NewPassage, writable
from docmind.parse import FILE_REASONS, DocumentInfo, ParsedPage, ParseEnd, Parser, kind_of, refusal
from docmind.wording import listed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from llama_index.core.ingestion import IngestionPipeline

    from docmind.config import Config
    from docmind.library import Library

log = logging.getLogger(__name__)

Outcome = Literal["added", "unchanged", "replaced", "partial", "refused"]
PAGES_PER_BATCH = 8  # pages embedded at once: about five seconds on two slow cores, so that a stop is felt
HASH_BLOCK_BYTES = 1 << 20
READ_AGAIN = ("worker_crashed", "stalled")  # what may go better the next time: the same bytes are read once more
LOCK_RETRY_SECONDS = 0.2
# What people do not mean when they add a folder.
SKIPPED_NAMES = re.compile(r"\.|~\$|Thumbs\.db$|desktop\.ini$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileResult:
    """How adding one file ended. `reason` is from docs/reasons.md; None when there is nothing to say."""

    path: str
    status: Outcome
    document_id: str | None
    pages: int | None
    pages_without_text: int | None
    passages: int | None
    seconds: float
    reason: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another process is adding documents; sent once, then again when the holder changes."""

    holder: str


@dataclass(frozen=True, slots=True)
class FileStarted:
    """A file is being looked at. `number` is 1-based among `total`."""

    path: str
    number: int
    total: int


@dataclass(frozen=True, slots=True)
class PagesRead:
    """How far a file is: pages that are read and embedded."""

    path: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class FileFinished:
    """A file has ended, one way or another."""

    result: FileResult


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of all files: how many ended how, and the seconds it took."""

    counts: dict[Outcome, int] = field(default_factory=dict)
    seconds: float = 0.0


IngestEvent = Waiting | FileStarted | PagesRead | FileFinished | Summary


def add(
    library: Library, paths: Sequence[Path], *, collections: Sequence[str] = (), run_id: str | None = None
) -> Generator[IngestEvent, None, None]:
    """Add files and folders (recursively). Adding the same bytes twice changes nothing.

    Args:
        collections: Names the documents are filed under, new or not.
        run_id: Of the run that is recorded; None: a new one.

    Yields:
        Waiting while another process adds; per file FileStarted, PagesRead, FileFinished; at the end a Summary.

    Raises:
        LibraryFull: The disk is full. Files before it are safe.
        EmbeddingChanged: The library was indexed with another model.
        EmbeddingFailed: The model that was chosen for the vectors makes none; the file it was asked for is refused, and
            those after it are not begun.
    """
    started = time.monotonic()
    counts: dict[Outcome, int] = dict.fromkeys(("added", "unchanged", "replaced", "partial", "refused"), 0)
    files = list(_expand(paths))
    with uploads.settling(library, files), _only_one(library) as waiting:
        yield from waiting
        run_id = runs.start_run(library, "ingestion", run_id)
        state: runs.RunState = "stopped"
        try:
            with Parser(library.config) as parser:
                for number, path in enumerate(files, start=1):
                    yield FileStarted(str(path), number, len(files))
                    result: FileResult | None = None
                    for event in _add_file(library, parser, path, collections):
                        yield event
                        if isinstance(event, FileFinished):
                            result = event.result
                    if result is not None:
                        counts[result.status] += 1
                        log.info(
                            "%s %s pages=%s reason=%s", result.status, result.document_id, result.pages, result.reason
                        )
                        if result.status not in ("unchanged", "refused"):
                            event_data = {"status": result.status, "pages": result.pages, "reason": result.reason}
                            runs.add_event(library, run_id, "file", event_data, result.document_id)
            state = "complete"
        except DocMindError as error:
            log.error("ingestion failed: %s", error.reason)
            state = "failed"
            raise
        finally:
            # A full disk must not hide behind a second error here; the next run closes this one then.
            with contextlib.suppress(LibraryError) if state == "failed" else contextlib.nullcontext():
                runs.finish_run(library, run_id, state)
    yield Summary(counts, time.monotonic() - started)


def reindex(library: Library) -> Iterator[PagesRead]:
    """Embed every passage again with the model in use, then swap the vectors in one transaction."""
    config = library.config
    choice = vectors.chosen(config)
    identity = vectors.identity(config, choice)
    with _only_one(library) as waiting:
        for _ in waiting:
            pass
        ids = [int(i) for i in _passage_ids(library)]
        model = vectors.load(config, choice)
        made: list[np.ndarray] = []
        for first in range(0, len(ids), 64):
            passages = library.passages(ids[first : first + 64])
            from docmind.passages import embedded_text

            texts = [embedded_text(p.title, p.text) for p in passages]
            with vectors.failing(choice):
                raw = model.get_text_embedding_batch(texts)
            made += [embed.unit(np.asarray(vector, dtype=np.float32)) for vector in raw]
            yield PagesRead("", min(first + 64, len(ids)), len(ids))
        vectors.check_unchanged(config, choice, identity, made)
        library.replace_vectors(zip(ids, made, strict=True), identity)


def title_of(path: Path, info: DocumentInfo) -> str:
    """The document's title as searched: its name in words, and the title inside it when that says something else.

    Empty when neither has a word.
    """
    name = re.sub(r"[\s_\-.]+", " ", writable(path.stem)).strip()
    inside = info.title.strip()
    # "184" and "0000764478-17-000008" are a file's number in some system: in front of every passage they would only
    # use up its tokens.
    name, inside = (text if re.search(r"[^\W\d_]{2}", text) else "" for text in (name, inside))
    if inside.lower() in name.lower():
        return name
    return inside if name.lower() in inside.lower() else f"{name}: {inside}"


# One file ---------------------------------------------------------------------------------------------------------


def _add_file(library: Library, parser: Parser, path: Path, collections: Sequence[str]) -> Iterator[IngestEvent]:
    started = time.monotonic()

    def finished(status: Outcome, **fields: Any) -> FileFinished:
        known: dict[str, Any] = {"document_id": None, "pages": None, "pages_without_text": None, "passages": None}
        return FileFinished(
            FileResult(str(path), status, seconds=round(time.monotonic() - started, 3), **{**known, **fields})
        )

    try:
        kind_of(path)  # refuses what is no document before anything is read or loaded
        before = path.stat()
        sha256 = _sha256(path)
        known = library.known_file(sha256)
        if known is not None and known.reason not in READ_AGAIN:
            replaced = library.add_source(known.document_id, path.absolute(), collections)
            yield finished(
                "replaced" if replaced else "unchanged", document_id=known.document_id, pages=known.pages,
                pages_without_text=known.pages_without_text, passages=known.passages,
                reason=known.reason, hint=known.hint or None,
            )  # fmt: skip
            return

        info, pages, end = None, [], ParseEnd("worker_crashed")
        passages: list[NewPassage] = []
        identity: embed.EmbeddingIdentity | None = None
        waiting: list[ParsedPage] = []
        title = ""
        choice = vectors.chosen(library.config)
        for event in parser.parse(path):
            if isinstance(event, DocumentInfo):
                info, title = event, title_of(path, event)
                yield PagesRead(str(path), 0, info.pages)
            elif isinstance(event, ParsedPage):
                pages.append(event)
                waiting.append(event)
            else:
                end = event
            if (len(waiting) == PAGES_PER_BATCH or isinstance(event, ParseEnd)) and info is not None:
                if identity is None and any(page.text for page in waiting):
                    identity = vectors.identity(library.config, choice)
                    library.check_embedding(identity)
                passages += _passages_of(waiting, title, library.config, choice)
                waiting = []
                yield PagesRead(str(path), len(pages), info.pages)
        if info is None:
            raise refusal(end.reason or "worker_crashed", path, hint=end.hint)
        if not passages or identity is None:
            raise refusal(end.reason or "no_text", path, hint=end.hint)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise refusal("changed_while_reading", path)
        vectors.check_unchanged(library.config, choice, identity, [passage.vector for passage in passages])

        reason, hint = _what_is_missing(pages, info, end)
        pages += [ParsedPage(n, "", "none", "not_reached") for n in range(len(pages) + 1, info.pages + 1)]
        document_id, replaced = library.insert_document(
            info, pages, passages, path=path.absolute(), sha256=sha256, title=title, size_bytes=before.st_size,
            state="partial" if reason else "ready", reason=reason, hint=hint,
            collections=collections, identity=identity,
        )  # fmt: skip
        yield finished(
            "partial" if reason else "replaced" if replaced else "added", document_id=document_id, pages=info.pages,
            pages_without_text=sum(page.source == "none" for page in pages), passages=len(passages),
            reason=reason, hint=hint or None,
        )  # fmt: skip
    except DocumentError as error:
        yield finished("refused", reason=error.reason, hint=f"{error} {error.hint}")
    except LibraryFull as error:
        yield finished("refused", reason=error.reason, hint=f"{error} {error.hint}")
        raise
    except EmbeddingFailed as error:
        hint = f"{writable(path.name)} has no vectors. {error} {error.hint}"
        yield finished("refused", reason=error.reason, hint=hint)
        if error.reason != "context_too_long":  # that says nothing about the next file
            raise
    except DocMindError:  # some are also an OSError: a busy library or a missing model says nothing about this file
        raise
    except OSError as error:
        refused = refusal("not_found" if isinstance(error, FileNotFoundError) else "not_readable", path)
        yield finished("refused", reason=refused.reason, hint=f"{refused} {refused.hint}")


def _passages_of(
    pages: Sequence[ParsedPage], title: str, config: Config, choice: vectors.Choice | None
) -> list[NewPassage]:
    """Cut and embed some pages through a LlamaIndex pipeline: a pure transform, no cache, no store."""
    from llama_index.core.schema import TextNode

    texts = {page.number: page.text for page in pages}
    nodes = [
        TextNode(text=page.text, metadata={"title": title, "page": page.number}) for page in pages if page.text.strip()
    ]
    if not nodes:
        return []
    with vectors.failing(choice):
        done = _pipeline(config, choice).run(nodes=nodes)
    made = [embed.unit(np.asarray(node.embedding, dtype=np.float32)) for node in done]
    return [
        NewPassage(m["page"], m["start"], m["end"], texts[m["page"]][m["start"] : m["end"]], vector)
        for m, vector in zip((node.metadata for node in done), made, strict=True)
    ]


def _pipeline(config: Config, choice: vectors.Choice | None) -> IngestionPipeline:
    from llama_index.core.ingestion import IngestionPipeline

    from docmind.passages import PassageSplitter

    return IngestionPipeline(
        transformations=[PassageSplitter(passage_tokens=config.passage_tokens), vectors.load(config, choice)],
        disable_cache=True,
    )


def _what_is_missing(pages: Sequence[ParsedPage], info: DocumentInfo, end: ParseEnd) -> tuple[str | None, str]:
    """Why a document is only partly readable, and what to do; (None, "") when nothing is missing.

    A blank page is read: there was nothing on it.
    """
    if end.reason is not None or len(pages) < info.pages:
        reason = end.reason or "worker_crashed"
        hint = end.hint or FILE_REASONS[reason].hint
        return reason, f"Read {len(pages)} of {info.pages} pages. {hint}"
    scanned = [page.number for page in pages if page.reason == "scanned"]
    unreadable = [page.number for page in pages if page.reason == "unreadable"]
    if scanned:
        return "no_text", f"No text found on {_page_list(scanned)}. {FILE_REASONS['no_text'].hint}"
    if unreadable:
        return "damaged", f"Could not read {_page_list(unreadable)}. {FILE_REASONS['damaged'].hint}"
    return None, ""


def _page_list(numbers: Sequence[int]) -> str:
    """Page numbers as a person writes them: "page 4", "pages 3–9 and 12"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [str(a) if a == b else f"{a}–{b}" for a, b in ranges]
    if len(parts) > 8:
        parts = [*parts[:7], f"{sum(b - a + 1 for a, b in ranges[7:])} more"]
    return ("page " if len(numbers) == 1 else "pages ") + listed(parts)


def _expand(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named and those in the folders named, in a stable order, each once; links to folders are left."""
    seen: set[str] = set()
    for path in paths:
        files: Iterable[Path] = [path]
        if os.path.isdir(path):  # noqa: PTH112 - False, not an error, where one may not look
            files = (
                Path(folder) / name
                for folder, folders, names in _walk(path)
                for name in sorted(names)
                if not SKIPPED_NAMES.match(name)
            )
        for file in files:
            absolute = os.path.abspath(file)  # noqa: PTH100 - folds "..", and keeps links as they are
            if absolute not in seen:
                seen.add(absolute)
                yield file


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield current, folders, names


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _passage_ids(library: Library) -> list[int]:
    with store.reading(library.path) as db:
        return [row[0] for row in db.execute("SELECT id FROM passages ORDER BY id")]


@contextlib.contextmanager
def _only_one(library: Library) -> Iterator[Iterator[Waiting]]:
    """Hold the ingestion lock: gives an iterator to run through, which waits and says for whom.

    The lock is the operating system's, so it goes with the process that held it, however that ended.
    """
    from filelock import FileLock, Timeout

    path = library.config.home / "ingestion.lock"
    holder_path = library.config.home / "ingestion.holder"
    lock = FileLock(path, mode=0o600, thread_local=False)

    def wait() -> Iterator[Waiting]:
        told = None
        while True:
            try:
                lock.acquire(timeout=LOCK_RETRY_SECONDS)
            except Timeout:
                holder = _read_holder(holder_path)
                if holder != told:
                    told = holder
                    yield Waiting(holder)
            except OSError as error:
                raise LibraryBusy(
                    f"The ingestion lock {path} cannot be taken ({error.strerror}).",
                    "Give yourself write access to it.",
                ) from error
            else:
                break
        with contextlib.suppress(OSError):  # on a full disk nobody is told who holds it
            store.make_private_file(holder_path)
            myself = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            holder_path.write_text(json.dumps(myself), encoding="utf-8")

    try:
        yield wait()
    finally:
        if lock.is_locked:
            holder_path.unlink(missing_ok=True)
            lock.release()


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        since = max(0, round(time.time() - float(holder["since"])))
        return f"process {int(holder['pid'])} on {holder['host']}, for {since // 60} min {since % 60} s"
    except (OSError, ValueError, KeyError, TypeError):  # it has just gone, or is being written
        return "another process"
