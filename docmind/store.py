"""The SQLite file: schema, migrations, connections, and what its errors mean. Knows no document format and no model.

One connection per operation: opening takes a fraction of a millisecond, and no connection is ever shared by threads.
WAL keeps readers going while a document is written; ``synchronous=FULL`` makes an acknowledged document survive a
power cut; ``secure_delete`` overwrites what is removed (docs/decisions.md has the kills and full disks behind this).
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from docmind.errors import LibraryBusy, LibraryDamaged, LibraryError, LibraryFull, LibraryTooNew

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUSY_TIMEOUT_SECONDS = 60.0  # a whole document is one transaction; a second writer waits this long for it

FULL_BYTES = 64 << 10  # the least by which SQLite's shared memory file grows is 32 KiB

# Each entry takes the database from version i to i + 1. Entries are never edited once released, only added.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    INSERT INTO meta VALUES ('generation', 0);

    -- A document is identified by its bytes: id is the first 16 hexadecimal digits of sha256.
    CREATE TABLE documents (
        id TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, name TEXT NOT NULL, title TEXT NOT NULL,
        kind TEXT NOT NULL, size_bytes INTEGER NOT NULL, page_count INTEGER NOT NULL, outline TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'reading', 'ready', 'partial', 'failed')),
        reason TEXT, hint TEXT NOT NULL DEFAULT '', added_at TEXT NOT NULL
    );
    -- Where its bytes were found; the same bytes at two paths are one document.
    CREATE TABLE sources (
        path TEXT PRIMARY KEY, document_id TEXT NOT NULL REFERENCES documents ON DELETE CASCADE
    );
    CREATE INDEX sources_by_document ON sources (document_id);
    CREATE TABLE collections (
        name TEXT NOT NULL, document_id TEXT NOT NULL REFERENCES documents ON DELETE CASCADE,
        PRIMARY KEY (name, document_id)
    ) WITHOUT ROWID;
    CREATE INDEX collections_by_document ON collections (document_id);
    CREATE TABLE pages (
        document_id TEXT NOT NULL REFERENCES documents ON DELETE CASCADE, page INTEGER NOT NULL,
        text TEXT NOT NULL, sha256 TEXT NOT NULL, source TEXT NOT NULL CHECK (source IN ('text', 'ocr', 'none')),
        produced_by TEXT NOT NULL, reason TEXT, width REAL NOT NULL, height REAL NOT NULL, boxes BLOB NOT NULL,
        PRIMARY KEY (document_id, page)
    );
    -- AUTOINCREMENT: an id is never given twice, so the derived vector file can grow at its end.
    CREATE TABLE passages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, document_id TEXT NOT NULL REFERENCES documents ON DELETE CASCADE,
        page INTEGER NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL
    );
    CREATE INDEX passages_by_page ON passages (document_id, page, start);
    CREATE TABLE vectors (
        passage_id INTEGER PRIMARY KEY REFERENCES passages ON DELETE CASCADE, vector BLOB NOT NULL
    );
    CREATE VIRTUAL TABLE passages_fts USING fts5 (title, text, tokenize = 'porter unicode61 remove_diacritics 2');

    -- A run is an answer being written or documents being added; what happened in it are its events.
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('answer', 'ingestion')),
        state TEXT NOT NULL CHECK (state IN ('running', 'complete', 'stopped', 'cut', 'failed')),
        pid INTEGER NOT NULL, started_at TEXT NOT NULL, ended_at TEXT
    );
    CREATE TABLE run_events (
        run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, sequence INTEGER NOT NULL, at TEXT NOT NULL,
        kind TEXT NOT NULL, document_id TEXT, data TEXT NOT NULL, PRIMARY KEY (run_id, sequence)
    ) WITHOUT ROWID;
    CREATE INDEX run_events_by_document ON run_events (document_id);

    CREATE TABLE chats (id TEXT PRIMARY KEY, title TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, chat_id TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant')), text TEXT NOT NULL, run_id TEXT,
        finished TEXT, sentences TEXT NOT NULL DEFAULT '[]', created_at TEXT NOT NULL
    );
    CREATE INDEX messages_by_chat ON messages (chat_id, id);
    -- quote is emptied when its document is removed; page_sha256 tells whether the page has changed since.
    CREATE TABLE citations (
        message_id INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE, number INTEGER NOT NULL,
        document_id TEXT NOT NULL, document TEXT NOT NULL, page INTEGER NOT NULL, page_sha256 TEXT NOT NULL,
        start INTEGER NOT NULL, "end" INTEGER NOT NULL, quote TEXT NOT NULL, boxes TEXT NOT NULL,
        PRIMARY KEY (message_id, number)
    ) WITHOUT ROWID;
    CREATE INDEX citations_by_document ON citations (document_id);
    """,
    # What belongs to an answer beside its text: how it ended, its steps and figures, the nearest passages.
    "ALTER TABLE messages ADD COLUMN details TEXT NOT NULL DEFAULT '{}';",
    # The list of documents says how many pages of each have text: 0.2 s instead of 0.45 s for 5,000 documents.
    "CREATE INDEX pages_by_source ON pages (document_id, source, reason);",
)


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's and the disk's exceptions into DocMind's, each with its remedy."""
    try:
        yield
    except sqlite3.Error as error:
        message = str(error).lower()
        if "disk is full" in message or ("disk i/o error" in message and _is_full(path.parent)):
            raise LibraryFull(
                f"The disk that holds {path.parent} is full.",
                "Free some space and do it again: everything that was added before is safe.",
            ) from error
        if "locked" in message or "busy" in message:
            raise LibraryBusy(
                "Another DocMind is writing to the library.", "Wait until it has finished, then do it again."
            ) from error
        if "malformed" in message or "not a database" in message or isinstance(error, sqlite3.IntegrityError):
            raise LibraryDamaged(
                f"The library file {path} is damaged ({error}).",
                f"Move {path.name} away, or put a backup in its place, and add your documents again.",
            ) from error
        if "unable to open" in message or "readonly" in message or "read-only" in message:
            raise LibraryError(
                f"The data folder {path.parent} cannot be written to.",
                "Give yourself write access to it, or choose another with DOCMIND_HOME or --home.",
            ) from error
        if "disk i/o error" in message:
            raise LibraryError(
                f"The disk under {path.parent} reports an error.", "Check the disk, then do it again."
            ) from error
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise LibraryFull(
            f"The disk that holds {path.parent} is full.",
            "Free some space and do it again: everything that was added before is safe.",
        ) from error


def _is_full(folder: Path) -> bool:
    """Whether nothing fits any more: SQLite calls it an I/O error when its shared memory file cannot grow."""
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False


def make_private_folder(folder: Path) -> None:
    """Create a folder only its owner can enter (0700).

    One that exists is tightened when it is empty or a data folder already, and left alone otherwise: `--home /tmp`
    must not lock everybody out of /tmp.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32" and folder.stat().st_mode & 0o077:
            if (folder / "library.sqlite3").exists() or not any(folder.iterdir()):
                folder.chmod(0o700)
    except OSError as error:
        raise LibraryError(
            f"The data folder {folder} cannot be made or entered ({error.strerror}).",
            "Choose another place with DOCMIND_HOME or --home.",
        ) from error


def make_private_file(path: Path) -> None:
    """Create an empty file only its owner can read (0600) unless it exists."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def prepare(path: Path) -> None:
    """Create the database, or bring it to this version's schema. Raises LibraryTooNew, LibraryDamaged, LibraryError."""
    make_private_folder(path.parent)
    with translated_errors(path):
        try:
            make_private_file(path)
        except OSError as error:
            raise LibraryError(
                f"The library file {path} cannot be opened ({error.strerror}).",
                "Give yourself access to it, or choose another folder with DOCMIND_HOME or --home.",
            ) from error
        db = _open(path)
        try:
            _use_wal(db)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise LibraryTooNew(
                    f"The library {path} was made by a newer DocMind"
                    f" (schema {version}, this one reads {len(MIGRATIONS)}).",
                    "Install the newer DocMind again, or choose another data folder with --home.",
                )
            if version < len(MIGRATIONS):
                # IMMEDIATE and a second look: two processes may start together on a new folder.
                db.execute("BEGIN IMMEDIATE")
                version = db.execute("PRAGMA user_version").fetchone()[0]
                for script in MIGRATIONS[version:]:
                    for statement in _statements(script):
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
                db.execute("COMMIT")
        finally:
            db.close()


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose statements all see the same moment of the library."""
    with translated_errors(path):
        db = _open(path)
        try:
            db.execute("BEGIN")
            yield db
        finally:
            db.close()


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction: all of it is kept at the end, or nothing when an exception leaves the block."""
    with translated_errors(path):
        db = _open(path)
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # closing without COMMIT rolls back


def forget(path: Path) -> None:
    """Overwrite what was deleted: merge the full text index, then empty the write-ahead log.

    While another process reads for more than a minute the log cannot be emptied; the next opening does it then.
    """
    with translated_errors(path):
        db = _open(path)
        try:
            db.execute("INSERT INTO passages_fts (passages_fts) VALUES ('optimize')")
            is_busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not is_busy:
                db.execute("DELETE FROM meta WHERE key = 'has_to_forget'")
        finally:
            db.close()


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite does not wait by itself here when several start on a new file at once."""
    end = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def has_to_forget(path: Path) -> bool:
    """Whether something was deleted and `forget` did not come to its end."""
    with reading(path) as db:
        return db.execute("SELECT 1 FROM meta WHERE key = 'has_to_forget'").fetchone() is not None


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
    except BaseException:  # a damaged file shows here first
        db.close()
        raise
    return db


def _statements(script: str) -> Iterator[str]:
    """Single statements of a script: `executescript` would commit the transaction around a migration."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
