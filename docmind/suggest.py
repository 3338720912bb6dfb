"""First questions a person may ask, made from their own documents without a model: what the documents speak of most.

Topics are headings, those of the outline where there is one, and names of two or more words that come back in the text.
Knows no model.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from docmind.library import Document, Library

RECENT_DOCUMENTS = 12  # those added last
READ_PAGES = 8  # of each, the first ones
LEAST_MENTIONS = 3  # of a name, to be what a document is about
_HEADING = re.compile(r"^(?:chapter |part |item )?[\dIVX]{0,4}[.):]?\s*", re.IGNORECASE)
_NAME = re.compile(r"\b[A-Z][a-z]{2,}(?:[ ](?:of |the |and )?[A-Z][a-z]{2,}){1,3}\b")
_SHORT_LINE = re.compile(r"(?:\d{1,2}(?:\.\d{1,2})*\.?\s+)?[A-Z][a-z][\w '’-]{8,60}[a-z]")
_NO_TOPIC = frozenset(
    "contents introduction index appendix preface summary conclusion references bibliography acknowledgements "
    "glossary foreword cover abstract overview notes exhibits signatures figures tables".split()
)


def first_questions(library: Library, count: int = 3) -> list[str]:
    """Questions about what the documents added last speak of, at most `count`, each about another document."""
    questions: list[str] = []
    documents = sorted(library.documents(), key=lambda document: document.added_at, reverse=True)
    for document in documents[:RECENT_DOCUMENTS]:
        if len(questions) == count:
            break
        questions += [question for question in _questions(library, document) if question not in questions][:1]
    if len(questions) < count:  # few documents: more than one question about each
        for document in documents[:RECENT_DOCUMENTS]:
            more = [question for question in _questions(library, document) if question not in questions]
            questions += more[: count - len(questions)]
    return questions


def _questions(library: Library, document: Document) -> Iterator[str]:
    pages = [library.page(document.document_id, n).text for n in range(1, min(document.pages, READ_PAGES) + 1)]
    outline = [heading for _, heading in library.outline(document.document_id)]
    own = document.name.lower()
    for topic in (*_headings(outline or _short_lines(pages)), *_names(pages)):
        if topic.lower() in own:
            continue  # its own name says nothing about it
        yield f"What does {document.name} say about {topic}?"


def _headings(lines: Iterable[str]) -> list[str]:
    headings = []
    for heading in lines:
        words = _HEADING.sub("", " ".join(heading.split()), count=1)
        if 2 <= len(words.split()) <= 7 and words.isascii() and not _NO_TOPIC & set(words.lower().split()):
            headings.append(words)
    return headings[:3]


def _short_lines(pages: Sequence[str]) -> Iterator[str]:
    """Lines that look like headings: a few words that begin large, end without a sign, and have a long line below."""
    for text in pages:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for line, below in itertools.pairwise(lines):
            if _SHORT_LINE.fullmatch(line) and len(below) > 1.5 * len(line):
                yield line


def _names(pages: Sequence[str]) -> list[str]:
    counted: Counter[str] = Counter()
    for text in pages:
        counted.update(name.removeprefix("The ") for name in _NAME.findall(" ".join(text.split())))
    return [
        name
        for name, mentions in counted.most_common(8)
        if mentions >= LEAST_MENTIONS and " " in name
    ][:3]
