"""Odd, damaged, encrypted, scanned and fuzz-found files: each ends with an outcome, and none takes another along."""

from __future__ import annotations

from collections import Counter

import pytest

from docmind.errors import DocumentError
from docmind.parse import FILE_REASONS, DocumentInfo, ParsedPage, ParseEnd, Parser
from docmind.parse.boxes import unpack
from docmind.parse.normalise import normalise

SAMPLE_STEP = 15  # every so many files


def _outcome(parser, path):
    """How reading ended, with every invariant of the events checked on the way."""
    info, pages, end, error = None, [], None, None
    try:
        for event in parser.parse(path):
            assert end is None
            if isinstance(event, DocumentInfo):
                assert info is None
                assert not pages
                info = event
            elif isinstance(event, ParsedPage):
                pages.append(event)
            else:
                end = event
    except DocumentError as refused:
        error = refused
    if error:
        assert error.reason in FILE_REASONS
        assert error.hint
        assert not pages
        return f"refused: {error.reason}"
    assert isinstance(info, DocumentInfo)
    assert isinstance(end, ParseEnd)
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))
    assert all(page <= info.pages for page, _ in info.outline)
    for page in pages:
        _check_page(page)
    if end.reason:
        assert end.hint == FILE_REASONS[end.reason].hint
        return f"partial: {end.reason}"
    assert len(pages) == info.pages
    return "read" if any(page.text for page in pages) else "no text"


def _check_page(page):
    assert normalise(page.text) == page.text
    assert (page.reason is None) == (page.source == "text") == bool(page.text)
    rows = unpack(page.boxes)
    assert all(0 <= start < end <= len(page.text) for start, end in rows[:, :2])
    for start, end in rows[:, :2].astype(int).tolist():
        assert not any(character.isspace() for character in page.text[start:end])


def _sweep(config, paths):
    with Parser(config) as parser:
        return Counter(_outcome(parser, path) for path in paths)


def test_a_sample_of_odd_files_ends_with_outcomes(config, hostile_folder):
    """Every fifteenth file of each collection."""
    paths = sorted(path for path in hostile_folder.rglob("*") if path.is_file())[::SAMPLE_STEP]
    outcomes = _sweep(config, paths)
    assert outcomes.total() == len(paths)
    assert outcomes["read"] > len(paths) // 4


@pytest.mark.slow
def test_all_odd_files_end_with_outcomes(config, hostile_folder):
    """About 890 PDFs and 250 files of other kinds."""
    paths = sorted(path for path in hostile_folder.rglob("*") if path.is_file())
    outcomes = _sweep(config, paths)
    print(*outcomes.most_common(), sep="\n")
    assert outcomes.total() == len(paths)
    assert outcomes["refused: worker_crashed"] + outcomes["partial: worker_crashed"] == 0
    pdfs = [path for path in paths if path.suffix == ".pdf"]
    assert outcomes["read"] > len(pdfs) // 2
