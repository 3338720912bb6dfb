"""TXT and Markdown → pages. Runs inside the worker process; see `docmind.parse.worker`.

A form feed ends a page and belongs to none; form feeds in a row count as one. Otherwise a text is cut at the ends of
paragraphs or lines into pages of at most `PAGE_CHARACTERS`. Joining the pages restores the normalised text without its
form feeds.
"""

from __future__ import annotations

import bisect
import re
from typing import TYPE_CHECKING, Final

from docmind.parse.normalise import normalise
from docmind.parse.pages import (
    MAX_OUTLINE,
    MAX_PAGES,
    MAX_TITLE,
    CannotRead,
    DocumentInfo,
    Kind,
    ParsedPage,
    ParseEnd,
    ParseEvent,
)
from docmind.parse.titles import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRODUCED_BY: Final = "text 1"  # raised when the cutting or decoding changes
PAGE_CHARACTERS: Final = 6_000  # about two printed pages
_SAMPLE_BYTES: Final = 32 << 10  # what the encoding is guessed from

_HEADING_OR_FENCE: Final = re.compile(r"^ {0,3}(?:(`{3,}|~{3,})|#{1,6}[ \t]+(\S.*))", re.MULTILINE)

# The longest marks first: UTF-32's begins like UTF-16's.
_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


def read_text(path: Path, kind: Kind) -> Iterator[ParseEvent]:
    """Reads a text or Markdown file.

    Yields:
        One `DocumentInfo`, then a `ParsedPage` for every page in order, then `ParseEnd`.

    Raises:
        CannotRead: wrong_type when the content is not text.
    """
    text = normalise(decode(path.read_bytes()))
    pages = split_pages(text)
    title, headings = _markdown_headings(text) if kind == "markdown" else ("", [])
    starts = [start for start, _ in pages]
    outline = tuple((max(1, bisect.bisect_right(starts, offset)), heading) for offset, heading in headings)
    kept = pages[:MAX_PAGES]
    yield DocumentInfo(kind, len(kept), title, tuple(entry for entry in outline if entry[0] <= len(kept)))
    for number, (_, page) in enumerate(kept, start=1):
        if page.strip():
            yield ParsedPage(number, page, "text", None, PRODUCED_BY)
        else:
            yield ParsedPage(number, page, "none", "blank", PRODUCED_BY)
    yield ParseEnd("too_much_text" if len(pages) > MAX_PAGES else None)


def decode(data: bytes) -> str:
    """The text of a file: by its byte order mark, else UTF-8, else what charset-normalizer finds most likely.

    Raises:
        CannotRead: wrong_type when the bytes are no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _checked(data[len(mark) :].decode(encoding, "replace"))
    if b"\0" in data[:_SAMPLE_BYTES]:
        # UTF-16 without its mark: in most scripts one byte of each pair is nearly always the same small number.
        sample = data[: _SAMPLE_BYTES & ~1]
        zeros = sample[0::2].count(0), sample[1::2].count(0)
        if max(zeros) < len(sample) // 4 or min(zeros) > len(sample) // 100:
            raise CannotRead("wrong_type")
        return _checked(data.decode("utf-16-le" if zeros[1] > zeros[0] else "utf-16-be", "replace"))
    try:
        return _checked(data.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    # A few damaged bytes do not make a UTF-8 text another encoding: whole multi-byte characters outnumber them.
    damaged = text.count("\ufffd")
    whole = sum(character > "\x7f" for character in text[:_SAMPLE_BYTES]) - text[:_SAMPLE_BYTES].count("\ufffd")
    if whole > 4 * damaged:
        return _checked(text)
    from charset_normalizer import from_bytes  # 0.1 s, and few files need it

    # The sample ends at a line end so that it does not cut a character in two.
    sample = data[:_SAMPLE_BYTES]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    best = from_bytes(sample).best()
    return _checked(data.decode(best.encoding if best else "cp1252", "replace"))


def _checked(text: str) -> str:
    """`text`, if it is one: at most one character in a hundred of a sample is a control or stands for damage."""
    sample = text[:_SAMPLE_BYTES]
    strange = sum(sample.count(chr(code)) for code in range(32) if chr(code) not in "\t\n\f\r\x0b\x1a\x1b\x08")
    if strange + sample.count("\ufffd") > max(1, len(sample)) / 100:
        raise CannotRead("wrong_type")
    return text


def split_pages(text: str) -> list[tuple[int, str]]:
    """(start, page) for each page of a normalised text, at least one; `start` is an offset into `text`."""
    pages: list[tuple[int, str]] = []
    for section in re.finditer(r"[^\f]+", text):
        start, end = section.span()
        while start < end and len(pages) <= MAX_PAGES:
            cut = _cut(text, start, end)
            pages.append((start, text[start:cut]))
            start = cut
    return pages or [(0, "")]


def _cut(text: str, start: int, end: int) -> int:
    """Where the page that begins at `start` ends: all, or after a paragraph, a line or a word, or at the limit."""
    limit = start + PAGE_CHARACTERS
    if end <= limit:
        return end
    # A paragraph's end only in the second half, or a page could be one line; any line's end; any blank.
    for mark, earliest in (("\n\n", start + PAGE_CHARACTERS // 2), ("\n", start), (" ", start)):
        found = text.rfind(mark, earliest, limit)
        if found >= 0:
            return found + len(mark)
    return limit


def _markdown_headings(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The title (front matter, else the first heading) and (offset, heading) of each `# heading` outside code."""
    title = ""
    headings: list[tuple[int, str]] = []
    fence = ""
    front = re.match(r"---\n(.{0,4000}?)\n(?:---|\.\.\.)\n", text, re.DOTALL)
    if front and (named := re.search(r"^title:[ \t]*(.+)$", front[1], re.MULTILINE)):
        title = one_line(named[1].strip().strip("\"'"))
    for line in _HEADING_OR_FENCE.finditer(text, front.end() if front else 0):
        mark, heading = line[1], line[2]
        if mark:  # CommonMark 4.5: a fence closes with at least as many of the same signs
            fence = "" if fence and mark.startswith(fence) else fence or mark
        elif not fence and len(headings) < MAX_OUTLINE:
            words = one_line(re.sub(r"[ \t]+#+$", "", heading[: 4 * MAX_TITLE]))
            headings.append((line.start(), words))
    return title or (headings[0][1] if headings else ""), headings
