"""A page of a PDF as a picture, with the quote marked: the parent's side, which believes nothing it is given unchecked.

A hostile file is drawn like it is read: in a process of its own that is gone afterwards, under limits, see
`docmind.parse.picture_worker`. Before, the file must still be the bytes that were read; a page of another file would
prove nothing.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from docmind.parse.kinds import kind_of, open_regular
from docmind.parse.parser import ReadingProcess, fingerprint
from docmind.parse.reasons import refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.config import Config
    from docmind.parse.reasons import FileReason

MAX_PIXELS: Final = 4_000_000  # of a picture: more than a screen shows
MAX_SIDE: Final = 8_192  # pixels; a page a hundred times as long as wide stays readable
MAX_JPEG_BYTES: Final = 12 << 20  # noise at the highest size takes 8 MB
MAX_BOXES: Final = 500  # a quote of 400 characters has a dozen lines; a longer list does not fit a command line
KEPT_PICTURES: Final = 24  # 6 MB of ordinary pages
KEPT_CHECKS: Final = 1_000
CPU_SECONDS: Final = 15.0  # of one picture; the slowest of 5,970 pages took 2
STALL_SECONDS: Final = 20.0
_AT_ONCE: Final = threading.BoundedSemaphore(2)  # each may take as much memory as one file may


@dataclass(frozen=True, slots=True)
class PagePicture:
    """A page as it looks, the quote marked. `width` and `height` are pixels of the JPEG."""

    jpeg: bytes
    width: int
    height: int


_Key = tuple[str, int, tuple[tuple[float, ...], ...], float]
_lock = threading.Lock()
_pictures: OrderedDict[_Key, PagePicture] = OrderedDict()
_checked: OrderedDict[tuple[str, int, int], str] = OrderedDict()  # path, size, time of change → SHA-256


def page_picture(
    config: Config, path: Path, page: int, boxes: Sequence[Sequence[float]], *, sha256: str, scale: float = 1.5
) -> PagePicture:
    """A page of a PDF with the boxes of a quote marked.

    Args:
        page: 1-based.
        boxes: [x0, y0, x1, y1] in points of the page as displayed, origin at the top left, as `boxes_for` gives them.
        sha256: Of the bytes that were read; other bytes are not drawn.
        scale: Pixels for a point; less where the picture would have more than `MAX_PIXELS`.

    Raises:
        DocumentError: It cannot be drawn, with a reason from the closed list: not_found, not_readable, encrypted,
            damaged, memory_limit, time_limit, stalled, worker_crashed; changed_while_reading also when the file has
            changed since it was read; unsupported_type for what is not a PDF.
    """
    path = Path(path)
    places = tuple(tuple(round(float(edge), 2) for edge in box[:4]) for box in boxes[:MAX_BOXES])
    key = (sha256, page, places, scale)
    before = fingerprint(path)
    _check_bytes(path, sha256, before)
    with _lock:
        if key in _pictures:
            _pictures.move_to_end(key)
            return _pictures[key]
    if kind_of(path) != "pdf":
        raise refusal("unsupported_type", path, "is not a PDF: its pages have no picture", "Read the page's text.")
    with _AT_ONCE:
        picture = _drawn(config, path, page, places, scale)
    if fingerprint(path) != before:
        raise refusal("changed_while_reading", path)
    with _lock:
        _pictures[key] = picture
        while len(_pictures) > KEPT_PICTURES:
            _pictures.popitem(last=False)
    return picture


def _check_bytes(path: Path, sha256: str, seen: tuple[int, int] | None) -> None:
    """Makes sure that a file still holds the bytes that were read; looked at once for each size and time of change.

    Raises:
        DocumentError: not_found, not_a_file or not_readable; changed_while_reading when it holds other bytes.
    """
    with _lock:
        found = _checked.get((str(path), *seen)) if seen else None
    if found is None:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            try:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            except OSError as error:
                raise refusal("not_readable", path) from error
        found = digest.hexdigest()
        if seen is not None and fingerprint(path) == seen:
            with _lock:
                _checked[str(path), *seen] = found
                while len(_checked) > KEPT_CHECKS:
                    _checked.popitem(last=False)
    if found != sha256:
        hint = "Add it again to read and see its new pages."
        raise refusal("changed_while_reading", path, "has changed since it was added", hint)


def _drawn(config: Config, path: Path, page: int, boxes: Sequence[Sequence[float]], scale: float) -> PagePicture:
    """The picture, from a process of its own."""
    limits = [config.parse_memory_bytes, CPU_SECONDS, MAX_PIXELS, MAX_SIDE]
    command = [sys.executable, "-P", "-m", "docmind.parse.picture_worker", str(page), str(scale)]
    command += [json.dumps(boxes), json.dumps(limits)]
    watched = dataclasses.replace(
        config, parse_cpu_seconds=CPU_SECONDS, parse_cpu_seconds_per_page=0.0, parse_stall_seconds=STALL_SECONDS
    )
    worker = ReadingProcess(command, watched)
    try:
        worker.ask(path.absolute(), "pdf")
        line = next(worker.lines(), None)
        answer = worker.last_words() if line is None else _answer(line)
    finally:
        worker.end()
    if isinstance(answer, str):
        raise refusal(answer, path)
    return answer


def _answer(line: bytes) -> PagePicture | FileReason:
    """What the process said, checked: it has met a hostile file and may be in its hands."""
    try:
        match json.loads(line):
            case {"refused": ("encrypted" | "damaged" | "memory_limit") as reason}:
                return cast("FileReason", reason)
            case {"picture": [int(width), int(height), str(encoded)]} if len(encoded) <= 2 * MAX_JPEG_BYTES:
                jpeg = base64.b64decode(encoded, validate=True)
                is_one = len(jpeg) <= MAX_JPEG_BYTES and (width, height) == jpeg_size(jpeg)
                if is_one and max(width, height) <= MAX_SIDE and width * height <= 1.01 * MAX_PIXELS:
                    return PagePicture(jpeg, width, height)
    except (ValueError, RecursionError, binascii.Error):
        pass
    return "worker_crashed"


def jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels as the frame header says; None when these are not the bytes of a JPEG.

    Source: ITU-T T.81, B.1 and B.2.2.
    """
    if not jpeg.startswith(b"\xff\xd8\xff") or not jpeg.endswith(b"\xff\xd9"):
        return None
    place = 2
    while place + 9 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            return int.from_bytes(jpeg[place + 7 : place + 9]), int.from_bytes(jpeg[place + 5 : place + 7])
        if not 0xC4 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            return None
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return None
