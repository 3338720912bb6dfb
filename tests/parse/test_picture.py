"""Pictures of pages: the marker lies where the words are, and no file can do harm by being looked at."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from docmind.errors import DocumentError
from docmind.parse import FILE_REASONS, picture
from docmind.parse.boxes import boxes_for
from docmind.parse.picture import MAX_PIXELS, MAX_SIDE, jpeg_size, page_picture


def draw(config, path, boxes=(), page=1, **options):
    """(height, width, 3) int16: the pixels of a page's picture."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    drawn = page_picture(config, path, page, boxes, sha256=sha256, **options)
    pixels = np.asarray(Image.open(io.BytesIO(drawn.jpeg)).convert("RGB")).astype(np.int16)
    assert pixels.shape == (drawn.height, drawn.width, 3)
    return pixels


def marked(config, path, boxes, **options):
    """(height, width) bool: the pixels that differ with and without a marker."""
    # More than a JPEG's own noise, less than the marker takes from white paper.
    return np.abs(draw(config, path, boxes, **options) - draw(config, path, **options)).max(axis=2) > 40


def overlap(one, other):
    """Intersection over union."""
    return (one & other).sum() / (one | other).sum()


# Where the marker lies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("crop", [(0, 0, 612, 792), (50, 80, 500, 700), (-100, -100, 900, 900)], ids=str)
def test_the_marker_lies_where_the_page_shows_it(config, write_pages, rotation, crop):
    """A grey block at a known place of a page that is turned and cropped."""
    x0, y0, x1, y1 = 120, 300, 320, 340
    entries = b"/Rotate %d /CropBox [%d %d %d %d]" % (rotation, *crop)
    path = write_pages([b"0.8 g %d %d %d %d re f" % (x0, y0, x1 - x0, y1 - y0)], page_entries=entries)
    # ISO 32000-2, 14.11.2: the page shown is the CropBox within the MediaBox.
    left, bottom, right, top = max(crop[0], 0), max(crop[1], 0), min(crop[2], 612), min(crop[3], 792)
    box = {
        0: (x0 - left, top - y1, x1 - left, top - y0),
        90: (y0 - bottom, x0 - left, y1 - bottom, x1 - left),
        180: (right - x1, y0 - bottom, right - x0, y1 - bottom),
        270: (top - y1, right - x1, top - y0, right - x0),
    }[rotation % 360]
    block = (np.abs(draw(config, path) - 204) < 20).all(axis=2)
    assert overlap(marked(config, path, [box]), block) >= 0.9


@pytest.mark.parametrize("entries", [b"", b"/Rotate 90", b"/CropBox [60 500 400 760] /Rotate 180"], ids=bytes.decode)
def test_the_words_of_a_quote_are_marked_and_no_others(config, parser, write_pages, entries):
    """From the reader's boxes to pixels: the ink of the quote is under the marker, all other ink is not."""
    before, quote, after = "Some first words", "the quoted sentence", "and the rest of it"
    lines = [(before, 700), (quote, 660), (after, 620)]
    texts = [b"BT /F1 14 Tf 90 %d Td (%s) Tj ET" % (y, text.encode()) for text, y in lines]
    path = write_pages([b"\n".join(texts)], page_entries=entries)
    page = next(event for event in parser.parse(path) if getattr(event, "number", 0) == 1)
    start = page.text.index(quote)
    mark = marked(config, path, boxes_for(page.boxes, start, start + len(quote)))
    only_quote = draw(config, write_pages([texts[1]], page_entries=entries, name="quote.pdf")).max(axis=2) < 128
    only_others = draw(config, write_pages([texts[0] + texts[2]], page_entries=entries, name="o.pdf")).max(axis=2) < 128
    # Black ink stays black under the marker: what lies around it counts.
    hull = np.zeros_like(mark)
    rows, columns = np.nonzero(mark)
    hull[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert only_quote.sum() > 200
    assert (only_quote & hull).sum() >= 0.99 * only_quote.sum()
    assert not (only_others & hull).any()
    assert overlap(mark | (only_quote & hull), hull) > 0.85


def test_the_text_under_the_marker_stays_black_on_light_and_light_on_dark_ground(config, write_pages):
    """The marker multiplies on paper, and brightens where the ground is dark."""
    content = b"0 g 50 600 300 60 re f BT /F1 30 Tf 1 g 60 615 Td (light) Tj 0 g 0 -200 Td (black) Tj ET"
    path = write_pages([content])
    on_dark, on_paper = [50, 132, 350, 192], [50, 340, 350, 390]
    pixels = draw(config, path, [on_dark, on_paper])
    dark, paper = (pixels[int(y0 * 1.5) : int(y1 * 1.5), 80:500] for _, y0, _, y1 in (on_dark, on_paper))
    assert paper.max(axis=2).min() < 40  # black
    assert np.median(paper[:, :, 2]) < 150 < np.median(paper[:, :, 0])  # yellow
    assert dark.min(axis=2).max() > 230  # white
    assert 60 < np.median(dark[:, :, 0]) < 160  # brown, no longer black


def test_boxes_beside_the_page_and_empty_ones_mark_nothing(config, write_pages):
    """A stored box may be anything."""
    path = write_pages([b""])
    boxes = [[-50, -50, -10, -10], [700, 10, 900, 20], [10, 10, 10, 20], [30, 30, 20, 20]]
    assert not marked(config, path, boxes).any()
    assert marked(config, path, [[-100, -100, 5000, 5000]]).all()


# Size and keeping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(14_400, 14_400), (14_400, 20), (3, 14_400), (200_000, 150_000), (1, 1)])
def test_a_huge_page_is_scaled_down(config, write_pdf, stream, width, height):
    """At most four megapixels and 8,192 to a side, in proportion."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R >>" % (width, height)
    path = write_pdf(
        [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>", page, stream(b"")]
    )
    pixels = draw(config, path, scale=3.0)
    assert pixels.shape[0] * pixels.shape[1] <= 1.01 * MAX_PIXELS
    assert max(pixels.shape) <= MAX_SIDE
    if min(width, height) > 1000:
        assert pixels.shape[1] / pixels.shape[0] == pytest.approx(width / height, rel=0.01)


def test_a_picture_is_drawn_once_and_kept(config, write_pages):
    """The same page, boxes and scale are not drawn again."""
    path = write_pages([b"BT /F1 20 Tf 72 700 Td (kept) Tj ET"])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    first = page_picture(config, path, 1, [[72, 75, 120, 100]], sha256=sha256)
    assert page_picture(config, path, 1, [[72, 75, 120, 100]], sha256=sha256) is first
    assert page_picture(config, path, 1, [], sha256=sha256) is not first
    assert page_picture(config, path, 1, [[72, 75, 120, 100]], sha256=sha256, scale=1.0).width == 612
    assert (first.width, first.height) == (918, 1188)


# Files that cannot be drawn ---------------------------------------------------------------------------------------


def refused(config, path, sha256=None, page=1):
    """The reason a picture is refused for."""
    sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DocumentError) as caught:
        page_picture(config, path, page, [], sha256=sha256)
    assert caught.value.reason in FILE_REASONS
    assert str(caught.value)
    assert caught.value.hint
    return caught.value.reason


def test_other_bytes_than_those_that_were_read_are_not_drawn(config, write_pages):
    """Also when the page was drawn before; and the right bytes are drawn again when they are back."""
    path = write_pages([b"BT /F1 20 Tf 72 700 Td (true) Tj ET"])
    true = path.read_bytes()
    sha256 = hashlib.sha256(true).hexdigest()
    picture_before = page_picture(config, path, 1, [], sha256=sha256)
    path.write_bytes(true.replace(b"(true)", b"(fake)"))
    os.utime(path, ns=(1, 1))
    assert refused(config, path, sha256) == "changed_while_reading"
    path.write_bytes(true)
    assert page_picture(config, path, 1, [], sha256=sha256) is picture_before
    path.unlink()
    assert refused(config, path, sha256) == "not_found"


def test_what_is_not_there_or_no_pdf_has_no_picture(config, tmp_path, write_pages):
    """A folder, a text, a page that the file does not have."""
    text = tmp_path / "note.txt"
    text.write_text("words", encoding="utf-8")
    assert refused(config, text) == "unsupported_type"
    assert refused(config, tmp_path, "0" * 64) == "not_a_file"
    path = write_pages([b""])
    assert refused(config, path, page=2) == "damaged"
    assert refused(config, path, page=10**9) == "damaged"


def test_damaged_and_locked_files_say_so(config, tmp_path, write_pages):
    """A file that ends in its middle, and one with a password."""
    import pypdf

    path = write_pages([b"BT /F1 20 Tf 72 700 Td (words) Tj ET"] * 3)
    cut = tmp_path / "cut.pdf"
    cut.write_bytes(path.read_bytes()[:200])
    assert refused(config, cut) == "damaged"
    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt("secret", algorithm="AES-256")
    locked = tmp_path / "locked.pdf"
    writer.write(locked)
    assert refused(config, locked) == "encrypted"


def test_a_page_that_takes_forever_is_given_up(config, write_pages, stream, monkeypatch):
    """Drawings in drawings, ten to the ninth of them."""
    monkeypatch.setattr(picture, "CPU_SECONDS", 0.5)
    forms = [
        stream(
            b"/F Do " * 10 if depth < 9 else b"0 0 612 792 re f",
            b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << /F %d 0 R >> >>"
            % (5 + depth),
        )
        for depth in range(10)
    ]
    path = write_pages([b"/F Do"], more=forms, resources=b"/XObject << /F 4 0 R >>")
    assert refused(config, path) == "time_limit"


def test_a_page_that_takes_all_memory_is_given_up(config, write_pages):
    """The limit is that of one file."""
    path = write_pages([b"BT /F1 20 Tf 72 700 Td (words) Tj ET"])
    assert refused(dataclasses.replace(config, parse_memory_bytes=8 << 20), path) == "memory_limit"


def test_odd_files_have_a_picture_or_a_reason(config, hostile_folder):
    """Every fiftieth of the odd, damaged and fuzz-found PDFs."""
    reasons = []
    for path in sorted(hostile_folder.rglob("*.pdf"))[::50]:
        try:
            draw(config, path)
            reasons.append(None)
        except DocumentError as error:
            reasons.append(error.reason)
    assert set(reasons) <= {None, *FILE_REASONS}
    assert reasons.count(None) > 3


# What the drawing process says ------------------------------------------------------------------------------------


def jpeg_of(width, height):
    """A real JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def said(width, height, jpeg):
    """A line as the process says it."""
    return json.dumps({"picture": [width, height, base64.b64encode(jpeg).decode()]}).encode() + b"\n"


def test_an_honest_picture_is_believed():
    """The line that an honest process says."""
    answer = picture._answer(said(30, 20, jpeg_of(30, 20)))
    assert (answer.width, answer.height, answer.jpeg) == (30, 20, jpeg_of(30, 20))
    assert picture._answer(b'{"refused": "encrypted"}\n') == "encrypted"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense\n",
        b"[" * 100_000,
        b"[]\n",
        b"{}\n",
        b'{"picture": []}\n',
        b'{"picture": [30, 20, 5]}\n',
        b'{"picture": [30, 20, "%%%"]}\n',
        b'{"refused": "because"}\n',
        b'{"refused": ["damaged"]}\n',
        said(31, 20, jpeg_of(30, 20)),
        said(30.0, 20, jpeg_of(30, 20)),
        said(30, 20, b""),
        said(30, 20, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        said(30, 20, jpeg_of(30, 20)[:-2]),
        said(30, 20, jpeg_of(30, 20)[:100] + b"\xff\xd9"),
        said(5000, 5000, jpeg_of(5000, 5000)),
        said(9000, 2, jpeg_of(9000, 2)),
    ],
    ids=lambda line: str(line[:40]),
)
def test_a_process_that_lies_is_not_believed(line):
    """Whatever comes from it may come from a hostile file."""
    assert picture._answer(line) == "worker_crashed"


def test_the_size_in_a_jpeg_is_read_as_it_is():
    """From the frame header, whatever stands before it."""
    assert jpeg_size(jpeg_of(30, 20)) == (30, 20)
    assert jpeg_size(b"\xff\xd8\xff\xfe\x00\x04ab" + jpeg_of(7, 9)[2:]) == (7, 9)
    assert jpeg_size(b"\xff\xd8\xff\xd9") is None
    assert jpeg_size(b"GIF89a") is None


def test_a_process_that_cannot_start_is_a_reason_too(config, tmp_path, write_pages, monkeypatch):
    """A broken installation says so, and does not hang."""
    broken = tmp_path / "broken"
    (broken / "pypdfium2").mkdir(parents=True)
    (broken / "pypdfium2" / "__init__.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    assert refused(config, write_pages([b"% never drawn"])) == "worker_crashed"


def test_reading_and_drawing_agree_about_every_page(config, parser, hostile_folder):
    """The reader's size of a page is that of its picture, for some odd pages."""
    compared = 0
    for path in sorted(hostile_folder.rglob("*.pdf"))[7::120]:
        try:
            first = next((e for e in parser.parse(path) if getattr(e, "number", 0) == 1), None)
            if first is None or not first.width:
                continue
            height, width, _ = draw(config, path).shape
        except DocumentError:
            continue
        assert width / height == pytest.approx(first.width / first.height, rel=0.02), path
        compared += 1
    assert compared > 2
