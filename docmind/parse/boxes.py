"""Word boxes in few bytes, and the boxes that a passage of text touches.

A box is a row (start, end, x0, y0, x1, y1): a range of characters of the page's text and a rectangle in points of the
page as displayed, origin at the top left, y downwards. Rows come in the order of the text. A word broken over two
lines has two rows.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_FORMAT: Final = b"B1"
_STEPS_PER_POINT: Final = 100
_ROW_BYTES: Final = 24  # six int32
_MAX_ROWS: Final = 2_000_000  # a page has at most so many characters
_MAX_STEPS: Final = 1 << 28  # farther than any page reaches, and small enough for differences in int32


def pack(boxes: ArrayLike) -> bytes:
    """The boxes as bytes; b"" for none.

    Args:
        boxes: (n, 6) float64 rows (start, end, x0, y0, x1, y1), finite, starts ascending.

    Returns:
        "B1" and zlib of six columns of int32, little-endian, each column stored byte plane by byte plane: start minus
        the previous start, length, then in 1/100 pt x0 minus the previous x1, y0 minus the previous y0, width, height.
    """
    rows = np.asarray(boxes, dtype=np.float64).reshape(-1, 6)
    if len(rows) == 0:
        return b""
    places = np.clip(np.rint(rows[:, 2:] * _STEPS_PER_POINT), -_MAX_STEPS, _MAX_STEPS).astype(np.int64)
    ranges = rows[:, :2].astype(np.int64)
    columns = np.empty((6, len(rows)), dtype="<i4")
    columns[0] = np.diff(ranges[:, 0], prepend=0)
    columns[1] = ranges[:, 1] - ranges[:, 0]
    columns[2] = places[:, 0] - np.concatenate(([0], places[:-1, 2]))
    columns[3] = np.diff(places[:, 1], prepend=0)
    columns[4] = places[:, 2] - places[:, 0]
    columns[5] = places[:, 3] - places[:, 1]
    planes = columns.view(np.uint8).reshape(6, len(rows), 4).transpose(0, 2, 1)
    return _FORMAT + zlib.compress(planes.tobytes(), 3)  # level 3: a quarter of the time of 6 for 4 % more bytes


def unpack(blob: bytes) -> NDArray[np.float64]:
    """The boxes that `pack` packed.

    Returns:
        (n, 6) float64 rows (start, end, x0, y0, x1, y1); coordinates to 1/100 pt.

    Raises:
        ValueError: The bytes are damaged.
    """
    if not blob:
        return np.empty((0, 6))
    if not blob.startswith(_FORMAT):
        raise ValueError("The word boxes are damaged: unknown format.")
    inflater = zlib.decompressobj()
    try:
        # Bounded: a few bytes of zlib can claim to be gigabytes.
        planes = inflater.decompress(blob[len(_FORMAT) :], _MAX_ROWS * _ROW_BYTES)
    except zlib.error as error:
        raise ValueError("The word boxes are damaged.") from error
    if not inflater.eof or inflater.unused_data or not planes or len(planes) % _ROW_BYTES:
        raise ValueError("The word boxes are damaged: cut off.")
    count = len(planes) // _ROW_BYTES
    columns = np.frombuffer(planes, np.uint8).reshape(6, 4, count).transpose(0, 2, 1).copy().view("<i4")[:, :, 0]
    steps = columns.astype(np.int64)
    rows = np.empty((count, 6))
    rows[:, 0] = np.cumsum(steps[0])
    rows[:, 1] = rows[:, 0] + steps[1]
    # x1 is x0 + width and the next x0 is that x1 + its difference, so x1 is one running sum.
    right = np.cumsum(steps[2] + steps[4])
    top = np.cumsum(steps[3])
    rows[:, 2] = (right - steps[4]) / _STEPS_PER_POINT
    rows[:, 3] = top / _STEPS_PER_POINT
    rows[:, 4] = right / _STEPS_PER_POINT
    rows[:, 5] = (top + steps[5]) / _STEPS_PER_POINT
    if (steps[0] < 0).any() or (steps[1] <= 0).any() or (steps[4:] < 0).any():
        raise ValueError("The word boxes are damaged: not in order.")
    return rows


def boxes_for(blob: bytes, start: int, end: int) -> list[list[float]]:
    """The rectangles to mark for the characters [start, end) of a page: whole words, one rectangle per line.

    Returns:
        [x0, y0, x1, y1] in points of the page as displayed, in the order of the text; [] when nothing is touched.

    Raises:
        ValueError: The bytes are damaged.
    """
    rows = unpack(blob)
    lines: list[list[float]] = []
    for x0, y0, x1, y1 in rows[(rows[:, 0] < end) & (rows[:, 1] > start), 2:].tolist():
        if lines and _same_line(lines[-1], y0, y1):
            last = lines[-1]
            lines[-1] = [min(last[0], x0), min(last[1], y0), max(last[2], x1), max(last[3], y1)]
        else:
            lines.append([x0, y0, x1, y1])
    return lines


def _same_line(line: list[float], y0: float, y1: float) -> bool:
    """Whether a word stands on the line: they share more than half the height of the lower of the two."""
    shared = min(line[3], y1) - max(line[1], y0)
    return shared > 0.5 * min(line[3] - line[1], y1 - y0)
