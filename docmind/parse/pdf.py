"""PDF → pages, with a box around every word. Runs inside the worker process; see `docmind.parse.worker`.

pdfium reads the text, the boxes, the title and the outline. pypdf is the second reader: it decides whether a file that
pdfium calls locked opens with the empty password, and reads files that pdfium cannot open (text without boxes).
Title and outline come from pdfium although pypdf has them too: pdfium has parsed the file already and answers within
milliseconds, while pypdf may need minutes for the outline of an odd file and would hold up the pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import math
import os
import re
import threading
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pypdfium2.raw as pdfium
from pypdfium2.version import PYPDFIUM_INFO

from docmind.parse.boxes import pack
from docmind.parse.normalise import REPLACEMENT, normalise, normalise_codes
from docmind.parse.pages import (
    MAX_FILE_CHARACTERS,
    MAX_OUTLINE,
    MAX_PAGE_CHARACTERS,
    MAX_PAGES,
    CannotRead,
    DocumentInfo,
    ParsedPage,
    ParseEnd,
    ParseEvent,
)
from docmind.parse.titles import clean_title, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from docmind.parse.reasons import PageReason

PRODUCED_BY: Final = f"pypdfium2 {PYPDFIUM_INFO.version}"
_SECOND_READER_CPU_SECONDS: Final = 1.5  # of pypdf for a file; it may search forever
_SECOND_READER_BYTES: Final = 16 << 20  # larger files pypdf cannot open in that time, and it would hold them in memory
_LINE_END_HYPHEN: Final = 0xFFFE  # what pdfium's text has where it joined a word broken over two lines
_TYPESET_HYPHENS: Final = 4  # so many broken words on a page are the work of a typesetter
_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_FAR_AWAY: Final = 1e6  # points; no page is so large
_SCAN_COVER: Final = 0.01  # pictures on less than this share of a page are a logo or a rule, not a scanned page
_DRAWN_LETTERS: Final = 30  # so many paths on a page without text are letters drawn as outlines
_FORM_DEPTH: Final = 4  # forms (drawings inside drawings) are looked into so deep


def _plain(function: Any, result: Any, *arguments: Any) -> Any:
    """pdfium's function with plain addresses for pointers: pypdfium2's prototypes convert each, at thrice the cost."""
    return ctypes.CFUNCTYPE(result, *arguments)(ctypes.cast(function, ctypes.c_void_p).value or 0)


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_unicode = _plain(pdfium.FPDFText_GetUnicode, ctypes.c_uint, _POINTER, _INT)
_loose_box = _plain(pdfium.FPDFText_GetLooseCharBox, _INT, _POINTER, _INT, _POINTER)
_tight_box = _plain(pdfium.FPDFText_GetCharBox, _INT, _POINTER, _INT, *[_POINTER] * 4)

Handle = Any  # an opaque pointer of pdfium


def read_pdf(path: Path) -> Iterator[ParseEvent]:
    """Reads a PDF page by page.

    Yields:
        One `DocumentInfo`, then a `ParsedPage` for every page in order, then `ParseEnd`.

    Raises:
        CannotRead: encrypted, damaged or no_pages.
    """
    pdfium.FPDF_InitLibrary()  # does nothing from the second time on
    document = pdfium.FPDF_LoadDocument(os.fsencode(path), None)
    is_locked = not document and pdfium.FPDF_GetLastError() == pdfium.FPDF_ERR_PASSWORD
    count = pdfium.FPDF_GetPageCount(document) if document else 0
    try:
        if count > 0:
            yield from _read_with_pdfium(path, document, count)
        else:
            # Whatever pdfium says is wrong with the file, pypdf may think otherwise.
            yield from _read_with_pypdf(path, is_locked=is_locked)
    finally:
        if document:
            pdfium.FPDF_CloseDocument(document)


def _read_with_pdfium(path: Path, document: Handle, count: int) -> Iterator[ParseEvent]:
    yield DocumentInfo("pdf", min(count, MAX_PAGES), _title(document), _outline(document, min(count, MAX_PAGES)))
    second_reader = _SecondReader(path)
    is_too_much = count > MAX_PAGES
    characters = 0
    for number in range(1, min(count, MAX_PAGES) + 1):
        page, was_cut = _read_page(document, number)
        # Not where the page is a picture: pypdf finds no more on it (1 in 138 measured), and there may be hundreds.
        if page.reason in ("blank", "unreadable"):
            page = second_reader.instead_of(page)
        characters += len(page.text)
        if characters > MAX_FILE_CHARACTERS:
            yield ParseEnd("too_much_text")
            return
        is_too_much |= was_cut
        yield page
    yield ParseEnd("too_much_text" if is_too_much else None)


# ---- One page ---------------------------------------------------------------------------------------------------


def _read_page(document: Handle, number: int) -> tuple[ParsedPage, bool]:
    """The page, and whether its text was cut at `MAX_PAGE_CHARACTERS`."""
    page = pdfium.FPDF_LoadPage(document, number - 1)
    if not page:
        return _without_text(number, "unreadable"), False
    try:
        width, height = pdfium.FPDF_GetPageWidthF(page), pdfium.FPDF_GetPageHeightF(page)
        text_page = pdfium.FPDFText_LoadPage(page)
        if not text_page:
            return _without_text(number, "unreadable", width, height), False
        try:
            count = max(0, pdfium.FPDFText_CountChars(text_page))
            codes = _codes(text_page, min(count, MAX_PAGE_CHARACTERS))
            text, source = normalise_codes(codes)
            # Cut by characters once more: a ligature may have become three.
            text, source = text[:MAX_PAGE_CHARACTERS], source[:MAX_PAGE_CHARACTERS]
            if not says_something(text):
                return _without_text(number, _why_no_text(page, text, width, height), width, height), False
            words = _word_boxes(text_page, text, source, _to_display(page, width, height))
        finally:
            pdfium.FPDFText_ClosePage(text_page)
        parsed = ParsedPage(number, text, "text", None, PRODUCED_BY, pack(words), width, height)
        return parsed, count > MAX_PAGE_CHARACTERS
    finally:
        pdfium.FPDF_ClosePage(page)


def _without_text(number: int, reason: PageReason, width: float = 0.0, height: float = 0.0) -> ParsedPage:
    return ParsedPage(number, "", "none", reason, PRODUCED_BY, b"", width, height)


def says_something(text: str) -> bool:
    """Whether text is text: not only blanks, and not only signs that stand for nothing.

    A font without a map to Unicode gives U+FFFD or private characters; unless a letter or digit is among them, the
    page needs text recognition like a scanned one.
    """
    if any(map(str.isalnum, text)):
        return True
    return bool(text.strip()) and not any(sign == "\ufffd" or "\ue000" <= sign <= "\uf8ff" for sign in text)


def _codes(text_page: Handle, count: int) -> NDArray[np.uint32]:
    """(count,) uint32: one code for each of pdfium's characters, in its order; 0 where it knows none.

    The text comes in one call, but without the characters pdfium knows no code for, and with two units for one above
    U+FFFF. Where the lengths differ each character is asked for by itself: slower, and exact.
    """
    units = np.zeros(count + 1, dtype="<u2")
    pointer = units.ctypes.data_as(ctypes.POINTER(ctypes.c_ushort))
    # The return value counts the closing NUL.
    written = pdfium.FPDFText_GetText(text_page, 0, count, pointer) - 1
    units = units[:count]
    if written == count and not ((units >= 0xD800) & (units < 0xE000)).any():
        codes = units.astype(np.uint32)
        marks = np.flatnonzero(codes == _LINE_END_HYPHEN)
    else:
        address = ctypes.cast(text_page, ctypes.c_void_p).value
        codes = np.fromiter(map(_unicode, repeat(address), range(count)), np.uint32, count)
        codes[codes == _LINE_END_HYPHEN] = REPLACEMENT  # a font's own; here the mark is 2
        marks = np.flatnonzero(codes == 2)
    # Both marks stand for other things too (a character without a code, a control character), so pdfium is asked.
    codes[marks] = [
        _LINE_END_HYPHEN if pdfium.FPDFText_IsHyphen(text_page, mark) == 1 else 0 for mark in marks.tolist()
    ]
    return _resolve_hyphens(codes)


def _resolve_hyphens(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Decides for each word broken at a line end whether the hyphen belongs to it; pdfium dropped the line end already.

    "pro-gramming" was broken by a typesetter, "forward-looking" wears its hyphen always. The page itself is asked how
    it spells the word elsewhere; if it does not, a page with many broken words was hyphenated by a typesetter, and
    one with few (a 10-K, a letter) only breaks where there is a hyphen anyway.
    """
    marks = np.flatnonzero(codes == _LINE_END_HYPHEN)
    if len(marks) == 0:
        return codes
    codes = codes.copy()
    # Lower case by ASCII rules only: others change the length ("İ" becomes two characters).
    text = np.where(codes < 0xD800, codes, ord("?")).astype("<u4").tobytes().decode("utf-32-le")
    text = text.translate(_LOWER)
    spelled = set(re.findall(r"\w+(?:-\w+)*", text))
    for mark in marks.tolist():
        # No word is longer than this; more would make a hostile page expensive.
        before = re.search(r"\w*$", text[max(0, mark - 40) : mark])
        after = re.match(r"\w*", text[mark + 1 : mark + 41])
        left, right = before[0] if before else "", after[0] if after else ""
        if f"{left}-{right}" in spelled:
            keep = True
        elif left + right in spelled:
            keep = False
        else:
            # "Available-For-Sale": what goes on with a capital or a digit was not broken by a typesetter.
            goes_on_small = chr(codes[mark + 1]).islower() if right else False
            keep = len(marks) < _TYPESET_HYPHENS or not goes_on_small
        codes[mark] = ord("-") if keep else 0
    return codes


def _to_display(page: Handle, width: float, height: float) -> NDArray[np.float64]:
    """(2, 3) float64: takes (x, y, 1) of the page's own space to points from the top left of the page as displayed."""
    left, bottom, right, top = _page_box(page)
    rotation = pdfium.FPDFPage_GetRotation(page) % 4  # quarter turns clockwise
    # ISO 32000-2, 7.7.3.3: the page box is turned clockwise; then y is counted from the top.
    turn = {
        0: [[1, 0, -left], [0, -1, top]],
        1: [[0, 1, -bottom], [1, 0, -left]],
        2: [[-1, 0, right], [0, 1, -bottom]],
        3: [[0, -1, top], [-1, 0, right]],
    }[rotation]
    matrix = np.array(turn, dtype=np.float64)
    # UserUnit: pdfium's width is in points, the boxes are in units.
    unit = width / ((right - left) if rotation % 2 == 0 else (top - bottom) or 1.0)
    return matrix * unit if np.isfinite(unit) and unit > 0 else matrix


def _page_box(page: Handle) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of what is displayed: the CropBox within the MediaBox, in the page's own space."""
    box = pdfium.FS_RECTF()
    if not pdfium.FPDF_GetPageBoundingBox(page, ctypes.byref(box)):
        return 0.0, 0.0, pdfium.FPDF_GetPageWidthF(page), pdfium.FPDF_GetPageHeightF(page)
    return box.left, box.bottom, box.right, box.top


# ---- Words ------------------------------------------------------------------------------------------------------


def _word_boxes(
    text_page: Handle, text: str, source: NDArray[np.intp], to_display: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A box for each run of non-blank characters, two or more where the run is broken over lines.

    Args:
        source: (m,) the index of pdfium's character for each character of `text`.

    Returns:
        (n, 6) float64 rows (start, end, x0, y0, x1, y1), points of the page as displayed.
    """
    blank = np.fromiter(map(str.isspace, text), np.bool_, len(text))
    edges = np.diff(np.concatenate(([True], blank, [True])).astype(np.int8))
    starts, ends = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)
    glyph_boxes = _tight_boxes if _loose_boxes_are_wild(text_page, source[starts]) else _loose_boxes
    # Only the first and last letter of each word are asked for: a call for every letter would cost as much as the
    # text. Where the two stand neither in one row nor in one column, the word is slanted, broken or of mixed sizes,
    # and every letter of it is asked for.
    firsts = _displayed(glyph_boxes(text_page, source[starts]), to_display)
    lasts = _displayed(glyph_boxes(text_page, source[ends - 1]), to_display)
    with np.errstate(invalid="ignore"):
        apart = np.abs(firsts - lasts) < 0.5
    simple = (apart[:, 1] & apart[:, 3]) | (apart[:, 0] & apart[:, 2])
    corners = np.concatenate((np.minimum(firsts[:, :2], lasts[:, :2]), np.maximum(firsts[:, 2:], lasts[:, 2:])), axis=1)
    rows = np.column_stack((starts, ends, corners))[simple]
    if simple.all():
        return rows
    starts, ends = starts[~simple], ends[~simple]
    letters = np.concatenate([np.arange(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
    boxes = _displayed(glyph_boxes(text_page, source[letters]), to_display)
    rows = np.concatenate((rows, _rows_of_letters(letters, np.repeat(ends, ends - starts), boxes)))
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _rows_of_letters(
    letters: NDArray[np.intp], word_ends: NDArray[np.intp], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A row for each word, and for each further line that a word stands on; none for letters without a place.

    Args:
        letters: (k,) offsets into the text, ascending.
        word_ends: (k,) where the word of each letter ends.
        boxes: (k, 4) as displayed; NaN where a letter has no place.
    """
    placed = np.isfinite(boxes[:, 0])
    letters, word_ends, boxes = letters[placed], word_ends[placed], boxes[placed]
    if len(letters) == 0:
        return np.empty((0, 6))
    before, after = boxes[:-1], boxes[1:]
    middle = (after[:, :2] + after[:, 2:]) / 2
    # A letter whose middle is beside the letter before it, both across and down, is on another line. One that is only
    # below it continues a word that runs downwards, one only beside it a word that runs across.
    elsewhere = ((middle < before[:, :2]) | (middle > before[:, 2:])).all(axis=1)
    new_word = word_ends[1:] != word_ends[:-1]
    firsts = np.flatnonzero(np.concatenate(([True], elsewhere | new_word)))
    rows = np.empty((len(firsts), 6))
    rows[:, 0] = letters[firsts]
    rows[:, 1] = np.minimum(word_ends[firsts], np.append(letters[firsts[1:]], word_ends[-1]))
    rows[:, 2:4] = np.minimum.reduceat(boxes[:, :2], firsts)
    rows[:, 4:6] = np.maximum.reduceat(boxes[:, 2:], firsts)
    return rows


def _loose_boxes(text_page: Handle, indices: NDArray[np.intp]) -> NDArray[np.float64]:
    """(n, 4) float64 (left, top, right, bottom) of pdfium's characters; NaN where one has no place.

    As high as the letters of the font reach, which marks more pleasantly than the ink alone.
    """
    count = len(indices)
    raw = np.empty((count, 4), dtype=np.float32)  # FS_RECTF
    address, base = ctypes.cast(text_page, ctypes.c_void_p).value, raw.ctypes.data
    places = range(base, base + 16 * count, 16)
    found = np.fromiter(map(_loose_box, repeat(address), indices.tolist(), places), np.bool_, count)
    raw[~found] = np.nan
    return raw.astype(np.float64)


def _tight_boxes(text_page: Handle, indices: NDArray[np.intp]) -> NDArray[np.float64]:
    """(n, 4) float64 (left, top, right, bottom) of the ink of pdfium's characters; NaN where one has no place."""
    count = len(indices)
    raw = np.empty((count, 4), dtype=np.float64)
    address, base = ctypes.cast(text_page, ctypes.c_void_p).value, raw.ctypes.data
    # pdfium asks for left, right, bottom, top.
    places = [range(base + 8 * column, base + 32 * count, 32) for column in (0, 2, 3, 1)]
    found = np.fromiter(map(_tight_box, repeat(address), indices.tolist(), *places), np.bool_, count)
    raw[~found] = np.nan
    return raw


def _loose_boxes_are_wild(text_page: Handle, indices: NDArray[np.intp]) -> bool:
    """Whether the page's font claims letters far higher than they are; a few fonts claim whole paragraphs.

    Of 2,500 pages measured the loose box is 1.9 times as high as the ink in the middle, 3.2 times at the 99th
    percentile, and 7 to 12 times where the font is wrong. Ink without any height (fonts that are not embedded) says
    nothing.
    """
    sample = indices[:: max(1, len(indices) // 16)]
    loose, tight = _loose_boxes(text_page, sample), _tight_boxes(text_page, sample)
    loose, tight = np.abs(loose[:, 1] - loose[:, 3]), np.abs(tight[:, 1] - tight[:, 3])
    with np.errstate(invalid="ignore", divide="ignore"):
        told = np.isfinite(loose) & (tight > 0.5)
    return bool(told.sum() > 2 and np.median(loose[told] / tight[told]) > 5)


def _displayed(boxes: NDArray[np.float64], to_display: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) float64 (x0, y0, x1, y1) as displayed, of boxes in the page's own space; NaN for nonsense."""
    one = boxes[:, :2] @ to_display[:, :2].T + to_display[:, 2]
    two = boxes[:, 2:] @ to_display[:, :2].T + to_display[:, 2]
    displayed = np.concatenate((np.minimum(one, two), np.maximum(one, two)), axis=1)
    with np.errstate(invalid="ignore"):
        displayed[~(np.abs(displayed).max(axis=1, initial=0.0) < _FAR_AWAY)] = np.nan
    return displayed


# ---- Pages without text -----------------------------------------------------------------------------------------


def _why_no_text(page: Handle, text: str, width: float, height: float) -> PageReason:
    """`scanned` when something to read is shown all the same: pictures, drawn letters, letters without a code."""
    if text.strip():
        return "scanned"
    covered, paths, letters = 0.0, 0, 0
    for index in range(min(pdfium.FPDFPage_CountObjects(page), 10_000)):
        thing = pdfium.FPDFPage_GetObject(page, index)
        images, inner_paths, inner_letters = _drawn(thing, _FORM_DEPTH)
        paths, letters = paths + inner_paths, letters + inner_letters
        if images:
            covered += _area(thing)
    area = width * height
    is_drawn = paths >= _DRAWN_LETTERS or letters > 0 or (area > 0 and covered / area >= _SCAN_COVER)
    return "scanned" if is_drawn else "blank"


def _drawn(thing: Handle, depth: int) -> tuple[int, int, int]:
    """How many pictures, paths and pieces of text a page object is or holds."""
    kind = pdfium.FPDFPageObj_GetType(thing)
    if kind == pdfium.FPDF_PAGEOBJ_FORM and depth:
        total = [0, 0, 0]
        for index in range(min(pdfium.FPDFFormObj_CountObjects(thing), 1_000)):
            inner = _drawn(pdfium.FPDFFormObj_GetObject(thing, index), depth - 1)
            total = [one + other for one, other in zip(total, inner, strict=True)]
        return total[0], total[1], total[2]
    is_image = kind in (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_SHADING)
    return int(is_image), int(kind == pdfium.FPDF_PAGEOBJ_PATH), 0


def _area(thing: Handle) -> float:
    """The area of a page object's bounding box, in square points."""
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    if not pdfium.FPDFPageObj_GetBounds(thing, left, bottom, right, top):
        return 0.0
    return abs((right.value - left.value) * (top.value - bottom.value))


# ---- Title and outline ------------------------------------------------------------------------------------------


def _title(document: Handle) -> str:
    return clean_title(_wide_string(lambda buffer, size: pdfium.FPDF_GetMetaText(document, b"Title", buffer, size)))


def _wide_string(ask: Any) -> str:
    """A string pdfium hands out as UTF-16LE: asked for its size in bytes first, then for itself."""
    size = ask(None, 0)
    if not 2 < size <= 1 << 16:
        return ""
    buffer = ctypes.create_string_buffer(size)
    ask(buffer, size)
    return buffer.raw[: size - 2].decode("utf-16-le", "replace")


def _outline(document: Handle, count: int) -> tuple[tuple[int, str], ...]:
    """(page, heading) for each bookmark that leads to a page, in order; at most `MAX_OUTLINE`."""
    entries: list[tuple[int, str]] = []
    seen: set[int] = set()  # a damaged outline may lead back into itself
    waiting = [pdfium.FPDFBookmark_GetFirstChild(document, None)]
    while waiting and len(seen) < 5 * MAX_OUTLINE and len(entries) < MAX_OUTLINE:
        bookmark = waiting.pop()
        address = ctypes.cast(bookmark, ctypes.c_void_p).value
        if not address or address in seen:
            continue
        seen.add(address)
        heading = one_line(_wide_string(lambda buffer, size, b=bookmark: pdfium.FPDFBookmark_GetTitle(b, buffer, size)))
        destination = pdfium.FPDFBookmark_GetDest(document, bookmark)
        page = pdfium.FPDFDest_GetDestPageIndex(document, destination) if destination else -1
        if heading and 0 <= page < count:
            entries.append((page + 1, heading))
        # Depth first: children come before the next sibling.
        waiting.append(pdfium.FPDFBookmark_GetNextSibling(document, bookmark))
        waiting.append(pdfium.FPDFBookmark_GetFirstChild(document, bookmark))
    return tuple(entries)


# ---- The second reader ------------------------------------------------------------------------------------------


class _SecondReader:
    """pypdf, for what pdfium cannot read: text without boxes.

    pypdf raises whatever its code runs into on a damaged file (ten kinds were measured, AssertionError, TypeError and
    RecursionError among them), so the excepts of this class are broad: here and nowhere else. It may also search for
    minutes, so it gets a few CPU seconds and no more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: Any = None
        self._cpu_seconds = _SECOND_READER_CPU_SECONDS  # left for this file
        self.produced_by = ""

    def open(self) -> int:
        """Opens the file and returns the number of pages.

        Raises:
            CannotRead: encrypted, damaged or no_pages.
        """
        if self._path.stat().st_size > _SECOND_READER_BYTES:
            raise CannotRead("damaged")
        import pypdf  # 0.3 s, and few files need it

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)
        self.produced_by = f"pypdf {pypdf.__version__}"
        try:
            with self._limited():
                self._reader = pypdf.PdfReader(self._path)
                if self._reader.is_encrypted and not self._reader.decrypt(""):
                    raise CannotRead("encrypted")
                count = len(self._reader.pages)
        except (CannotRead, MemoryError):
            raise
        except (Exception, _OutOfTime) as error:
            raise CannotRead("damaged") from error
        if count <= 0:
            raise CannotRead("no_pages")
        return count

    def page(self, number: int) -> ParsedPage:
        """The page as pypdf reads it; its limit of time and memory is one for all pages, what is over stays unread."""
        text, reason = "", "unreadable"
        try:
            with self._limited():
                text = normalise(self._reader.pages[number - 1].extract_text())[:MAX_PAGE_CHARACTERS]
                reason = "scanned" if text.strip() else "blank"
        except (Exception, _OutOfTime):  # noqa: BLE001
            pass
        if says_something(text):
            return ParsedPage(number, text, "text", None, self.produced_by)
        return ParsedPage(number, "", "none", cast("PageReason", reason), self.produced_by)

    def instead_of(self, page: ParsedPage) -> ParsedPage:
        """The page with pypdf's text where it finds some, else `page` itself."""
        if self._cpu_seconds <= 0:
            return page
        if self._reader is None:
            try:
                self.open()
            except (CannotRead, MemoryError):
                self._cpu_seconds = 0.0
                return page
        found = self.page(page.number)
        return dataclasses.replace(found, width=page.width, height=page.height) if found.text else page

    def grant(self, cpu_seconds: float) -> None:
        """More time: where pypdf is the only reader, the limits of the whole process are the ones that count."""
        self._cpu_seconds = cpu_seconds

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        started = time.process_time()
        try:
            with _cpu_limit(self._cpu_seconds):
                yield
        finally:
            self._cpu_seconds -= time.process_time() - started


def _read_with_pypdf(path: Path, *, is_locked: bool) -> Iterator[ParseEvent]:
    """Reads a file that pdfium could not open.

    Raises:
        CannotRead: encrypted, damaged or no_pages.
    """
    reader = _SecondReader(path)
    try:
        count = reader.open()
    except CannotRead as error:
        # pdfium saw the lock even if pypdf stumbled before it came to it.
        raise CannotRead("encrypted" if is_locked else error.reason) from error
    yield DocumentInfo("pdf", min(count, MAX_PAGES), "")
    reader.grant(math.inf)
    characters = 0
    for number in range(1, min(count, MAX_PAGES) + 1):
        page = reader.page(number)
        characters += len(page.text)
        if characters > MAX_FILE_CHARACTERS:
            yield ParseEnd("too_much_text")
            return
        yield page
    yield ParseEnd("too_much_text" if count > MAX_PAGES else None)


class _OutOfTime(BaseException):
    """Stops pypdf. Not an Exception, or pypdf's own broad excepts would swallow it."""


@contextlib.contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Raises `_OutOfTime` inside the block when the process has computed for so long; for pure Python code only."""
    started, done = time.process_time(), threading.Event()
    reading, lock = ctypes.c_ulong(threading.get_ident()), threading.Lock()

    def watch() -> None:
        while not done.wait(0.05):
            with lock:
                if not done.is_set() and time.process_time() - started > seconds:
                    # The one way to stop somebody else's Python code that works on every platform.
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(reading, ctypes.py_object(_OutOfTime))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            done.set()
        watcher.join()
