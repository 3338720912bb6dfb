"""Which reader a file belongs to, decided before any reader sees it: by what is in it first, by its name second.

Only a few bytes of regular files are read here, so this is safe in the main process; nothing is parsed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO, Final

from docmind.parse.reasons import refusal

if TYPE_CHECKING:
    from pathlib import Path

    from docmind.parse.pages import Kind

MAX_PDF_BYTES: Final = 1 << 30
MAX_TEXT_BYTES: Final = 32 << 20
_HEAD_BYTES: Final = 1024  # PDF 32000-1, implementation note 13: the header may stand anywhere in the first 1,024
_TAIL_BYTES: Final = 2048

_NAMES: Final[dict[str, Kind]] = {
    ".pdf": "pdf",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
}
# What a file really is, by its first bytes; a person is told in these words.
_SIGNATURES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"PK\x03\x04", "a ZIP archive, as Word, Excel, PowerPoint and e-books are"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an older Office document (DOC, XLS, PPT or MSG)"),
    (b"{\\rtf", "an RTF document"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"%!PS", "a PostScript file"),
    (b"AT&TFORM", "a DjVu document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"OggS", "an Ogg recording"),
    (b"ID3", "an MP3 recording"),
    (b"GGUF", "a language model"),
    (b"From ", "a mailbox"),
)
_MAYBE_TEXT: Final = frozenset({"a mailbox", "a program", "an MP3 recording", "a GIF picture", "a bzip2 archive"})


def kind_of(path: Path) -> Kind:
    """Which reader `path` belongs to.

    A file that begins as a PDF is one, whatever its name. Otherwise the name must be one of `.pdf`, `.txt`, `.text`,
    `.md`, `.markdown`, and a `.pdf` must look like one. Never waits on a pipe or a device.

    Raises:
        DocumentError: not_found, not_a_file, not_readable, empty_file, too_large, unsupported_type or wrong_type.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            head = file.read(_HEAD_BYTES)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read(_TAIL_BYTES)
        except OSError as error:
            raise refusal("not_readable", path) from error
    if not head:
        raise refusal("empty_file", path)
    named = _NAMES.get(path.suffix.lower())
    kind = _kind(path, named, head, tail)
    if size > (MAX_PDF_BYTES if kind == "pdf" else MAX_TEXT_BYTES):
        raise refusal("too_large", path)
    return kind


def open_regular(path: Path) -> BinaryIO:
    """The file, opened for reading; refused unless it is a regular one. Never waits on a pipe or a device.

    Raises:
        DocumentError: not_found, not_a_file or not_readable.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refusal("not_a_file", path)
        # Between the look and the opening the file may have become a FIFO: O_NONBLOCK does not wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        # ValueError: a NUL in the path, or DocumentError itself, which is one.
        if getattr(error, "reason", None) == "not_a_file":
            raise
        raise refusal("not_found", path) from error
    except OSError as error:
        raise refusal("not_readable", path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal("not_a_file", path)
    return os.fdopen(descriptor, "rb")


def _kind(path: Path, named: Kind | None, head: bytes, tail: bytes) -> Kind:
    """The kind by content and name, see `kind_of`."""
    # A text may speak of "%PDF-" in its first lines; as a text it is a PDF only if it begins with it.
    if b"%PDF-" in (head.lstrip(b"\xef\xbb\xbf \t\r\n")[:5] if named in ("text", "markdown") else head):
        return "pdf"
    if named is None:
        raise refusal("unsupported_type", path, _unsupported(path))
    really = what_is(head)
    if named == "pdf":
        # Some PDFs lost their header or have a long preamble: objects and end betray them, and the readers decide.
        if b" obj" in head or b"startxref" in tail or b"%%EOF" in tail:
            return "pdf"
        raise refusal("wrong_type", path, f"is named PDF but is {really or 'something else'}", _wrong_type_hint(really))
    if really and really not in _MAYBE_TEXT and not really.startswith("plain"):
        raise refusal("wrong_type", path, f"is named as text but is {really}")
    return named


def _unsupported(path: Path) -> str:
    if path.suffix:
        return f"is a {path.suffix[1:17].upper()} file, which DocMind does not read"
    return "has no file extension, and it is not a PDF"


def _wrong_type_hint(really: str) -> str:
    if really.startswith("plain text"):
        return "If it is meant to be read as text, rename it to end in .txt and add that."
    return ""


def what_is(head: bytes) -> str:
    """What a file is, in words, by its first bytes; "" when they say nothing."""
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "plain text: a web page (HTML)"
    if start.startswith(b"<?xml"):
        return "plain text: XML"
    if not any(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in head):
        return "plain text"
    return ""
