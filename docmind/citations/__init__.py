"""Answer sentences → quotes on pages: what the evidence says letter for letter, and what it does not.

`cite` ties each sentence of an answer to the sentence of the evidence that it repeats. Nothing is taken on the
model's word: its own [1] marks only decide between equal candidates. Offsets lead to the page; boxes are looked up
by whoever draws. Knows no model, no library and no screen.

The rule: every number (value, percent or not, sign) and every name of the sentence is in the quote, words and
numbers stand there beside the same neighbours, nothing is denied, hedged or turned to its opposite, and at least four
in five of its content words are there. A table row may take its year from the row that names the columns; both are
cited then. A bare "308" is quoted from the sentence nearest to the question.

Limitations: English. Other Latin scripts are quoted more rarely than they could be, scripts without spaces only
letter for letter. A free paraphrase is not quoted. A bare name is shown with its sentence, which proves that the words
are there, not that they answer the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from docmind.citations import match, reading
from docmind.citations.sentences import find_marks, is_refusal, is_talk, split_sentences, strip_markers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Citation",
    "Evidence",
    "Quote",
    "Sentence",
    "Support",
    "cite",
    "is_refusal",
    "split_sentences",
    "strip_markers",
]

Support = Literal["quoted", "partial", "none"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One numbered piece of text the model was given.

    Attributes:
        number: 1-based, as numbered in the prompt.
        document: The document's name.
        start, end: Code points in the stored text of the page; ``text == page_text[start:end]``.
    """

    number: int
    document_id: str
    document: str
    page: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Quote:
    """Text copied letter for letter from a page: ``text == page_text[start:end]``."""

    document_id: str
    document: str
    page: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A number in an answer that leads to a quote."""

    number: int
    document_id: str
    document: str
    page: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, list item, heading or table row of an answer.

    Attributes:
        text: As shown, markdown included: ``strip_markers(answer)[start:end]``.
        support: "quoted" when a citation proves it; "partial" is kept for a later checker.
        citations: Numbers of its citations; a table row may come with the row that names its columns.
        is_claim: Whether it states something. A heading, a refusal or "Here is the answer:" does not.
    """

    text: str
    start: int
    end: int
    support: Support
    citations: tuple[int, ...] = ()
    is_claim: bool = True


def cite(answer: str, evidence: Sequence[Evidence], *, question: str = "") -> tuple[list[Sentence], list[Citation]]:
    """The sentences of an answer, each with the quotes that prove it, and the quotes numbered by first use.

    Offsets of the sentences are those of the answer as shown, `strip_markers(answer)`.

    Args:
        answer: What the model wrote, or as much of it as has arrived.
        evidence: What the model was given.
        question: What was asked; gives a bare "308" its meaning, and lets a sentence keep the question's verb.
    """
    shown, marks = find_marks(answer)
    passages = [reading.read_passage(piece.text) for piece in evidence]
    titles = [reading.title_words(piece.document) for piece in evidence]
    asked = reading.read_question(question, passages, titles)
    capitals = frozenset().union(*(passage.capitals for passage in passages))
    proofs: dict[tuple[str, tuple[int, ...]], list[Quote]] = {}
    numbers: dict[Quote, int] = {}
    sentences: list[Sentence] = []
    spans = split_sentences(shown)
    next_mark = 0
    for index, (start, end) in enumerate(spans):
        # A mark belongs to the sentence it stands in or right behind.
        until = spans[index + 1][0] if index + 1 < len(spans) else len(shown) + 1
        hints: list[int] = []
        while next_mark < len(marks) and marks[next_mark][0] < until:
            hints.extend(marks[next_mark][1])
            next_mark += 1
        text = shown[start:end]
        if is_refusal(text):
            sentences.append(Sentence(text, start, end, "none", is_claim=False))
            continue
        key = (text, tuple(hints))
        if key not in proofs:
            proofs[key] = _prove(text, evidence, passages, titles, asked, capitals, hints)
        quotes = proofs[key]
        cited = tuple(numbers.setdefault(quote, len(numbers) + 1) for quote in quotes)
        is_claim = bool(quotes) or not is_talk(text, is_followed=index + 1 < len(spans))
        sentences.append(Sentence(text, start, end, "quoted" if quotes else "none", cited, is_claim))
    citations = [
        Citation(number, quote.document_id, quote.document, quote.page, quote.start, quote.end, quote.text)
        for quote, number in numbers.items()
    ]
    return sentences, citations


def _prove(
    text: str,
    evidence: Sequence[Evidence],
    passages: Sequence[reading.Passage],
    titles: Sequence[frozenset[str]],
    asked: reading.Question,
    capitals: frozenset[str],
    hints: Sequence[int],
) -> list[Quote]:
    """The quotes that prove a sentence, none when nothing does."""
    claim = reading.read_claim(text, asked, capitals)
    if claim is None:
        return []
    best: tuple[float, int, match.Match] | None = None
    for index, passage in enumerate(passages):
        found = match.best_match(claim, passage, titles[index])
        if found is None:
            continue
        # The model's own mark decides between equals and near equals, nothing more.
        score = found.score + (0.05 if evidence[index].number in hints else 0.0)
        if best is None or score > best[0]:
            best = (score, index, found)
    if best is None:
        return []
    _, index, found = best
    spans = [(found.first, found.last)]
    if found.header >= 0:
        spans.append((found.header, found.header))
    return [_quote(evidence[index], passages[index], first, last) for first, last in spans]


def _quote(piece: Evidence, passage: reading.Passage, first: int, last: int) -> Quote:
    start, end = passage.units[first].start, passage.units[last].end
    return Quote(
        piece.document_id, piece.document, piece.page, piece.start + start, piece.start + end, piece.text[start:end]
    )
