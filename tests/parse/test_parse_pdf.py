"""PDF text and the boxes of its words, against files whose every place is known."""

from __future__ import annotations

import ctypes

import numpy as np
import pypdf
import pypdfium2 as pdfium
import pytest
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from docmind.parse import DocumentInfo, ParsedPage, ParseEnd
from docmind.parse.boxes import boxes_for, unpack
from docmind.parse.normalise import normalise
from docmind.parse.pages import MAX_TITLE, CannotRead
from docmind.parse.pdf import PRODUCED_BY, read_pdf

SIZE = 12  # points of the font in these files


def _read(path):
    """(info, pages, end) of a file."""
    info, *pages, end = read_pdf(path)
    assert isinstance(info, DocumentInfo)
    assert all(isinstance(page, ParsedPage) for page in pages)
    assert isinstance(end, ParseEnd)
    return info, pages, end


def _canvas(path, size=(612, 792)):
    canvas = Canvas(str(path), pagesize=size)
    canvas.setFont("Helvetica", SIZE)
    return canvas


def _words(page):
    """[(word, x0, y0, x1, y1)] as the boxes say."""
    return [(page.text[int(start) : int(end)], *place) for start, end, *place in unpack(page.boxes).tolist()]


def _width(text):
    return pdfmetrics.stringWidth(text, "Helvetica", SIZE)


def _assert_word_at(row, word, x, baseline):
    """The box of `row` holds the word drawn at `x` on `baseline`, counted from the top, and little more."""
    found, x0, y0, x1, y1 = row
    assert found == word
    assert x0 == pytest.approx(x, abs=1.5)
    assert x1 == pytest.approx(x + _width(word), abs=1.5)
    assert baseline - 1.3 * SIZE < y0 < baseline - 0.5 * SIZE
    assert baseline <= y1 < baseline + 0.5 * SIZE


def _ink(path, number=1):
    """(height, width) bool: where the page as displayed is dark, a pixel for each point; pdfium's own drawing."""
    document = pdfium.PdfDocument(path)
    try:
        picture = document[number - 1].render(scale=1, grayscale=True)
        return picture.to_numpy().reshape(picture.height, picture.width).copy() < 128
    finally:
        document.close()


def _assert_boxes_cover_the_ink(path, page):
    """Every dark pixel lies in a box and every box has dark pixels: the boxes are those of the page as displayed."""
    ink = _ink(path)
    assert ink.shape == (round(page.height), round(page.width))
    covered = np.zeros_like(ink)
    for _, _, x0, y0, x1, y1 in unpack(page.boxes).tolist():
        part = tuple(slice(max(0, int(low) - 1), int(np.ceil(high)) + 1) for low, high in ((y0, y1), (x0, x1)))
        assert ink[part].any()
        covered[part] = True
    assert ink.any()
    assert not (ink & ~covered).any()


def test_words_are_where_they_were_drawn(tmp_path):
    """Offsets lead to the words, boxes to their places, from the top left."""
    path = tmp_path / "simple.pdf"
    canvas = _canvas(path)
    canvas.drawString(72, 700, "Revenue grew")
    canvas.drawString(300, 100, "by 308 points")
    canvas.save()
    info, [page], end = _read(path)
    assert (info.kind, info.pages, end.reason) == ("pdf", 1, None)
    assert (page.number, page.source, page.reason, page.produced_by) == (1, "text", None, PRODUCED_BY)
    assert (page.width, page.height) == (612, 792)
    assert page.text.split() == ["Revenue", "grew", "by", "308", "points"]
    rows = _words(page)
    _assert_word_at(rows[0], "Revenue", 72, 792 - 700)
    _assert_word_at(rows[1], "grew", 72 + _width("Revenue "), 792 - 700)
    _assert_word_at(rows[3], "308", 300 + _width("by "), 792 - 100)
    _assert_boxes_cover_the_ink(path, page)


def test_columns_keep_their_own_boxes(tmp_path):
    """A passage in the right column is marked in the right column only."""
    path = tmp_path / "columns.pdf"
    canvas = _canvas(path)
    for x, word in ((60, "left"), (330, "right")):
        text = canvas.beginText(x, 700)
        for line in range(10):
            text.textLine(f"{word}{line} more words here")
        canvas.drawText(text)
    canvas.save()
    _, [page], _ = _read(path)
    start = page.text.index("right3")
    [box] = boxes_for(page.boxes, start, start + len("right3 more"))
    assert box[0] == pytest.approx(330, abs=1.5)
    assert box[2] == pytest.approx(330 + _width("right3 more"), abs=1.5)
    _assert_boxes_cover_the_ink(path, page)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, (50, 80, 550, 700)])
def test_boxes_follow_rotation_and_crop(tmp_path, rotation, crop):
    """Boxes are those of the page as displayed: turned, and counted from the corner of what is shown."""
    plain, path = tmp_path / "plain.pdf", tmp_path / "turned.pdf"
    canvas = _canvas(plain)
    canvas.drawString(100, 600, "Alpha beta")
    canvas.drawString(400, 150, "gamma")
    canvas.save()
    writer = pypdf.PdfWriter(clone_from=plain)
    if crop:
        writer.pages[0].cropbox = pypdf.generic.RectangleObject(crop)
    writer.pages[0].rotate(rotation)
    writer.write(path)
    _, [page], _ = _read(path)
    left, bottom, right, top = crop or (0, 0, 612, 792)
    size = (right - left, top - bottom)
    assert (page.width, page.height) == (size if rotation % 180 == 0 else size[::-1])
    # Where the point in the middle of "Alpha" is displayed, by hand.
    x, y = 100 + _width("Alpha") / 2 - left, 600 + SIZE / 3 - bottom
    shown = {0: (x, size[1] - y), 90: (y, x), 180: (size[0] - x, y), 270: (size[1] - y, size[0] - x)}[rotation]
    word, x0, y0, x1, y1 = _words(page)[0]
    assert word == "Alpha"
    assert x0 < shown[0] < x1
    assert y0 < shown[1] < y1
    _assert_boxes_cover_the_ink(path, page)


def test_boxes_follow_a_media_box_that_begins_elsewhere(write_pages):
    """The corner of the page need not be 0, 0."""
    content = b"BT /F1 20 Tf 40 160 Td (Corner) Tj ET"
    path = write_pages([content], page_entries=b"/CropBox [-100 100 400 500]")
    path.write_bytes(path.read_bytes().replace(b"/MediaBox [0 0 612 792]", b"/MediaBox [-50 90 612 792]"))
    _, [page], _ = _read(path)
    assert (page.width, page.height) == (450, 400)
    _assert_boxes_cover_the_ink(path, page)


@pytest.mark.parametrize("angle", [30, 90, 180])
def test_slanted_and_vertical_words_are_marked_too(tmp_path, angle):
    """Text may run in any direction on the page."""
    path = tmp_path / "slanted.pdf"
    canvas = _canvas(path)
    canvas.translate(300, 400)
    canvas.rotate(angle)
    canvas.drawString(0, 0, "Vertical words")
    canvas.save()
    _, [page], _ = _read(path)
    assert page.text.split() == ["Vertical", "words"]
    assert len(_words(page)) == 2
    _assert_boxes_cover_the_ink(path, page)


def test_a_word_broken_by_its_own_hyphen_keeps_it_and_has_a_box_on_each_line(tmp_path):
    """A line that ends after the hyphen of "forward-looking" does not make another word of it."""
    path = tmp_path / "hyphen.pdf"
    canvas = _canvas(path)
    canvas.drawString(72, 700, "This has forward-")
    canvas.drawString(72, 685, "looking statements")
    canvas.save()
    _, [page], _ = _read(path)
    assert page.text.split() == ["This", "has", "forward-looking", "statements"]
    rows = _words(page)
    _assert_word_at(rows[2], "forward-", 72 + _width("This has "), 92)
    _assert_word_at(rows[3], "looking", 72, 107)
    start = page.text.index("forward")
    assert len(boxes_for(page.boxes, start, start + len("forward-looking"))) == 2
    _assert_boxes_cover_the_ink(path, page)


def test_a_word_broken_by_a_typesetter_is_joined(tmp_path):
    """The page's own spelling decides, and where it has none, how many words are broken."""
    path = tmp_path / "typeset.pdf"
    canvas = _canvas(path)
    text = canvas.beginText(72, 700)
    for line in [
        "An example of trace-",
        "based compil-",
        "ation and opti-",
        "mization with infor-",
        "mation, an exam-",
    ]:
        text.textLine(line)
    text.textLine("ple, trace-based, of Non-")
    text.textLine("Recurring things")
    canvas.drawText(text)
    canvas.save()
    _, [page], _ = _read(path)
    assert " ".join(page.text.split()) == (
        "An example of trace-based compilation and optimization with information, an example, trace-based, of"
        " Non-Recurring things"
    )


def test_ligatures_become_letters_that_share_a_box(write_codes):
    """The ligature glyph stands for two letters; both offsets lead to the same rectangle."""
    path = write_codes(["0065", "FB03", "0020", "FB01", "006E"])
    _, [page], _ = _read(path)
    assert page.text == "effi fin"
    [first] = boxes_for(page.boxes, 1, 2)
    assert boxes_for(page.boxes, 2, 3) == boxes_for(page.boxes, 3, 4) == [first]
    assert [row[0] for row in _words(page)] == ["effi", "fin"]


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (["0061", "D835DC65", "0062"], "a\U0001d465b"),
        (["0061", "D835", "0062"], "a\ufffdb"),
        (["0061", "0000", "0062", "0001"], "ab"),
        (["0061", "00A0", "0062", "202F", "0063"], "a b c"),
        (["0061", "FDD0", "0062"], "a\ufffdb"),
        (["0391", "03B1", "0416", "05D0"], "Ααא"),
    ],
    ids=["astral", "lone surrogate", "controls", "spaces", "non-character", "other alphabets"],
)
def test_odd_characters_are_stored_so_that_they_survive(write_codes, codes, text):
    """Whatever a font claims its glyphs mean, the text is normalised and encodes to UTF-8."""
    _, [page], _ = _read(write_codes(codes))
    if text == "Ααא":
        assert sorted(page.text) == sorted("ΑαЖא")
    else:
        assert page.text == text
    assert normalise(page.text) == page.text
    page.text.encode("utf-8")
    assert unpack(page.boxes)[-1, 1] == len(page.text)


def test_a_page_whose_letters_mean_nothing_counts_as_scanned(write_codes):
    """Private characters are no text that anyone could search."""
    _, [page], _ = _read(write_codes(["E001", "E002", "F8FF"]))
    assert (page.text, page.source, page.reason) == ("", "none", "scanned")


def test_chinese_and_embedded_fonts_are_read(tmp_path):
    """Text that is not Latin has words and boxes as well."""
    path = tmp_path / "chinese.pdf"
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    pdfmetrics.registerFont(TTFont("Vera", "Vera.ttf"))
    canvas = _canvas(path)
    canvas.setFont("STSong-Light", 16)
    canvas.drawString(72, 700, "今天天气很好")
    canvas.setFont("Vera", 16)
    canvas.drawString(72, 600, "größer façade")
    canvas.save()
    _, [page], _ = _read(path)
    assert page.text.split() == ["今天天气很好", "größer", "façade"]
    [box] = boxes_for(page.boxes, 0, 3)
    assert box[0] == pytest.approx(72, abs=2)
    assert box[2] == pytest.approx(72 + 6 * 16, abs=4)


def test_every_word_of_the_text_has_a_box_and_no_blank_has_one(tmp_path):
    """The boxes and the text tell the same words, in the same order."""
    path = tmp_path / "many.pdf"
    canvas = _canvas(path)
    text = canvas.beginText(50, 750)
    for line in range(50):
        text.textLine(f"Line {line}: the total (net) was ${line * 1000:,} in 20{line:02d} — and so on")
    canvas.drawText(text)
    canvas.save()
    _, [page], _ = _read(path)
    assert [row[0] for row in _words(page)] == page.text.split()
    assert normalise(page.text) == page.text


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (b"", "blank"),
        (b"72 72 m 500 72 l S", "blank"),
        (b"q 612 0 0 792 0 0 cm BI /W 1 /H 1 /BPC 8 /CS /G ID \x80 EI Q", "scanned"),
        (b"q 10 0 0 10 0 0 cm BI /W 1 /H 1 /BPC 8 /CS /G ID \x80 EI Q", "blank"),
        (b"".join(b"%d 72 m %d 90 l S\n" % (x, x) for x in range(100, 500, 4)), "scanned"),
    ],
    ids=["nothing", "a rule", "a picture", "a dot", "drawn letters"],
)
def test_a_page_without_text_says_why(write_pages, drawn, reason):
    """Blank pages need nothing, scanned ones need text recognition."""
    _, [page], _ = _read(write_pages([drawn]))
    assert (page.text, page.source, page.reason, page.boxes) == ("", "none", reason, b"")
    assert (page.width, page.height) == (612, 792)


def test_title_and_outline_come_with_page_numbers(tmp_path):
    """Bookmarks lead to 1-based pages, in order."""
    path = tmp_path / "outline.pdf"
    canvas = _canvas(path)
    canvas.setTitle("Annual\nReport \x00 2024")
    for number, (heading, level) in enumerate([("One", 0), ("One.A", 1), ("Two", 0)]):
        canvas.drawString(72, 700, f"page {number}")
        canvas.bookmarkPage(heading)
        canvas.addOutlineEntry(heading, heading, level)
        canvas.showPage()
    canvas.save()
    info, pages, _ = _read(path)
    assert info.title == "Annual Report 2024"
    assert info.outline == ((1, "One"), (2, "One.A"), (3, "Two"))
    assert len(pages) == info.pages == 3


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Microsoft Word - report_final.doc", ""),
        ("Microsoft Word - Annual Report", "Annual Report"),
        ("untitled", ""),
        ("Untitled-3", ""),
        ("10-K_2018.pdf", ""),
        ("PowerPoint Presentation", ""),
        ("---", ""),
        ("a" * 1000, "a" * MAX_TITLE),
        ("Node.js in practice", "Node.js in practice"),
        ("Ünïcode \u202f title", "Ünïcode title"),
    ],
)
def test_titles_that_programs_made_up_are_dropped(tmp_path, title, expected):
    """The file's name says more than "untitled"."""
    path = tmp_path / "titled.pdf"
    canvas = _canvas(path)
    canvas.setTitle(title)
    canvas.drawString(72, 700, "text")
    canvas.save()
    assert _read(path)[0].title == expected


def test_an_outline_that_leads_back_into_itself_ends(write_pdf):
    """A damaged outline costs its entries, not the document."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] >>"
    item = b"<< /Title (round) /Parent 4 0 R /Next 5 0 R /First 5 0 R /Dest [3 0 R /Fit] >>"
    catalog = b"<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>"
    tree = b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"
    path = write_pdf([catalog, tree, page, b"<< /First 5 0 R /Last 5 0 R >>", item])
    info, pages, _ = _read(path)
    assert info.outline in (((1, "round"),), ())
    assert len(pages) == 1


def test_a_password_of_the_owner_only_does_not_lock_the_reader_out(tmp_path):
    """Printing may be forbidden; reading is not."""
    plain, path = tmp_path / "plain.pdf", tmp_path / "owner.pdf"
    canvas = _canvas(plain)
    canvas.drawString(72, 700, "open to all")
    canvas.save()
    for algorithm in ("RC4-128", "AES-128", "AES-256"):
        writer = pypdf.PdfWriter(clone_from=plain)
        writer.encrypt("", "owner", algorithm=algorithm)
        writer.write(path)
        assert _read(path)[1][0].text.strip() == "open to all"
        writer = pypdf.PdfWriter(clone_from=plain)
        writer.encrypt("secret", "owner", algorithm=algorithm)
        writer.write(path)
        with pytest.raises(CannotRead, match="encrypted"):
            _read(path)


def test_what_pdfium_cannot_open_is_read_by_the_second_reader(write_pages):
    """pypdf gives the text, without boxes, where pdfium sees no page at all."""
    path = write_pages([b"BT /F1 20 Tf 72 700 Td (Potato) Tj ET"])
    # pdfium wants the header within the first 1,024 bytes.
    path.write_bytes(b"% a long preamble\n" * 100 + path.read_bytes())
    _, [page], end = _read(path)
    assert (page.text.strip(), page.boxes, end.reason) == ("Potato", b"", None)
    assert page.produced_by.startswith("pypdf ")


def test_pdfium_library_agrees_with_our_plain_prototypes(tmp_path):
    """The functions called by address give what pypdfium2's own prototypes give."""
    path = tmp_path / "simple.pdf"
    canvas = _canvas(path)
    canvas.drawString(72, 700, "Agreement")
    canvas.save()
    _, [page], _ = _read(path)
    document = pdfium.PdfDocument(path)
    try:
        text_page = document[0].get_textpage()
        left, bottom, right, top = text_page.get_charbox(0, loose=True)
        last = text_page.get_charbox(8, loose=True)
        text_page.close()
    finally:
        document.close()
    [(_, x0, y0, x1, y1)] = _words(page)
    assert (x0, y0, x1, y1) == pytest.approx((left, 792 - top, last[2], 792 - bottom), abs=0.01)
    assert right < x1
    assert ctypes.sizeof(pdfium.raw.FS_RECTF) == 16
