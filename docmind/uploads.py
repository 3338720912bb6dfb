"""Files that came as bytes, from a browser: kept below the data folder for as long as their document is.

A copy is `home/documents/<document id>/<name>`, and the folder's name is the id its document has or would have. Nothing
outside that folder is ever removed. Knows no page and reads no document.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import threading
import time
import unicodedata
import uuid
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO, Final

from docmind import store
from docmind.errors import LibraryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from docmind.config import Config
    from docmind.library import Library

BLOCK_BYTES: Final = 1 << 20
# Most file systems take 255 bytes; those of encrypted home folders (eCryptfs) take 143, and Windows 260 characters of
# a whole path.
MAX_NAME_BYTES: Final = 140
MAX_SUFFIX_BYTES: Final = 16  # what is longer behind the last dot is no extension
ABANDONED_SECONDS: Final = 600.0  # another process may have kept a copy a moment ago and not begun to read it
# Reserved on Windows with any extension. Source: learn.microsoft.com, "Naming Files, Paths, and Namespaces".
_RESERVED: Final = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
_FORBIDDEN: Final = re.compile(r'[<>:"|?*]')  # by Windows and by its file systems, wherever they are mounted
# Control characters, and those that turn the reading direction so that "fdp.exe" is shown as "exe.pdf".
_INVISIBLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_DOCUMENT_ID: Final = re.compile(r"[0-9a-f]{16}")

# Copies of this process that were kept and whose adding has not ended, with how often: two pages may bring the same
# bytes, and the first to end must not take them away from the second.
_pending: Counter[Path] = Counter()
_lock = threading.Lock()


def keep_upload(config: Config, name: str, data: bytes | BinaryIO) -> Path:
    """Keep bytes as a file of the data folder; the same bytes again give the same path.

    It stays until its document is removed. If it never becomes one, `settling` or `forget_upload` removes it, and
    after a crash `sweep_uploads` does.

    Args:
        name: As the browser told it: never trusted.

    Raises:
        LibraryFull: The disk is full; nothing of the file is left.
        LibraryError: The data folder cannot be written to.
    """
    root = _root(config)
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    temporary = root / f".upload-{uuid.uuid4().hex}"
    try:
        with store.translated_errors(temporary):
            try:
                root.mkdir(mode=0o700, exist_ok=True)
                sha256 = _write(stream, temporary)
                with _lock:
                    path = _place(temporary, root / sha256[:16], safe_name(name), sha256)
                    _pending[path] += 1
            finally:
                temporary.unlink(missing_ok=True)
    except LibraryError:  # a full one is also an OSError
        raise
    except OSError as error:
        raise LibraryError(
            f"The file could not be kept in {root} ({error.strerror}).",
            "Give yourself write access to that folder, or choose another data folder with DOCMIND_HOME or --home.",
        ) from error
    return path


def forget_upload(library: Library, path: Path) -> bool:
    """Say that a kept copy's adding has ended. It is removed unless it became a document.

    Any other path is left alone, and so is a copy that is still being added by another page.

    Returns:
        Whether it was removed.
    """
    if not _is_copy(library.config, path):
        return False
    with _lock:
        _pending[path] -= 1
        if _pending[path] > 0:
            return False
        del _pending[path]
    if path.parent.name in _needed(library):
        return False
    return _remove_folder(path.parent)


@contextlib.contextmanager
def settling(library: Library, paths: Sequence[Path]) -> Iterator[None]:
    """Add files inside this: at the end, however it comes, the copies among them that became no document are gone."""
    try:
        yield
    finally:
        with contextlib.suppress(LibraryError):  # the library cannot be asked now: the next sweep does it
            for path in paths:
                forget_upload(library, path)


def forget_documents(config: Config, document_ids: Iterable[str]) -> None:
    """Remove the copies of documents that are removed; the person's own files elsewhere are never touched."""
    for document_id in document_ids:
        folder = _root(config) / document_id
        with _lock:
            is_pending = any(path.parent == folder for path in _pending)
        if not is_pending:  # it is being added once more, and `settling` decides then
            _remove_folder(folder)


def sweep_uploads(library: Library) -> int:
    """Remove copies that no document needs: what a crash or a power cut left. Does nothing while documents are added.

    Returns:
        How many were removed.
    """
    from filelock import FileLock, Timeout

    root = _root(library.config)
    if not root.is_dir():
        return 0
    lock = FileLock(library.config.home / "ingestion.lock", mode=0o600, thread_local=False)
    removed = 0
    # No right or no room for the lock: whoever adds documents next will say so.
    with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
        needed = _needed(library)
        with _lock:
            needed |= {path.parent.name for path in _pending}
        before = time.time() - ABANDONED_SECONDS
        for entry in root.iterdir():
            is_ours = entry.name.startswith(".upload-") or _DOCUMENT_ID.fullmatch(entry.name)
            if is_ours and entry.name not in needed and _newest(entry) < before:
                removed += _remove_folder(entry)
    return removed


def safe_name(name: str) -> str:
    """A file name that every system takes, as near to the given one as that allows; its extension is kept."""
    name = name.encode("utf-8", "replace").decode()  # half a character of a name that is not Unicode
    name = unicodedata.normalize("NFC", re.sub(" +", " ", _INVISIBLE.sub("", re.sub(r"\s", " ", name))))
    name = _FORBIDDEN.sub("_", re.split(r"[/\\]", name)[-1]).rstrip(". ")  # Windows drops dots and blanks at the end
    stem, dot, suffix = name.rpartition(".")
    suffix = dot + suffix.strip()
    if not dot or len(suffix.encode()) > MAX_SUFFIX_BYTES:
        stem, suffix = name, ""
    room = MAX_NAME_BYTES - len(suffix.encode())
    stem = stem.lstrip(". ").encode()[:room].decode("utf-8", "ignore").rstrip(" ")
    name = (stem or "document") + suffix
    return f"_{name}" if _RESERVED.match(name) else name


def _root(config: Config) -> Path:
    return config.home / "documents"


def _is_copy(config: Config, path: Path) -> bool:
    return path.parent.parent == _root(config) and _DOCUMENT_ID.fullmatch(path.parent.name) is not None


def _write(stream: BinaryIO, path: Path) -> str:
    """Write all of a stream, down to the disk; its SHA-256."""
    digest = hashlib.sha256()
    store.make_private_file(path)
    with path.open("wb") as file:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _place(temporary: Path, folder: Path, name: str, sha256: str) -> Path:
    """Give a written file its place, or find the one that is there already."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and _sha256(path) == sha256:  # one that was changed since is no copy
            os.utime(path)  # young again: no sweep takes it
            return path
    path = folder / name
    try:
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    if sys.platform != "win32":  # where a folder can be written down to the disk
        for changed in (folder, folder.parent):
            descriptor = os.open(changed, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _needed(library: Library) -> set[str]:
    """Names of the folders below `documents` that a document is or lies in."""
    from docmind.library import path_text

    prefix = path_text(_root(library.config)) + os.sep
    with store.reading(library.path) as db:
        names = {row[0] for row in db.execute("SELECT id FROM documents")}
        for (path,) in db.execute("SELECT path FROM sources WHERE substr(path, 1, ?) = ?", (len(prefix), prefix)):
            names.add(path.removeprefix(prefix).partition(os.sep)[0])
    return names


def _newest(entry: Path) -> float:
    """When an entry or something in it was last changed, in seconds of the epoch; now when it cannot be told."""
    try:
        return max(float(path.lstat().st_mtime) for path in [entry, *(entry.iterdir() if entry.is_dir() else ())])
    except OSError:
        return time.time()


def _remove_folder(entry: Path) -> bool:
    """Remove a copy's folder or a temporary file; a link is removed and never followed."""
    try:
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink()
            return True
        for path in entry.iterdir():
            path.unlink()
        entry.rmdir()
    except OSError:  # gone already, or Windows: a page picture still has it open; the next sweep removes it
        return False
    return True
