"""TXT and Markdown."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docmind.parse import DocumentInfo, ParsedPage, ParseEnd
from docmind.parse.normalise import normalise
from docmind.parse.pages import CannotRead
from docmind.parse.text import PAGE_CHARACTERS, decode, read_text, split_pages

PIECES = st.lists(
    st.one_of(
        st.sampled_from(["\n", "\n\n", "\f", " ", "\r\n", "\n\f\n"]),
        st.text(max_size=20),
        st.builds(
            lambda letter, times: letter * times, st.sampled_from(["a", "word ", "line\n"]), st.integers(1, 9000)
        ),
    ),
    max_size=12,
).map("".join)


@given(PIECES)
def test_joining_the_pages_restores_the_text_without_form_feeds(raw):
    """Nothing is lost or doubled where a text is cut, and each page knows where it begins."""
    text = normalise(raw)
    pages = split_pages(text)
    assert "".join(page for _, page in pages) == text.replace("\f", "")
    assert all(text.startswith(page, start) for start, page in pages)
    assert all(len(page) <= PAGE_CHARACTERS for _, page in pages)
    assert all(page for _, page in pages) or len(pages) == 1


def test_a_long_text_is_cut_at_paragraphs_then_lines_then_words():
    """A cut never parts a word that could be kept whole."""
    paragraphs = ("word " * 300).strip() + "\n\n"
    assert all(page.endswith("\n\n") for _, page in split_pages(paragraphs * 20))
    lines = ("word " * 20).strip() + "\n"
    assert all(page.endswith("\n") for _, page in split_pages(lines * 300))
    assert all(page.endswith("word ") for _, page in split_pages("word " * 5000))
    assert [len(page) for _, page in split_pages("x" * 15_000)] == [6000, 6000, 3000]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
        ("cp1252", b""),
    ],
)
def test_a_text_is_decoded_whatever_its_encoding(encoding, mark):
    """By the mark, by being valid UTF-8, or by the best guess."""
    text = "Die Straße führt über die Brücke zum größten Gebäude der schönen Stadt.\n" * 30
    assert decode(mark + text.encode(encoding)) == text


def test_a_few_damaged_bytes_do_not_turn_utf8_into_another_encoding():
    """One broken character stays one broken character."""
    data = "Ärger mit Öl für über größere Öfen.\n".encode() * 20
    assert decode(data + b"\xff\n").count("Ä") == 20


@pytest.mark.parametrize(
    "data", [bytes(range(256)) * 20, b"\x00\x01\x02" * 100, b"text" + b"\x00" * 200, b"\x01\x05" * 50]
)
def test_bytes_that_are_no_text_are_refused(data):
    """A program renamed to .txt is not stored as gibberish."""
    with pytest.raises(CannotRead, match="wrong_type"):
        decode(data)


def test_markdown_has_a_title_and_an_outline_with_pages(tmp_path):
    """Headings in code are none; front matter wins over the first heading."""
    path = tmp_path / "notes.md"
    body = "# First *one*\n\n```\n# not a heading\n```\n" + "text\n" * 2000 + "## Second ##\nend\n"
    path.write_text(body)
    info, *pages, end = read_text(path, "markdown")
    assert info == DocumentInfo("markdown", 2, "First *one*", ((1, "First *one*"), (2, "Second")))
    assert [page.number for page in pages] == [1, 2]
    assert all(isinstance(page, ParsedPage) and page.source == "text" for page in pages)
    assert end == ParseEnd()
    path.write_text('---\ntitle: "The title"\n---\n' + body)
    info, *_ = read_text(path, "markdown")
    assert info.title == "The title"


def test_a_plain_text_has_no_title_and_form_feeds_end_its_pages(tmp_path):
    """A form feed belongs to no page, and an empty page is not kept."""
    path = tmp_path / "printout.txt"
    path.write_bytes(b"one\n\ftwo\n\f\fthree\n\f")
    info, *pages, _ = read_text(path, "text")
    assert info == DocumentInfo("text", 3, "")
    assert [page.text for page in pages] == ["one\n", "two\n", "three\n"]


def test_a_text_of_blanks_is_one_blank_page(tmp_path):
    """Ingestion can say that there is nothing to read."""
    path = tmp_path / "blank.txt"
    path.write_text(" \n\n\t\n")
    _, page, end = read_text(path, "text")
    assert (page.source, page.reason, end.reason) == ("none", "blank", None)
