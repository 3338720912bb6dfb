"""The data on disk: documents, pages, passages, vectors, full text. Knows no model and no screen.

`open_library` gives a `Library`; everything it returns is a frozen value. A document becomes visible in one
transaction (`insert_document`), and `remove` leaves none of its words on the disk.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from docmind import store, uploads
from docmind.config import Config, load_config
from docmind.embed import EmbeddingIdentity, same_model
from docmind.errors import DocumentNotFound, EmbeddingChanged, LibraryDamaged

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from docmind.ingest import FileResult, IngestEvent
    from docmind.parse import DocumentInfo, ParsedPage
    from docmind.search import Hit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """A file the user added. `path` is the first place its bytes were found."""

    document_id: str  # the first 16 hexadecimal digits of sha256
    name: str
    title: str
    kind: str
    path: str | None
    collections: tuple[str, ...]
    pages: int
    pages_without_text: int
    passages: int
    state: str  # waiting, reading, ready, partial, failed
    reason: str | None
    hint: str
    added_at: str  # ISO 8601, UTC
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page as stored. Offsets everywhere are code points of `text`."""

    document_id: str
    page: int
    text: str
    source: str  # text, ocr, none
    reason: str | None
    width: float  # points, as displayed; 0 for text files
    height: float
    boxes: bytes  # see docmind.parse.boxes
    sha256: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a page, with what search needs to show and to read it."""

    passage_id: int
    document_id: str
    document: str  # the document's name
    title: str
    page: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class NewPassage:
    """A passage on its way into the library."""

    page: int
    start: int
    end: int
    text: str
    vector: np.ndarray  # (dimension,) float32, unit length


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """All vectors of one generation of the library, mapped from a file that can always be derived again.

    Attributes:
        generation: Of the library when these were read; see `_stamp`.
        passage_ids: (n_passages,) int64, ascending.
        documents: (n_passages,) int64, the document each passage belongs to, as SQLite's rowid.
        vectors: (n_passages, dimension) float32, unit rows, read-only.
    """

    generation: str
    passage_ids: np.ndarray
    documents: np.ndarray
    vectors: np.ndarray


class Library:
    """A data folder. Safe to use from several threads and processes: each operation has its own connection."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.database
        self._index: VectorIndex | None = None
        self._index_lock = threading.Lock()
        store.prepare(self.path)
        if store.has_to_forget(self.path):  # a process died between removing and overwriting
            self._forget_removed()

    # Reading ------------------------------------------------------------------------------------------------------

    def documents(self, collection: str | None = None) -> list[Document]:
        """All documents, or those of a collection, in the order they were added."""
        with store.reading(self.path) as db:
            return list(
                _documents(
                    db, "WHERE ?1 IS NULL OR id IN (SELECT document_id FROM collections WHERE name = ?1)", (collection,)
                )
            )

    def document(self, key: str) -> Document:
        """The document with this id, the beginning of an id (8 characters or more), name, or path.

        Raises:
            DocumentNotFound: None, or more than one.
        """
        with store.reading(self.path) as db:
            found = list(
                _documents(
                    db,
                    "WHERE id = ?1 OR name = ?1 OR id IN (SELECT document_id FROM sources WHERE path IN (?1, ?2))"
                    " OR (length(?1) >= 8 AND substr(id, 1, length(?1)) = ?1)",
                    (writable(key), writable(_absolute(key))),
                )
            )
            names = [row[0] for row in db.execute("SELECT name FROM documents")] if not found else []
        if len(found) == 1:
            return found[0]
        if found:
            raise DocumentNotFound(
                f"{len(found)} documents are called '{key}'.",
                "Use an id instead: " + ", ".join(d.document_id for d in found[:10]) + ".",
                reason="document_ambiguous",
            )
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
        raise DocumentNotFound(
            f"There is no document '{key}'.",
            (f"Did you mean '{close[0]}'? " if close else "") + "`docmind documents` lists what there is.",
        )

    def collections(self) -> list[str]:
        """The names of all collections, sorted."""
        with store.reading(self.path) as db:
            return [row[0] for row in db.execute("SELECT DISTINCT name FROM collections ORDER BY name")]

    def check_collection(self, name: str) -> None:
        """Raises DocumentNotFound when no document is in a collection of that name."""
        names = self.collections()
        if name not in names:
            raise DocumentNotFound(
                f"There is no collection '{name}'.",
                f"There are: {', '.join(names)}." if names else "Make one: `docmind add PATH --collection NAME`.",
                reason="collection_missing",
            )

    def pages(self, document_id: str) -> list[Page]:
        """Every page of a document, whether it has text or not."""
        with store.reading(self.path) as db:
            return [
                _page(row)
                for row in db.execute("SELECT * FROM pages WHERE document_id = ? ORDER BY page", (document_id,))
            ]

    def outline(self, document_id: str) -> list[tuple[int, str]]:
        """The headings a document names itself, with their pages; [] where it has none."""
        with store.reading(self.path) as db:
            row = db.execute("SELECT outline FROM documents WHERE id = ?", (document_id,)).fetchone()
            return [(int(page), str(heading)) for page, heading in json.loads(row["outline"])] if row else []

    def generation(self) -> str:
        """A mark that changes whenever the documents do, in whatever process."""
        with store.reading(self.path) as db:
            return _stamp(db)

    def page(self, document_id: str, number: int) -> Page:
        """One page.

        Raises:
            DocumentNotFound: There is no such page.
            LibraryDamaged: The stored text does not match its hash.
        """
        with store.reading(self.path) as db:
            row = db.execute("SELECT * FROM pages WHERE document_id = ? AND page = ?", (document_id, number)).fetchone()
        if row is None:
            raise DocumentNotFound(f"Document {document_id} has no page {number}.", "`docmind pages` lists its pages.")
        return _page(row)

    def passages(self, passage_ids: Sequence[int]) -> list[Passage]:
        """The passages with these ids, in this order; ids that are gone are left out."""
        marks = ",".join("?" * len(passage_ids))
        with store.reading(self.path) as db:
            rows = db.execute(
                f"""SELECT p.id, p.document_id, d.name, d.title, p.page, p.start, p."end",
                           substr(pages.text, p.start + 1, p."end" - p.start) AS text
                    FROM passages p JOIN documents d ON d.id = p.document_id
                    JOIN pages ON pages.document_id = p.document_id AND pages.page = p.page
                    WHERE p.id IN ({marks})""",
                tuple(int(i) for i in passage_ids),
            ).fetchall()
        found = {row[0]: Passage(*row) for row in rows}
        return [found[i] for i in passage_ids if i in found]

    def passages_of_page(self, document_id: str, page: int) -> list[Passage]:
        """The passages of a page in reading order."""
        with store.reading(self.path) as db:
            ids = [
                row[0]
                for row in db.execute(
                    "SELECT id FROM passages WHERE document_id = ? AND page = ? ORDER BY start", (document_id, page)
                )
            ]
        return self.passages(ids)

    def page_states(self, document_id: str) -> list[tuple[int, str, str | None]]:
        """Per page its number, where its text came from (text, ocr, none) and why there is none; no text is read."""
        with store.reading(self.path) as db:
            rows = db.execute(
                "SELECT page, source, reason FROM pages WHERE document_id = ? ORDER BY page", (document_id,)
            )
            return [tuple(row) for row in rows]

    def unread_pages(self) -> dict[str, int]:
        """How many pages could not be read, by document id, where there are any; a blank page is read."""
        with store.reading(self.path) as db:
            return dict(
                db.execute(
                    "SELECT d.id, count(*) FROM documents d CROSS JOIN pages p ON p.document_id = d.id"
                    " WHERE d.state <> 'ready' AND p.source = 'none' AND p.reason IS NOT 'blank' GROUP BY d.id"
                ).fetchall()
            )

    def counts(self) -> dict[str, int]:
        """How many documents, pages and passages there are, and the generation number."""
        with store.reading(self.path) as db:
            row = db.execute(
                "SELECT (SELECT count(*) FROM documents) AS documents, (SELECT count(*) FROM pages) AS pages,"
                " (SELECT count(*) FROM passages) AS passages,"
                " (SELECT value FROM meta WHERE key = 'generation') AS generation"
            ).fetchone()
        return dict(row)

    def known_file(self, sha256: str) -> Document | None:
        """The document with these bytes, if it is in the library."""
        with store.reading(self.path) as db:
            return next(_documents(db, "WHERE sha256 = ?", (sha256,)), None)

    def vector_index(self) -> VectorIndex:
        """The vectors of the current generation, mapped anew only when the library has changed."""
        with self._index_lock:
            with store.reading(self.path) as db:
                generation = _stamp(db)
                if self._index is None or self._index.generation != generation:
                    self._index = _load_index(db, self._derived_folder(), generation)
            return self._index

    def embedding_identity(self) -> EmbeddingIdentity | None:
        """The model the vectors were made by; None while there are none."""
        with store.reading(self.path) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'embedding'").fetchone()
        if row is None:
            return None
        stored = json.loads(row[0])
        canary = np.asarray(stored["canary"], dtype=np.float32)
        return EmbeddingIdentity(stored["name"], len(canary), canary)

    def check_embedding(self, current: EmbeddingIdentity) -> None:
        """Raises EmbeddingChanged when the vectors were made by another model than `current`."""
        stored = self.embedding_identity()
        if stored is not None and not same_model(stored, current):
            raise EmbeddingChanged(
                f"The library was indexed with {stored.name}, and {current.name} is in use now.",
                "Run `docmind reindex` to index it again, or go back to the model it was made with"
                " (`docmind settings embedding`, DOCMIND_EMBEDDING).",
            )

    # Writing ------------------------------------------------------------------------------------------------------

    def insert_document(
        self,
        info: DocumentInfo,
        pages: Iterable[ParsedPage],
        passages: Iterable[NewPassage],
        *,
        path: Path,
        sha256: str,
        title: str,
        size_bytes: int,
        state: str,
        reason: str | None,
        hint: str,
        collections: Sequence[str],
        identity: EmbeddingIdentity,
    ) -> tuple[str, bool]:
        """Make a document visible: its row, pages, passages, vectors and full text in one transaction.

        When `path` led to other bytes before, those are removed in the same transaction unless another path leads
        to them, and their collections are kept. The same bytes read anew take the place of an earlier reading.

        Returns:
            The document's id, and whether it replaced something.
        """
        document_id = sha256[:16]
        title = writable(title)
        with store.writing(self.path) as db:
            earlier = [row[0] for row in db.execute("SELECT path FROM sources WHERE document_id = ?", (document_id,))]
            filed = _collections_of(db, document_id)
            if earlier:
                _delete_document(db, document_id)
            old = db.execute("SELECT document_id FROM sources WHERE path = ?", (path_text(path),)).fetchone()
            kept = _collections_of(db, old[0]) if old is not None else []
            db.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (document_id, sha256, writable(path.name), title, info.kind, size_bytes, info.pages,
                 json.dumps(info.outline), state, reason, hint, now()),
            )  # fmt: skip
            db.executemany(
                "INSERT INTO pages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((document_id, p.number, p.text, text_sha256(p.text), p.source, p.produced_by, p.reason,
                  p.width, p.height, p.boxes) for p in pages),
            )  # fmt: skip
            for passage in passages:
                cursor = db.execute(
                    'INSERT INTO passages (document_id, page, start, "end") VALUES (?, ?, ?, ?)',
                    (document_id, passage.page, passage.start, passage.end),
                )
                db.execute(
                    "INSERT INTO vectors VALUES (?, ?)",
                    (cursor.lastrowid, np.ascontiguousarray(passage.vector, dtype="<f4").tobytes()),
                )
                db.execute(
                    "INSERT INTO passages_fts (rowid, title, text) VALUES (?, ?, ?)",
                    (cursor.lastrowid, title, passage.text),
                )
            for source in {*earlier, path_text(path)}:
                _add_source(db, source, document_id)
            _add_to_collections(db, document_id, [*collections, *kept, *filed])
            if old is not None:
                _remove_if_orphaned(db, old[0])
            _set_embedding(db, identity)
            _next_generation(db)
        replaced = old is not None or bool(earlier)
        if replaced:
            self._forget_removed()
        return document_id, replaced

    def add_source(self, document_id: str, path: Path, collections: Sequence[str]) -> bool:
        """Note that a path leads to bytes already known.

        Returns:
            Whether the path led to other bytes before; those are removed unless another path leads to them.
        """
        with store.writing(self.path) as db:
            old = db.execute("SELECT document_id FROM sources WHERE path = ?", (path_text(path),)).fetchone()
            replaced = old is not None and old[0] != document_id
            kept = _collections_of(db, old[0]) if replaced else []
            _add_source(db, path_text(path), document_id)
            _add_to_collections(db, document_id, [*collections, *kept])
            if replaced:
                _remove_if_orphaned(db, old[0])
                _next_generation(db)
        if replaced:
            self._forget_removed()
        return replaced

    def set_collections(
        self, document_ids: Sequence[str], *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> None:
        """File documents under collections, and take them out of others. A collection without documents is gone."""
        with store.writing(self.path) as db:
            for document_id in document_ids:
                if db.execute("SELECT 1 FROM documents WHERE id = ?", (document_id,)).fetchone() is None:
                    continue  # removed meanwhile
                _add_to_collections(db, document_id, [writable(name) for name in add])
                db.executemany(
                    "DELETE FROM collections WHERE name = ? AND document_id = ?",
                    [(writable(name), document_id) for name in remove],
                )

    def replace_vectors(self, vectors: Iterator[tuple[int, np.ndarray]], identity: EmbeddingIdentity) -> None:
        """Swap in vectors of another model, all in one transaction. `vectors` yields (passage id, vector)."""
        with store.writing(self.path) as db:
            for passage_id, vector in vectors:
                # A vector may be missing, and a passage may have been removed meanwhile.
                db.execute(
                    "INSERT OR REPLACE INTO vectors SELECT id, ? FROM passages WHERE id = ?",
                    (np.ascontiguousarray(vector, dtype="<f4").tobytes(), passage_id),
                )
            db.execute("DELETE FROM meta WHERE key = 'embedding'")
            if db.execute("SELECT 1 FROM passages LIMIT 1").fetchone() is not None:  # an empty library takes any model
                _set_embedding(db, identity)
            _next_generation(db)
        self._forget_removed()

    def remove(self, keys: Sequence[str]) -> list[Document]:
        """Remove documents for good: none of their text stays in the database, its log or the vector file.

        Answers that quoted them keep their own words and lose the quotes. Files that were added by path stay where
        they are; the copy that was kept of an upload goes.

        Raises:
            DocumentNotFound: One of the keys leads nowhere; then nothing is removed.
        """
        # Two keys may lead to one document.
        documents = list({found.document_id: found for found in map(self.document, keys)}.values())
        with store.writing(self.path) as db:
            for document in documents:
                _delete_document(db, document.document_id)
            _next_generation(db)
        uploads.forget_documents(self.config, [document.document_id for document in documents])
        self._forget_removed()
        log.info("removed %d documents", len(documents))
        return documents

    # The spelling of the contract: thin doors to the rooms that know how ---------------------------------------------

    def add(self, path: str | Path, *, collection: str | None = None) -> list[FileResult]:
        """Add a file or a folder and wait for the end; `docmind.ingest.add` gives progress and can be stopped."""
        from docmind.ingest import FileFinished, add

        events: Iterator[IngestEvent] = add(self, [Path(path)], collections=[collection] if collection else [])
        return [event.result for event in events if isinstance(event, FileFinished)]

    def search(self, text: str, k: int = 5, *, collection: str | None = None, document: str | None = None) -> list[Hit]:
        """Passages for a question, best first."""
        from docmind.search import search

        return search(
            self, text, k, collections=[collection] if collection else [], documents=[document] if document else []
        )

    # ----------------------------------------------------------------------------------------------------------------

    def _derived_folder(self) -> Path:
        folder = self.config.home / "derived"
        store.make_private_folder(folder)
        return folder

    def _forget_removed(self) -> None:
        with self._index_lock:
            self._index = None
            for file in self._derived_folder().glob("*vectors-*.npy*"):  # with what a killed process left half written
                # Windows keeps a mapped file until the other process lets go; the next generation removes it then.
                with contextlib.suppress(OSError):
                    file.unlink()
        store.forget(self.path)


def open_library(home: str | Path | None = None, *, config: Config | None = None) -> Library:
    """Open the library in a data folder, making it when it is not there.

    Args:
        home: The data folder; None: `DOCMIND_HOME`, or the platform's place for application data.

    Raises:
        LibraryDamaged, LibraryTooNew, LibraryError: It cannot be used; the hint says what to do.
    """
    return Library(config or load_config(home))


def text_sha256(text: str) -> str:
    """The hash that is stored with a page."""
    return hashlib.sha256(text.encode()).hexdigest()


def writable(text: str) -> str:
    """Text that SQLite can store: on Linux a file name may be bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def path_text(path: Path) -> str:
    """A path as stored: absolute, ".." folded, links kept."""
    return writable(_absolute(str(path)))


def now() -> str:
    """This moment, ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _absolute(key: str) -> str:
    try:
        return os.path.abspath(Path(key).expanduser())  # noqa: PTH100 - folds "..", and keeps links as they are
    except (ValueError, RuntimeError):  # a NUL in it, or an unknown ~user: then it is no path
        return key


def _documents(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> Iterator[Document]:
    rows = db.execute(
        f"""SELECT id, name, title, kind,
                   (SELECT path FROM sources WHERE document_id = documents.id ORDER BY rowid LIMIT 1),
                   (SELECT json_group_array(name) FROM collections WHERE document_id = documents.id),
                   page_count,
                   (SELECT count(*) FROM pages WHERE document_id = documents.id AND source = 'none'),
                   (SELECT count(*) FROM passages WHERE document_id = documents.id),
                   state, reason, hint, added_at, sha256, size_bytes
            FROM documents {where} ORDER BY added_at, id""",
        values,
    )
    for row in rows:
        fields = list(row)
        fields[5] = tuple(sorted(json.loads(fields[5])))
        yield Document(*fields)


def _page(row: sqlite3.Row) -> Page:
    if text_sha256(row["text"]) != row["sha256"]:
        raise LibraryDamaged(
            f"Page {row['page']} of document {row['document_id']} was changed on the disk.",
            "Remove the document and add it again.",
        )
    return Page(
        *(
            row[name]
            for name in ("document_id", "page", "text", "source", "reason", "width", "height", "boxes", "sha256")
        )
    )


def _stamp(db: sqlite3.Connection) -> str:
    """The generation's number and a random word, since a new library, or a backup put back, counts to it again."""
    return "-".join(
        str(row[0]) for row in db.execute("SELECT value FROM meta WHERE key IN ('generation', 'stamp') ORDER BY key")
    )


def _next_generation(db: sqlite3.Connection) -> None:
    db.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
    db.execute("INSERT OR REPLACE INTO meta VALUES ('stamp', lower(hex(randomblob(8))))")


def _set_embedding(db: sqlite3.Connection, identity: EmbeddingIdentity) -> None:
    stored = json.dumps({"name": identity.name, "canary": [round(float(x), 6) for x in identity.canary]})
    db.execute("INSERT OR IGNORE INTO meta VALUES ('embedding', ?)", (stored,))


def _add_source(db: sqlite3.Connection, path: str, document_id: str) -> None:
    db.execute(
        "INSERT INTO sources VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET document_id = excluded.document_id",
        (path, document_id),
    )


def _add_to_collections(db: sqlite3.Connection, document_id: str, names: Iterable[str]) -> None:
    db.executemany("INSERT OR IGNORE INTO collections VALUES (?, ?)", [(name, document_id) for name in names])


def _collections_of(db: sqlite3.Connection, document_id: str) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM collections WHERE document_id = ?", (document_id,))]


def _remove_if_orphaned(db: sqlite3.Connection, document_id: str) -> None:
    if db.execute("SELECT 1 FROM sources WHERE document_id = ?", (document_id,)).fetchone() is None:
        _delete_document(db, document_id)


def _delete_document(db: sqlite3.Connection, document_id: str) -> None:
    # fts5 is a virtual table: no foreign key reaches it.
    db.execute(
        "DELETE FROM passages_fts WHERE rowid IN (SELECT id FROM passages WHERE document_id = ?)", (document_id,)
    )
    db.execute("UPDATE citations SET quote = '', boxes = '[]' WHERE document_id = ?", (document_id,))
    db.execute("DELETE FROM run_events WHERE document_id = ?", (document_id,))
    db.execute("DELETE FROM documents WHERE id = ?", (document_id,))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('has_to_forget', 1)")
    if db.execute("SELECT 1 FROM documents LIMIT 1").fetchone() is None:
        db.execute("DELETE FROM meta WHERE key = 'embedding'")  # an empty library takes any model


def _load_index(db: sqlite3.Connection, folder: Path, generation: str) -> VectorIndex:
    """Map this generation's file, or derive it from the database and remove those of other generations."""
    path = folder / f"vectors-{generation}.npy"
    rows = np.asarray(
        db.execute(
            "SELECT p.id, d.rowid FROM passages p JOIN documents d ON d.id = p.document_id ORDER BY p.id"
        ).fetchall(),
        dtype=np.int64,
    ).reshape(-1, 2)
    vectors: np.ndarray | None = None
    if path.is_file():
        with contextlib.suppress(ValueError, OSError):  # cut off or overwritten: derive it again
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors is None or len(vectors) != len(rows):
        blobs = [
            row[0] or b""
            for row in db.execute(
                "SELECT v.vector FROM passages p JOIN documents d ON d.id = p.document_id"
                " LEFT JOIN vectors v ON v.passage_id = p.id ORDER BY p.id"
            )
        ]
        sizes = {len(blob) for blob in blobs}
        if len(sizes) > 1 or any(size == 0 or size % 4 for size in sizes):
            raise LibraryDamaged("Some passages have no vector, or a damaged one.", "Run `docmind reindex`.")
        dense = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), max(sizes, default=4) // 4)
        try:
            _write_derived(path, dense)
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError:  # no room, no right, or another process was quicker: searching needs only memory
            return VectorIndex(generation, rows[:, 0], rows[:, 1], dense)
        for other in folder.glob("vectors-*.npy"):
            if other != path:
                with contextlib.suppress(OSError):  # Windows: another process still maps it
                    other.unlink()
    return VectorIndex(generation, rows[:, 0], rows[:, 1], vectors)


def _write_derived(path: Path, dense: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with store.translated_errors(path):
        store.make_private_file(temporary)
        try:
            with temporary.open("wb") as file:
                np.save(file, dense, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
