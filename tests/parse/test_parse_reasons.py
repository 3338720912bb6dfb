"""The closed list of reasons, in code and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from docmind.parse import FILE_REASONS, PAGE_REASONS, FileReason, PageReason

DOCUMENT = Path(__file__).parents[2] / "docs" / "reasons.md"


def _rows(heading: str) -> list[tuple[str, str, str]]:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert section
    return re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section[1], re.M)


def test_the_document_lists_exactly_the_reasons_of_the_code():
    """docs/reasons.md cannot drift from docmind/parse/reasons.py."""
    for heading, reasons in (("Files", FILE_REASONS), ("Pages", PAGE_REASONS)):
        assert _rows(heading) == [(code, reason.meaning, reason.hint) for code, reason in reasons.items()]


def test_every_reason_says_what_to_do():
    """Each code of the type has its words, and the words are a clause and a sentence."""
    assert set(FILE_REASONS) == set(get_args(FileReason))
    assert set(PAGE_REASONS) == set(get_args(PageReason))
    for reason in (*FILE_REASONS.values(), *PAGE_REASONS.values()):
        assert reason.meaning
        assert not reason.meaning.endswith(".")
        assert reason.hint.endswith(".")
