"""Bad input: each file ends with a reason from the closed list and says what to do."""

from __future__ import annotations

import os
import zipfile

import pypdf
import pytest

from docmind.errors import DocumentError
from docmind.parse import FILE_REASONS, DocumentInfo, ParseEnd, kind_of

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1"
HELLO = b"BT /F1 20 Tf 72 700 Td (Hello) Tj ET"


def _refused(parser, path):
    """The error that refuses the file; it must say what to do."""
    with pytest.raises(DocumentError) as caught:
        list(parser.parse(path))
    assert caught.value.reason in FILE_REASONS
    assert caught.value.hint
    assert path.name in str(caught.value)
    return caught.value


def test_a_file_that_is_not_there(parser, tmp_path):
    """A wrong path, also one through a file, with a NUL, or endless."""
    (tmp_path / "file").write_text("x")
    assert _refused(parser, tmp_path / "nothing.pdf").reason == "not_found"
    assert _refused(parser, tmp_path / "file" / "inside.pdf").reason == "not_found"
    assert _refused(parser, tmp_path / "nul\0.pdf").reason == "not_found"
    assert _refused(parser, tmp_path / ("long" * 200 + ".pdf")).reason in ("not_found", "not_readable")


def test_a_folder_is_no_file(parser, tmp_path):
    """Even one that is named like a document."""
    (tmp_path / "folder.pdf").mkdir()
    assert _refused(parser, tmp_path / "folder.pdf").reason == "not_a_file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_its_writer(parser, tmp_path):
    """Opening a named pipe would wait forever."""
    os.mkfifo(tmp_path / "pipe.txt")
    assert _refused(parser, tmp_path / "pipe.txt").reason == "not_a_file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_without_permission(parser, tmp_path):
    """Says that it may not be read."""
    path = tmp_path / "secret.txt"
    path.write_text("x")
    path.chmod(0)
    assert _refused(parser, path).reason == "not_readable"


@pytest.mark.parametrize("name", ["empty.pdf", "empty.txt", "empty.md"])
def test_an_empty_file(parser, tmp_path, name):
    """Zero bytes of any kind."""
    (tmp_path / name).touch()
    assert _refused(parser, tmp_path / name).reason == "empty_file"


def test_files_beyond_the_size_limits(parser, tmp_path):
    """Refused by their size, before any of it is read."""
    for name, head, size in (("large.txt", b"text ", (32 << 20) + 1), ("large.pdf", b"%PDF-1.7\n", (1 << 30) + 1)):
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(size)
        assert _refused(parser, tmp_path / name).reason == "too_large"


def test_a_hundred_megabytes_of_nothing_under_a_pdf_header(parser, tmp_path):
    """Ends as damaged like a small one."""
    with (tmp_path / "hollow.pdf").open("wb") as file:
        file.write(b"%PDF-1.7\n")
        file.truncate(100 << 20)
    assert _refused(parser, tmp_path / "hollow.pdf").reason == "damaged"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PNG, "PNG"),
        (b"PK\x03\x04" + b"\0" * 50, "ZIP"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 50, "Office"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "HTML"),
        (b"Just some text.", "plain text"),
        (b"\0\1\2\3" * 100, "something else"),
    ],
)
def test_a_pdf_by_name_only_is_told_what_it_is(parser, tmp_path, content, words):
    """The message says what the file really is."""
    path = tmp_path / "renamed.pdf"
    path.write_bytes(content)
    error = _refused(parser, path)
    assert error.reason == "wrong_type"
    assert words in str(error)


@pytest.mark.parametrize("content", [PNG, b"\x7fELF\2\1\1" + b"\0" * 100, bytes(range(256)) * 8])
@pytest.mark.parametrize("name", ["renamed.txt", "renamed.md"])
def test_binary_content_under_a_text_name(parser, tmp_path, content, name):
    """By its signature at once, or by its bytes when it is read."""
    (tmp_path / name).write_bytes(content)
    assert _refused(parser, tmp_path / name).reason == "wrong_type"


@pytest.mark.parametrize("name", ["letter.docx", "table.xlsx", "picture.png", "noextension"])
def test_other_kinds_are_named_as_unsupported(parser, tmp_path, name):
    """With what DocMind does read."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    error = _refused(parser, tmp_path / name)
    assert error.reason == "unsupported_type"
    assert "PDF, TXT and Markdown" in error.hint


@pytest.mark.parametrize("name", ["report.docx", "report", "report.txt", "report.PDF"])
def test_a_pdf_under_another_name_is_read(parser, write_pages, name):
    """What is in a file counts more than its name."""
    info, page, end = parser.parse(write_pages([HELLO], name=name))
    assert (info.kind, page.text.strip(), end) == ("pdf", "Hello", ParseEnd())


def test_a_text_that_speaks_of_pdf_stays_a_text(tmp_path):
    """Only a text that begins with the header is a PDF."""
    path = tmp_path / "notes.md"
    path.write_text("# Headers\nA file begins with %PDF-1.7 when …", encoding="utf-8")
    assert kind_of(path) == "markdown"


def test_a_locked_pdf(parser, write_pages, tmp_path):
    """Says how to remove the password."""
    writer = pypdf.PdfWriter(clone_from=write_pages([HELLO]))
    writer.encrypt("secret", algorithm="AES-256")
    path = tmp_path / "locked.pdf"
    writer.write(path)
    error = _refused(parser, path)
    assert error.reason == "encrypted"
    assert "qpdf" in error.hint


@pytest.mark.parametrize("kept", [40, 200])
def test_a_pdf_cut_off(parser, write_pages, kept):
    """A download that broke off."""
    path = write_pages([HELLO])
    path.write_bytes(path.read_bytes()[:kept])
    assert _refused(parser, path).reason == "damaged"


def test_a_pdf_with_a_damaged_table_is_read_all_the_same(parser, write_pages):
    """The cross-reference table can be rebuilt."""
    path = write_pages([HELLO])
    path.write_bytes(path.read_bytes().replace(b"startxref\n", b"startxref\n9"))
    events = list(parser.parse(path))
    assert events[1].text.strip() == "Hello"


def test_a_pdf_without_pages(parser, write_pdf):
    """An empty page tree."""
    path = write_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 0 /Kids [] >>"])
    assert _refused(parser, path).reason == "no_pages"


def test_a_pdf_that_claims_two_thousand_million_pages(parser, write_pages):
    """The pages that are there are counted, not those that are claimed."""
    path = write_pages([HELLO])
    path.write_bytes(path.read_bytes().replace(b"/Count 1 ", b"/Count 2000000000 "))
    info, page, end = parser.parse(path)
    assert isinstance(info, DocumentInfo)
    assert (info.pages, page.text.strip(), end.reason) == (1, "Hello", None)


def test_a_scanned_pdf_is_read_as_pages_without_text(parser, write_pages):
    """Whether a document without any text is kept is for ingestion to say."""
    scan = b"q 612 0 0 792 0 0 cm BI /W 1 /H 1 /BPC 8 /CS /G ID \x80 EI Q"
    _, one, two, end = parser.parse(write_pages([scan, scan]))
    assert (one.reason, two.reason, end.reason) == ("scanned", "scanned", None)


def test_names_that_are_not_ascii_or_not_even_text(parser, write_pages):
    """A file is found whatever it is called."""
    names = ["Übersicht – 2024.pdf", "报告.pdf", "with space and 'quotes'.pdf"]
    if os.name == "posix" and os.uname().sysname == "Linux":
        names.append(os.fsdecode(b"latin-\xe9.pdf"))
    for name in names:
        _, page, _ = parser.parse(write_pages([HELLO], name=name))
        assert page.text.strip() == "Hello"
