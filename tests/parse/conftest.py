"""Files as the world has them: written out by hand where a library would be too polite to write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from docmind.config import Config
from docmind.parse import Parser


@pytest.fixture
def config(tmp_path):
    """The defaults, with a data folder that nobody uses."""
    return Config(home=tmp_path / "home")


@pytest.fixture
def parser(config):
    """A parser with the default limits, closed at the end."""
    with Parser(config) as opened:
        yield opened


@pytest.fixture(scope="session")
def hostile_folder():
    """The folder of odd, damaged and fuzz-found files."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("DOCMIND_TEST_DATA", default)) / "hostile"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set DOCMIND_TEST_DATA")
    return folder


@pytest.fixture
def write_pdf(tmp_path):
    """Writes a PDF from the bodies of its objects, numbered from 1; object 1 is the catalog."""

    def write(objects: list[bytes], name: str = "hand-made.pdf") -> Path:
        data = b"%PDF-1.7\n"
        places = []
        for number, body in enumerate(objects, start=1):
            places.append(len(data))
            data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
        table = b"".join(b"%010d 00000 n \n" % place for place in places)
        head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
        tail = b"trailer\n<< /Root 1 0 R /Size %d >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(data))
        path = tmp_path / name
        path.write_bytes(data + head + table + tail)
        return path

    return write


def _stream(content: bytes, entries: bytes = b"") -> bytes:
    """The body of a stream object."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), entries, content)


@pytest.fixture
def stream():
    """Makes the body of a stream object of a content and more entries of its dictionary."""
    return _stream


@pytest.fixture
def write_pages(write_pdf):
    """Writes a PDF with a page for each content stream, in Helvetica as /F1; `more` are objects from number 4 on."""

    def write(
        contents: list[bytes],
        more: list[bytes] | None = None,
        page_entries: bytes = b"",
        resources: bytes = b"",
        font: bytes = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        name: str = "hand-made.pdf",
    ) -> Path:
        more = more or []
        first = 4 + len(more)
        kids = b" ".join(b"%d 0 R" % (first + 2 * index) for index in range(len(contents)))
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(contents), kids),
            font,
            *more,
        ]
        for index, content in enumerate(contents):
            objects.append(
                b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> %s >> %s"
                b" /Contents %d 0 R >>" % (resources, page_entries, first + 2 * index + 1)
            )
            objects.append(content if content.startswith(b"<<") else _stream(content))
        return write_pdf(objects, name)

    return write


@pytest.fixture
def write_codes(write_pages):
    """Writes a one-page PDF whose glyphs A, B, C … stand for the given UTF-16 hexadecimal codes, by a ToUnicode map."""

    def write(codes: list[str], content: bytes | None = None) -> Path:
        letters = bytes(range(65, 65 + len(codes)))
        pairs = "\n".join(f"<{letter:02X}> <{code}>" for letter, code in zip(letters, codes, strict=True))
        cmap = (
            "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /Odd def /CMapType 2 def\n"
            "1 begincodespacerange <00> <FF> endcodespacerange\n"
            f"{len(codes)} beginbfchar\n{pairs}\nendbfchar\nendcmap end end"
        )
        font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 4 0 R >>"
        content = content or b"BT /F1 20 Tf 72 700 Td (%s) Tj ET" % letters
        return write_pages([content], more=[_stream(cmap.encode("ascii"))], font=font)

    return write
