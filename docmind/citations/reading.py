"""Texts read into what they say: items of evidence, of the question and of a claim.

An item is a content word by its stem or a number by its value, with the negation or hedge that governs it. Decides
nothing about support.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from docmind.citations import words
from docmind.citations.sentences import claim_text, split_units
from docmind.citations.tokens import Number, Token, fold, key_of, tokenize

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

# Sentences of one quote lie apart: no word of one is a neighbour of a word of the next.
SENTENCE_GAP = 4
# A quote is read in the margin of an answer: 400 characters are five lines.
MAX_QUOTE_CHARACTERS = 400
# Nobody states one fact in so many characters; runaway output is not matched.
MAX_CLAIM_CHARACTERS = 1500

_SCALE = re.compile(r"\b(thousand|million|billion)s\b", re.IGNORECASE)
_WANTS_NUMBER = re.compile(r"\b(?:how (?:many|much|old|long|far|tall)|when|(?:what|which) (?:year|percent\w*|date))\b")
_OUTFLOW = frozenset(words.OUTFLOW)

Sides = frozenset[tuple[int, int]]


@lru_cache(maxsize=1)
def _side_table() -> dict[str, Sides]:
    """For a stem or a whole word the pairs of opposites it belongs to, and on which side."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for pair, sides in enumerate(words.OPPOSITES):
        for side, members in enumerate(sides):
            for word in members:
                found[key_of(word)].add((pair, side))
                found[word].add((pair, side))
    return {word: frozenset(places) for word, places in found.items()}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing a text says: a content word or a number.

    Attributes:
        key: The stem; "#" for a number.
        denied: How many negations govern it: "not equal" is ``equal`` denied once.
        hedged: Whether "may", "could", "expected" or the like governs it.
        place: Where it stands, counted in items, a gap between sentences.
        sides: The pairs of opposites the word belongs to.
        is_light: A word around facts rather than of them ("reported"): need not be in the quote.
    """

    token: Token
    key: str
    number: Number | None
    place: int
    denied: int = 0
    hedged: bool = False
    sides: Sides = frozenset()
    is_light: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence or a table row of a passage: characters [start, end), tokens [first_token, …), items [first, last)."""

    start: int
    end: int
    first_token: int
    first: int
    last: int
    is_row: bool
    is_piece: bool  # of a sentence too long for a quote
    keys: frozenset[str]  # stems, also of the halves of words broken at a line end
    header: int  # the unit above that names the columns by year, -1 for none


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of evidence, read once."""

    tokens: Sequence[Token]
    items: Sequence[Item]
    units: Sequence[Unit]
    keys: frozenset[str]  # stems, also of the halves of words broken at a line end
    values: frozenset[object]
    capitals: frozenset[str]  # folded words written with a capital inside a sentence
    scale: int  # 6 where the text says "in millions"


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked.

    Attributes:
        asked: Its content words by stem.
        weights: What each word tells of a sentence: the more, the fewer sentences of the evidence hold it.
        best: The greatest sum of weights in one sentence of the evidence.
        wants: The kind of answer it asks for, as far as its first words tell.
    """

    tokens: Sequence[Token]
    asked: dict[str, Token]
    weights: dict[str, float]
    best: float
    wants: Literal["number", "name", "any"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer, read once.

    Attributes:
        needed: Indices of the items that count: all but the light words.
        names: Indices of the items that name something.
        verbs: Stems of its verbs that come from the question: "did … surrender" → "surrendered".
    """

    text: str
    items: Sequence[Item]
    needed: Sequence[int]
    names: frozenset[int]
    verbs: frozenset[str]
    question: Question
    says_outflow: bool


def read_items(tokens: Sequence[Token], place: int = 0) -> list[Item]:
    """What a text says, in order; `place` is where its first item stands."""
    table = _side_table()
    items: list[Item] = []
    denied = 0
    hedged = False
    for index, token in enumerate(tokens):
        if token.is_negation:
            following = tokens[index + 1] if index + 1 < len(tokens) else None
            is_only = following is not None and following.folded in words.AFFIRMING_AFTER_NOT
            # "No. 5" counts, it does not deny.
            is_numero = following is not None and token.text == "No" and following.start - token.end == 2
            denied += not is_only and not (is_numero and following and following.number)
            continue
        # The month of May hedges nothing.
        hedged = hedged or (token.folded in words.HEDGES and not (token.is_capital and index > 0))
        if token.number is None and token.folded in words.STOP_WORDS:
            continue
        sides = table.get(token.folded) or (table.get(token.key) if token.number is None else None) or frozenset()
        is_light = token.number is None and token.folded in words.LIGHT_WORDS
        if is_light:
            items.append(Item(token, token.key, None, place, 0, False, sides, is_light))
            continue
        items.append(Item(token, token.key, token.number, place, denied, hedged, sides))
        place += 1
        denied, hedged = 0, False
    if denied and items:
        # "..., but Newton did not." governs what stands before it.
        last = items[-1]
        items[-1] = Item(last.token, last.key, last.number, last.place, last.denied + denied, last.hedged, last.sides)
    return items


@lru_cache(maxsize=128)
def read_passage(text: str) -> Passage:
    """A passage split and tokenised; kept, since an answer is cited again and again while it streams."""
    tokens = tokenize(text)
    items: list[Item] = []
    units: list[Unit] = []
    capitals: set[str] = set()
    position = place = 0
    header = -1
    for start, end, is_row in split_units(text):
        first_token = position
        while position < len(tokens) and tokens[position].start < end:
            position += 1
        inside = tokens[first_token:position]
        capitals.update(token.folded for token in inside[1:] if token.is_capital)
        found = read_items(inside, place)
        years = {item.number.value for item in found if item.number and item.number.kind == "year"}
        if is_row and len(years) >= 2:
            header = len(units)
        taken = 0
        for piece_start, piece_end in _pieces(text, start, end):
            first = len(items)
            head = first_token
            while taken < len(found) and found[taken].token.start < piece_end:
                items.append(found[taken])
                taken += 1
            while head < position and tokens[head].start < piece_start:
                head += 1
            is_piece = piece_end - piece_start < end - start
            keys = {item.key for item in items[first:] if item.number is None}
            keys.update(part for item in items[first:] for part in item.token.parts)
            units.append(
                Unit(piece_start, piece_end, head, first, len(items), is_row, is_piece, frozenset(keys), header)
            )
        place = (items[-1].place if items else 0) + SENTENCE_GAP
    scale = _SCALE.search(text)
    return Passage(
        tokens,
        items,
        units,
        frozenset().union(*(unit.keys for unit in units)),
        frozenset(item.number.value for item in items if item.number),
        frozenset(capitals),
        words.SCALES[scale[1].casefold()] if scale else 0,
    )


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence, or the parts of one that is too long for a quote, cut at commas or at spaces."""
    while end - start > MAX_QUOTE_CHARACTERS:
        # Half a quote each, so that two neighbours fit.
        limit = start + MAX_QUOTE_CHARACTERS // 2
        cut = max(text.rfind(sign, start + 40, limit) + 1 for sign in (", ", "; ", ": ", ",\n", ";\n"))
        if cut <= start:
            cut = max(text.rfind(space, start + 40, limit) for space in (" ", "\n"))
        if cut <= start:
            cut = limit
        yield _trim(text, start, cut)
        start = _trim(text, cut, end)[0]
    if start < end:
        yield _trim(text, start, end)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def read_question(question: str, passages: Sequence[Passage], titles: Sequence[frozenset[str]]) -> Question:
    """The question's words, for what an answer takes from it, weighed by the evidence."""
    tokens = tokenize(question[:MAX_CLAIM_CHARACTERS])
    asked = {item.key: item.token for item in read_items(tokens) if item.number is None and not item.is_light}
    sentences = [(unit.keys, index) for index, passage in enumerate(passages) for unit in passage.units]
    counts = {key: sum(1 for keys, _ in sentences if key in keys) for key in asked}
    weights = {key: math.log(1 + len(sentences) / count) if count else 0.0 for key, count in counts.items()}
    start = " ".join(token.folded for token in tokens[:4])
    wants: Literal["number", "name", "any"] = "any"
    if _WANTS_NUMBER.search(start):
        wants = "number"
    elif start.startswith(("who ", "whom ")):
        wants = "name"
    unweighed = Question(tokens, asked, weights, 0.0, wants)
    best = max(
        (question_weight(unweighed, keys, passages[index], titles[index]) for keys, index in sentences), default=0.0
    )
    return Question(tokens, asked, weights, best, wants)


def question_weight(question: Question, keys: Container[str], passage: Passage, title: frozenset[str]) -> float:
    """How much of the question a sentence holds; a name said elsewhere in its passage counts half."""
    total = 0.0
    for key, token in question.asked.items():
        if key in keys:
            total += question.weights[key]
        elif token.folded in title or (token.is_capital and key in passage.keys):
            total += 0.5 * question.weights[key]
    return total


def read_claim(sentence: str, question: Question, capitals: Container[str]) -> Claim | None:
    """What a sentence claims; None where there is nothing to compare.

    Args:
        sentence: As split from the answer.
        question: What was asked.
        capitals: Folded words that the evidence writes with a capital inside a sentence.
    """
    text = claim_text(sentence)
    if len(text) > MAX_CLAIM_CHARACTERS:
        return None
    tokens = tokenize(text)
    items = read_items(tokens)
    needed = [index for index, item in enumerate(items) if not item.is_light]
    if not needed:
        return None
    small = {token.folded for token in (*question.tokens, *tokens[1:]) if not token.is_capital}
    names = {
        index
        for index in needed
        if items[index].number is None and items[index].token.is_capital
        and _is_name(items[index].token, items[index].token is tokens[0], small, capitals)
    }  # fmt: skip
    verbs = _question_verbs([items[index] for index in needed], question)
    says_outflow = any(token.folded in _OUTFLOW for token in tokens)
    return Claim(text, items, needed, frozenset(names), verbs, question, says_outflow)


def _is_name(token: Token, is_first: bool, small: Container[str], capitals: Container[str]) -> bool:
    """A first word is a name unless it looks like an ordinary one: an adverb, or written small elsewhere."""
    if not is_first or token.folded in capitals:
        return True
    return token.folded not in small and not token.folded.endswith(("ly", "ing"))


def _question_verbs(items: Sequence[Item], question: Question) -> frozenset[str]:
    forms: dict[str, set[str]] = defaultdict(set)
    for token in question.tokens:
        forms[token.key].add(token.folded)
    has_do = any(token.folded in ("did", "does", "do") for token in question.tokens)
    return frozenset(
        item.key
        for item in items
        if item.key in forms and item.number is None
        and (
            item.token.folded.endswith(("ed", "ing"))
            or item.token.folded in words.IRREGULAR
            or (has_do and item.token.folded not in forms[item.key])
        )
    )  # fmt: skip


def title_words(document: str) -> frozenset[str]:
    """The words of a document's name: "PEPSICO_2022_10K.pdf" → pepsico, 10k."""
    stem = document.rsplit(".", 1)[0]
    return frozenset(fold(word) for word in re.findall(r"\d*[^\W\d_]+", stem[:400])) - words.STOP_WORDS
