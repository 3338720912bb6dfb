"""Titles and headings as documents give them: untrusted, brought to one short line."""

from __future__ import annotations

import re
from typing import Final

from docmind.parse.normalise import normalise
from docmind.parse.pages import MAX_TITLE

# What programs write when nobody gave a title; the file's own name says more.
_MADE_UP: Final = re.compile(
    r"(?:untitled|no title|document|title|slide|book|sheet|presentation|powerpoint presentation|pdf)"
    r"[ _-]*(?:document)?\d*|\W*|.*\.(?:docx?|xlsx?|pptx?|pdf|indd|qxd|tex|dvi|e?ps|rtf|odt|txt|html?|pages|cdr|ai|wpd"
    r"|fm|p65|pmd|pub|tiff?|jpe?g|png)",
    re.IGNORECASE,
)
_PROGRAM: Final = re.compile(r"^microsoft (?:office )?(?:word|excel|powerpoint) ?[-–:] ?", re.IGNORECASE)


def one_line(text: str) -> str:
    """Normalised text on one line, blanks collapsed, at most `MAX_TITLE` characters."""
    # Cut before the work too: a title of a gigabyte is nobody's.
    return " ".join(normalise(text[: 4 * MAX_TITLE]).split())[:MAX_TITLE].rstrip()


def clean_title(title: str) -> str:
    """The title on one line; "" for one that a program made up ("Microsoft Word - report.doc", "untitled")."""
    title = _PROGRAM.sub("", one_line(title))
    return "" if _MADE_UP.fullmatch(title) else title
