"""The one normalisation of text."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from docmind.parse.normalise import normalise, normalise_codes

# Characters that the rules are about, more often than chance would bring them.
ODD = st.sampled_from("\r\n\t\f \0\x02\x1f\x7f\x85\xa0\xad\u2007\u202f\u2028\ufeff\ufb00\ufb03\ufb06\ufffe\uffff\ufdd0")
TEXTS = st.text(
    st.one_of(ODD, st.characters(), st.characters(categories=["Cs"]), st.sampled_from("\U0001d465\U0001ffff")),
    max_size=60,
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("a\0b\x01c", "abc"),
        ("10\xa0000\u202f$", "10 000 $"),
        ("e\ufb03cient \ufb02ow", "efficient flow"),
        ("x\ud835\udc65y", "x\U0001d465y"),
        ("a\ud835b\udc65", "a\ufffdb\ufffd"),
        ("a\ufffeb\U0010ffff", "a\ufffdb\ufffd"),
        ("line  \t\nnext ", "line\nnext"),
        ("2²½ Å", "2²½ Å"),
        ("co\xadop\ufeff", "coop"),
    ],
)
def test_the_rules_hold(raw, expected):
    """One example for each rule."""
    assert normalise(raw) == expected


@given(TEXTS)
def test_normalising_twice_changes_nothing(text):
    """What is stored can be normalised again at any time."""
    assert normalise(normalise(text)) == normalise(text)


@given(TEXTS)
def test_both_implementations_agree_and_every_character_knows_its_source(text):
    """The path that keeps the boxes tied to the text gives the very same text."""
    codes = np.array([ord(character) for character in text], dtype=np.uint32)
    normalised, source = normalise_codes(codes)
    assert normalised == normalise(text)
    assert len(source) == len(normalised)
    assert all(np.diff(source) >= 0)
    for character, index in zip(normalised, source, strict=True):
        if text[index].isascii() and text[index] not in "\r\x0b":
            assert character == text[index]


@given(TEXTS)
def test_normalised_text_survives_utf8_and_sqlite(text):
    """What is stored comes back letter for letter."""
    stored = normalise(text)
    connection = sqlite3.connect(":memory:")
    try:
        ((back, length),) = connection.execute("SELECT ?1, length(?1)", (stored,)).fetchall()
    finally:
        connection.close()
    assert back == stored
    assert length == len(stored)
