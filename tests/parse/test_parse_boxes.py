"""Word boxes in few bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from docmind.parse.boxes import boxes_for, pack, unpack


@st.composite
def word_rows(draw):
    """Rows as a page has them: ranges in order, rectangles anywhere."""
    rows, start = [], 0
    for _ in range(draw(st.integers(1, 20))):
        start += draw(st.integers(0, 30))
        length = draw(st.integers(1, 30))
        x0, y0 = (draw(st.floats(-2000, 20_000, width=32)) for _ in range(2))
        width, height = (draw(st.floats(0, 500, width=32)) for _ in range(2))
        rows.append((start, start + length, x0, y0, x0 + width, y0 + height))
        start += length
    return rows


@given(word_rows())
def test_boxes_come_back_to_a_hundredth_of_a_point(rows):
    """Packing keeps the ranges exactly and the places closely."""
    back = unpack(pack(rows))
    assert (back[:, :2] == np.array(rows)[:, :2]).all()
    assert np.abs(back - np.array(rows)).max() <= 0.00501


def test_no_boxes_are_no_bytes():
    """A page without words needs no room."""
    assert pack([]) == b""
    assert unpack(b"").shape == (0, 6)
    assert boxes_for(b"", 0, 10) == []


@given(word_rows(), st.data())
def test_damaged_bytes_raise_value_error_and_nothing_else(rows, data):
    """Cut off, changed or invented bytes never crash the reader."""
    blob = bytearray(pack(rows))
    place = data.draw(st.integers(0, len(blob) - 1))
    for damaged in (bytes(blob[:place]), bytes(blob[:place]) + b"\xff" + bytes(blob[place + 1 :]), b"B1" + bytes(blob)):
        with contextlib.suppress(ValueError):
            unpack(damaged)
    with pytest.raises(ValueError, match="damaged"):
        unpack(bytes(blob[:-1]))
    with pytest.raises(ValueError, match="damaged"):
        unpack(bytes(blob) + b"more")


def test_a_passage_is_marked_by_whole_words_one_rectangle_per_line():
    """Words of one line become one rectangle, a word of the next line another."""
    #   "one two" on the first line, "three" on the second
    blob = pack([(0, 3, 10, 10, 30, 20), (4, 7, 35, 11, 55, 19), (8, 13, 10, 25, 40, 35)])
    assert boxes_for(blob, 0, 13) == [[10, 10, 55, 20], [10, 25, 40, 35]]
    assert boxes_for(blob, 5, 6) == [[35, 11, 55, 19]]
    assert boxes_for(blob, 3, 4) == []
    assert boxes_for(blob, 2, 9) == [[10, 10, 55, 20], [10, 25, 40, 35]]
