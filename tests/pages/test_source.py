"""The pane that shows where a quote was copied from, in each of its states."""

from __future__ import annotations

import functools
import html
import re
import sqlite3

import cited
import pytest
from streamlit.testing.v1 import AppTest

from pages.parts import source
from pages.parts.listener import _chip

QUOTE = "The harbour of Ellmere handled 48,200 containers in 2023."
NOTE = "<b>Bees</b> & [honey](http://evil.example) need 20 kg of :smile: $x$."


def script(home, citations, is_running):
    """The part of a chat page that shows a source."""
    from pathlib import Path

    import streamlit as st

    from docmind.config import Config
    from docmind.library import Library
    from pages.parts.source import draw_source

    opened = st.session_state.get("source")
    if opened is None:
        st.text("no source is open")
    else:
        draw_source(Library(Config(home=Path(home))), citations, opened["index"], is_running=is_running)


def page_script(home, document_id, number):
    """The part of the documents page that shows one page."""
    from pathlib import Path

    from docmind.config import Config
    from docmind.library import Library
    from pages.parts.source import draw_page

    draw_page(Library(Config(home=Path(home))), document_id, number)


@pytest.fixture
def put(library):
    """Puts a file into this test's library."""
    return functools.partial(cited.put, library)


@pytest.fixture
def cite(library):
    """Makes a citation of a document of this test's library."""
    return functools.partial(cited.cite, library)


@pytest.fixture
def report(write_pdf, put):
    """A PDF of two pages: its path and id."""
    pages = [["Harbour report", QUOTE, "More follows."], ["The director is Marta Oldenburg."]]
    path = write_pdf("harbour *report*.pdf", pages)
    return path, put(path)


@pytest.fixture
def note(tmp_path, put):
    """A Markdown file: its path and id."""
    path = tmp_path / "note.md"
    path.write_text(f"# Note\n\nFirst words.\n\n{NOTE}\n\nLast words.\n", encoding="utf-8")
    return path, put(path)


@pytest.fixture
def show(library):
    """Draws the pane for citations and gives the page."""

    def run(citations, index=0, *, is_running=False, zoom=1.0):
        page = AppTest.from_function(
            script, default_timeout=60, kwargs={
                "home": str(library.config.home), "citations": citations, "is_running": is_running,
            }
        )  # fmt: skip
        page.session_state["source"] = {"message": 7, "index": index, "zoom": zoom}
        page.run()
        assert not page.exception
        return page

    return run


def bodies(page):
    """All HTML on the page but styles."""
    return "\n".join(e.proto.body for e in page.get("html") if not e.proto.body.startswith("<style>"))


def pictures(page):
    """All pictures on the page."""
    return [image for element in page.get("image") for image in element.proto.imgs]


def captions(page):
    """All captions as one text, as a reader sees them."""
    return re.sub(r"\\(.)|\u2060", r"\1", " ".join(caption.value for caption in page.caption))


def test_a_quote_of_a_pdf_is_shown_on_its_page(show, cite, report):
    """Name and page, the picture, the exact quote, where the file is, and the page's text."""
    path, document_id = report
    page = show([cite(document_id, QUOTE)])
    assert page.markdown[0].value == "harbour \\*report\\*.pdf · page 1"
    [picture] = pictures(page)
    assert picture.alt == "Page 1 of harbour *report*.pdf, the quote marked"
    assert f"“{QUOTE}”" in bodies(page)
    assert "Page 1, copied letter for letter" in bodies(page)
    assert html.escape(str(path)) in bodies(page)
    [text] = page.expander
    assert text.label == "Open page text"
    assert f"<mark>{QUOTE}</mark>" in bodies(page)
    assert "Quote 1 of 1" in [markdown.value for markdown in page.markdown]
    assert page.button(key="source-previous").disabled
    assert page.button(key="source-next").disabled
    assert not page.caption
    assert not page.warning


def test_the_other_quotes_are_a_button_or_an_arrow_key_away(show, cite, report, note):
    """Forward to the end, back to the beginning; the chat page's state follows."""
    citations = [
        cite(report[1], QUOTE),
        cite(report[1], "Marta Oldenburg", page=2, number=2),
        cite(note[1], NOTE, number=3),
    ]
    page = show(citations)
    assert page.button(key="source-next").proto.shortcut == "right"
    assert page.button(key="source-previous").proto.shortcut == "left"
    page.button(key="source-next").click().run()
    assert "“Marta Oldenburg”" in bodies(page)
    assert page.markdown[0].value.endswith("· page 2")
    page.button(key="source-next").click().run()
    assert page.session_state["source"]["index"] == 2
    assert page.markdown[0].value == "note.md · page 1"
    assert page.button(key="source-next").disabled
    page.button(key="source-previous").click().run()
    assert page.session_state["source"] == {"message": 7, "index": 1, "zoom": 1.0}
    assert not page.exception


def test_the_page_can_be_made_larger_and_smaller(show, cite, report):
    """In steps, between half and three times the width of the pane; a larger one is drawn anew and stays crisp."""
    page = show([cite(report[1], QUOTE)])
    before = pictures(page)[0].url
    for zoom, words in ((1.25, "125 %"), (1.5, "150 %"), (2.0, "200 %"), (3.0, "300 %")):
        page.button(key="source-larger").click().run()
        assert page.session_state["source"]["zoom"] == zoom
        assert words in [markdown.value for markdown in page.markdown]
    assert page.button(key="source-larger").disabled
    assert pictures(page)[0].url != before
    assert any("width: 300%" in element.proto.body for element in page.get("html"))
    for _ in range(6):
        page.button(key="source-smaller").click().run()
    assert page.session_state["source"]["zoom"] == 0.5
    assert page.button(key="source-smaller").disabled


def test_closing_leaves_the_chat_alone(show, cite, report):
    """Escape closes, but while an answer is written Escape belongs to its Stop button."""
    page = show([cite(report[1], QUOTE)], is_running=True)
    assert page.button(key="source-close").proto.shortcut == ""
    page = show([cite(report[1], QUOTE)])
    assert page.button(key="source-close").proto.shortcut == "escape"
    page.button(key="source-close").click().run()
    assert "source" not in page.session_state
    assert [text.value for text in page.text] == ["no source is open"]
    assert not page.button


def test_a_text_file_is_shown_as_its_letters_with_the_quote_marked(show, cite, note):
    """No markup of it comes alive, and the pane says why there is no picture."""
    page = show([cite(note[1], NOTE)], zoom=1.5)
    assert pictures(page) == []
    assert captions(page) == "A text file has no pages to picture: this is its text."
    assert f"<mark>{html.escape(NOTE)}</mark>" in bodies(page)
    assert "First words." in bodies(page)
    assert "Last words." in bodies(page)
    assert "font-size: 1.5rem" in bodies(page)
    assert not page.expander


def test_of_a_long_text_the_part_around_the_quote_is_shown(show, cite, library, insert):
    """And the pane says which part of how much."""
    text = "".join(f"Line {number} of a long text.\n" for number in range(4_000))
    document_id = insert(library, "long.txt", [text])
    page = show([cite(document_id, "Line 2000 of a long text.")])
    assert "<mark>Line 2000 of a long text.</mark>" in bodies(page)
    assert len(bodies(page)) < 3 * source.TEXT_AROUND
    note = re.search(r"The part around the quote: characters ([\d,]+) to ([\d,]+) of ([\d,]+)\.", bodies(page))
    first, last, total = (int(number.replace(",", "")) for number in note.groups())
    assert total == len(text)
    assert text[first - 1 : last].replace("\n", "") in re.sub(r"</?mark>|\n", "", bodies(page))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("gone", "harbour *report*.pdf is not there. Check the path"),
        ("changed", "harbour *report*.pdf has changed since it was added. Add it again"),
        ("folder", "harbour *report*.pdf is a folder"),
    ],
)
def test_without_its_file_the_stored_text_is_shown(show, cite, report, what, words):
    """Gone, other bytes, or no file any more: one sentence why, and the quote marked in the text."""
    path, document_id = report
    citation = cite(document_id, QUOTE)
    content = path.read_bytes()
    path.unlink()
    if what == "changed":
        path.write_bytes(content.replace(b"2023", b"2024") + b"\n")
    if what == "folder":
        path.mkdir()
    page = show([citation])
    assert pictures(page) == []
    assert captions(page).startswith(f"No picture, only the text: {words}")
    assert f"<mark>{QUOTE}</mark>" in bodies(page)
    assert f"“{QUOTE}”" in bodies(page)


def test_a_removed_document_says_so(show, cite, report, library):
    """Whether it went before the chat was opened (the quote is empty then) or a moment ago."""
    citation = cite(report[1], QUOTE)
    page = show([{**citation, "quote": "", "boxes": []}])
    assert page.info[0].value.startswith("harbour \\*report\\*.pdf was removed from your library")
    assert QUOTE not in bodies(page)
    library.remove([report[1]])
    page = show([citation])
    assert page.info[0].value.startswith("harbour \\*report\\*.pdf was removed from your library")
    assert page.button(key="source-close")


def test_a_page_that_was_read_anew_says_so(show, cite, note):
    """An amber line; the quote is marked where it stands now, or shown alone when it stands nowhere."""
    citation = cite(note[1], NOTE)
    page = show([{**citation, "page_sha256": "0" * 64, "start": 3, "end": 3 + len(NOTE)}])
    assert any("This page has changed since" in m.value and "orange" in m.value for m in page.markdown)
    assert f"<mark>{html.escape(NOTE)}</mark>" in bodies(page)
    page = show([{**citation, "page_sha256": "0" * 64, "quote": "Words of long ago.", "start": 0, "end": 18}])
    assert "<mark>" not in bodies(page)
    assert "“Words of long ago.”" in bodies(page)


def test_a_damaged_page_is_an_error_beside_the_quote(show, cite, report, library):
    """The stored text does not match its hash: nothing of it is shown, the quote itself is."""
    citation = cite(report[1], QUOTE)
    with sqlite3.connect(library.path) as db:
        db.execute("UPDATE pages SET text = 'altered' WHERE page = 1")
    db.close()
    page = show([citation])
    assert len(page.error) == 1
    assert "altered" not in bodies(page)
    assert f"“{QUOTE}”" in bodies(page)


def test_an_index_out_of_range_shows_the_nearest(show, cite, report):
    """A message may have fewer citations than another tab remembers."""
    page = show([cite(report[1], QUOTE), cite(report[1], "More follows.", number=2)], index=9)
    assert "“More follows.”" in bodies(page)


def test_letters_of_a_page_cannot_turn_the_words_around():
    """Controls and direction overrides of a page's text are not shown, everything else is."""
    assert source._letters("a\u202eb\x00c\t<d>\n") == "ab c\t&lt;d&gt;\n"


def test_a_page_alone_is_its_picture_or_its_text(library, report, note):
    """For the documents page: no quote, no marker."""

    def draw(document_id, number):
        keywords = {"home": str(library.config.home), "document_id": document_id, "number": number}
        page = AppTest.from_function(page_script, default_timeout=60, kwargs=keywords).run()
        assert not page.exception
        return page

    page = draw(report[1], 2)
    assert [picture.alt for picture in pictures(page)] == ["Page 2 of harbour *report*.pdf"]
    assert bodies(page) == ""
    page = draw(note[1], 1)
    assert pictures(page) == []
    assert html.escape(NOTE) in bodies(page)
    report[0].unlink()
    page = draw(report[1], 2)
    assert "is not there" in captions(page)
    assert "Marta Oldenburg" in bodies(page)


@pytest.mark.parametrize(
    ("said", "chip"),
    [
        ({"message": 12, "number": 3, "at": 1}, (12, 3)),
        (None, None),
        ("x", None),
        ({"message": "12", "number": 3}, None),
        ({"message": -1, "number": 3}, None),
        ({"message": 1.5, "number": 3}, None),
        ({"number": 3}, None),
    ],
    ids=str,
)
def test_only_two_numbers_are_a_click(said, chip):
    """What a browser sends may be anything."""
    assert _chip(said) == chip
