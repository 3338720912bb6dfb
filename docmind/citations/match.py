"""Does this piece of evidence say what this sentence claims?

A claim holds where all its numbers and names, and nearly all its words, stand in the quote among the same
neighbours. A word in another's place is a contradiction until shown otherwise. Knows nothing of answers as a whole,
of numbering, or of models.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from docmind.citations import words
from docmind.citations.reading import MAX_QUOTE_CHARACTERS, Claim, Item, Passage, question_weight
from docmind.citations.tokens import Number, Token, tokenize

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

# The numbers below were calibrated with tests/test_citations.py.
# Of a claim's content words so many must stand in the quote: one word in five may be the model's own.
MIN_COVERAGE = 0.8
# With the question's verbs allowed for, this much must still stand in the quote itself.
MIN_OWN_COVERAGE = 0.6
# A claim of fewer words and numbers than this is a fragment: it says something only together with the question.
FRAGMENT_ITEMS = 3
# A fragment's quote holds this share of the question's content words; the rest may be the answer's own kind of word.
MIN_QUESTION_COVERAGE = 0.3
# ... and this much of what the sentence nearest to the question holds.
MIN_SHARE_OF_BEST = 0.9
# Neighbours in the claim are neighbours in the quote when at most two words were left out between them.
NEIGHBOUR = 3
# Another number in the quote fits the claim's words this much better: the claim took the wrong one.
BETTER_FIT = 1.15
# Content words on each side that tell what a number is of; farther ones tell little.
CONTEXT_WORDS = 5
# A long sentence repeated whole may be quoted at this length.
MAX_LONG_QUOTE_CHARACTERS = 800

_UNSPACED_LETTER = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True, slots=True)
class Match:
    """Units [first, last] of a passage say what the claim says. `header` is the unit that names a row's columns."""

    first: int
    last: int
    score: float
    header: int = -1


def numbers_agree(claimed: Number, quoted: Number, *, in_row: bool = False, says_outflow: bool = False) -> bool:
    """Whether both write the same quantity: value, percent or not, sign, currency where both name one.

    Args:
        claimed: From the answer.
        quoted: From the evidence.
        in_row: Whether the quote is a table row, where parentheses mean minus; in prose they are an aside.
        says_outflow: Whether the claim says "loss", "paid" or the like, and so the minus in words.
    """
    if claimed.value != quoted.value:
        return False
    alike = ("plain", "money", "year")
    if claimed.kind != quoted.kind and not (claimed.kind in alike and quoted.kind in alike):
        return False
    if claimed.currency and quoted.currency and claimed.currency != quoted.currency:
        return False
    is_minus = quoted.sign == -1 or (quoted.sign == 0 and in_row)
    if claimed.sign == -1:
        return is_minus
    return not is_minus or says_outflow or claimed.sign == 0


class _Window:
    """Units [first, last] of a passage against one claim: where each item of the claim stands there."""

    def __init__(self, claim: Claim, passage: Passage, title: frozenset[str], first: int, last: int) -> None:
        self.claim, self.passage, self.title = claim, passage, title
        self.first, self.last = first, last
        units = passage.units
        self.items = passage.items[units[first].first : units[last].last]
        self.in_row = units[last].is_row
        self.by_key: dict[str, list[Item]] = defaultdict(list)
        for item in self.items:
            self.by_key[item.key].append(item)
            for part in item.token.parts:
                self.by_key[part].append(item)
        self.places = [self._find(item) for item in claim.items]

    def _find(self, item: Item) -> list[int]:
        """The places where the window says the same as an item of the claim."""
        if item.number is not None:
            numbers = self.by_key.get("#", ())
            return [
                other.place for other in numbers if self.same_number(item.number, other) and _same_force(item, other)
            ]
        found = [other.place for other in self.by_key.get(item.key, ()) if _same_force(item, other)]
        if not found and item.sides:
            # "rose" may stand for "increased".
            found = [
                other.place
                for other in self.items
                if other.number is None and other.sides & item.sides and _same_force(item, other)
            ]
        return found

    def same_number(self, number: Number, other: Item) -> bool:
        """Whether an item of the window is this number, in a table "in millions" also with its scale."""
        quoted = other.number
        if quoted is None:
            return False
        outflow = self.claim.says_outflow
        if numbers_agree(number, quoted, in_row=self.in_row, says_outflow=outflow):
            return True
        scale = self.passage.scale
        if not scale or number.value == number.unscaled or quoted.value != quoted.unscaled:
            return False
        scaled = Number(quoted.value.scaleb(scale), quoted.value, quoted.kind, quoted.sign, quoted.currency)
        return numbers_agree(number, scaled, in_row=self.in_row, says_outflow=outflow)

    def weigh(self) -> Match | None:
        """The match, or None where something is missing or contradicted."""
        claim = self.claim
        missing = [index for index in claim.needed if not self.places[index]]
        lent: set[int] = set()
        header = -1
        for index in missing:
            item = claim.items[index]
            if item.number is not None:
                header = self._column_header(index)
                if header < 0:
                    return None
                lent.add(index)
            elif index in claim.names:
                if not self._is_lent(item.token):
                    return None
                lent.add(index)
            elif item.denied or self._is_contradicted(item):
                return None
        missing = [index for index in missing if index not in lent]
        own = [index for index in missing if claim.items[index].key not in claim.verbs]
        word_keys = {claim.items[index].key for index in claim.needed if claim.items[index].number is None}
        total = len(word_keys) or 1
        if len(own) > (1 - MIN_COVERAGE) * total + 1e-9 or len(missing) > (1 - MIN_OWN_COVERAGE) * total + 1e-9:
            return None
        held = [index for index in claim.needed if self.places[index]]
        if self.last > self.first and not self._is_told_in_turn(held):
            return None
        loose = self._loose(held)
        lent_names = [index for index in lent if claim.items[index].number is None]
        if loose is None or self._is_replaced(own) or self._is_replaced(lent_names, words.SUBJECT_NOUNS):
            return None
        if not self._opposites_hold(loose):
            return None
        if self._is_said_too_often(held):
            return None
        if not all(self._fits_best(index) for index in loose if claim.items[index].number is not None):
            return None
        coverage = 1 - len(missing) / total
        density = min(1.0, len(held) / max(1, len(self.items)))
        # What the second sentence adds must be worth reading it.
        return Match(self.first, self.last, coverage + 0.3 * density - 0.1 * (self.last - self.first), header)

    def _is_lent(self, token: Token) -> bool:
        """Whether the quote need not repeat a name: the document's own, or its paragraph's subject ("it", a row)."""
        if token.folded in self.title:
            return True
        unit = self.passage.units[self.first]
        if not unit.is_row and not self._goes_on():
            return False
        return any(each.folded == token.folded for each in self.passage.tokens[: unit.first_token])

    def _goes_on(self) -> bool:
        """Whether the quote's subject is named before it: a pronoun, or "the company", comes before any name."""
        start = self.passage.units[self.first].first_token
        for index, token in enumerate(self.passage.tokens[start : start + 12]):
            if token.folded in words.PRONOUNS or (token.folded in words.SUBJECT_NOUNS and not token.is_capital):
                return True
            if index > 0 and token.is_capital and token.is_content:
                return False
        return False

    def _is_contradicted(self, item: Item) -> bool:
        """Whether the quote has the missing word denied, hedged, or with or without un-, in-, dis-."""
        if item.key in self.by_key:
            return True
        for prefix in ("un", "in", "im", "ir", "il", "dis", "non"):
            if prefix + item.key in self.by_key:
                return True
            if item.key.startswith(prefix) and item.key[len(prefix) :] in self.by_key:
                return True
        return False

    def _is_told_in_turn(self, held: Sequence[int]) -> bool:
        """Whether a claim of two sentences tells first the one and then the other, and does not mix them."""
        units = self.passage.units[self.first : self.last + 1]
        if any(unit.is_row or unit.is_piece for unit in units):
            return True
        start = self.passage.items[units[1].first].place
        found = [self.places[index] for index in held]
        sides = [places[0] >= start for places in found if not places[0] < start <= places[-1]]
        switches = sum(1 for one, next_one in pairwise(sides) if one != next_one)
        if switches != 1 or sides[0] or min(sides.count(True), sides.count(False)) < 2:
            return False
        # The subject of the first is not that of the second, if the second begins with one that the claim leaves out.
        told = min(place for places in found for place in places[:1] if place >= start)
        said = {place for places in found for place in places}
        return all(item.place in said for item in self.items if start <= item.place < told and not item.is_light)

    def _is_said_too_often(self, held: Sequence[int]) -> bool:
        """Whether the claim gives a number, or a word that has an opposite, more often than the quote."""
        counts: dict[tuple[int, ...], int] = defaultdict(int)
        for index in held:
            item = self.claim.items[index]
            if item.number is not None or item.sides:
                counts[tuple(self.places[index])] += 1
        return any(count > len(places) for places, count in counts.items())

    def _loose(self, held: Sequence[int]) -> list[int] | None:
        """The items that do not stand directly beside a neighbour; None where one stands with none at all.

        A clause may be dropped or moved: then one neighbour remains. A name or number put in another's place has none,
        or stands outside the two between which the claim puts it.
        """
        loose: list[int] = []
        for order, index in enumerate(held):
            here = self.places[index]
            before = self.places[held[order - 1]] if order > 0 else []
            after = self.places[held[order + 1]] if order + 1 < len(held) else []
            behind = min((place - a for place in here for a in before if place >= a), default=99)
            ahead = min((b - place for place in here for b in after if b >= place), default=99)
            near = min(behind, ahead)
            if self.claim.items[index].number is not None:
                # A number is taken for another easily: one that has lost a neighbour is weighed by `_fits_best`, and
                # then in any order: "had 136 sacks" for "sack leader with 136".
                if max(behind if before else 0, ahead if after else 0) > 1:
                    loose.append(index)
                beside = (held[i] for i in (order - 1, order + 1) if 0 <= i < len(held))
                words_beside = [self.places[i] for i in beside if self.claim.items[i].number is None]
                turned = [abs(place - other) for places in words_beside for place in here for other in places]
                near = min([near, *turned])
            elif near > 1:
                loose.append(index)
            if near <= 1:
                continue
            if near > NEIGHBOUR and len(held) > 1 and not self._is_moved(order, held):
                return None
            if any(0 < b - a <= NEIGHBOUR and not any(a < place < b for place in here) for a in before for b in after):
                return None
        return loose

    def _is_moved(self, order: int, held: Sequence[int]) -> bool:
        """Whether the quote's first word is the claim's last, or the reverse: "In 1564, …" → "… in 1564"."""
        here = self.places[held[order]]
        units = [unit for unit in self.passage.units[self.first : self.last + 1] if unit.last > unit.first]
        if order == len(held) - 1:
            return any(self.passage.items[unit.first].place in here for unit in units)
        if order == 0:
            return any(self.passage.items[unit.last - 1].place in here for unit in units)
        return False

    def _is_replaced(self, missing: Sequence[int], stand_ins: Container[str] = ()) -> bool:
        """Whether a missing word stands where the quote has another: "offense" between the neighbours of "defense".

        Args:
            missing: Indices of the claim's items that the quote lacks.
            stand_ins: Words of the quote that may stand for a missing one: "the company" for its name.
        """
        gone = set(missing)
        needed = self.claim.needed
        said = {place for index in needed for place in self.places[index]}
        stands = {
            item.place
            for item in self.items
            if not item.is_light and (item.token.is_capital or item.token.folded not in stand_ins)
        }
        for order, index in enumerate(needed):
            if index not in gone:
                continue
            before = next((self.places[i] for i in reversed(needed[:order]) if self.places[i]), [])
            after = next((self.places[i] for i in needed[order + 1 :] if self.places[i]), [])
            if before and after:
                gaps = [(b - a, a, b) for a in before for b in after if b > a]
                if gaps and 1 < min(gaps)[0] <= NEIGHBOUR + 1:
                    _, a, b = min(gaps)
                    if any(place in stands for place in range(a + 1, b)):
                        return True
                continue
            # At an end of the claim the other word is the one beyond its last neighbour.
            beyond = [place + 1 for place in before] if before else [place - 1 for place in after]
            if beyond and all(place in stands and place not in said for place in beyond):
                return True
        return False

    def _opposites_hold(self, loose: Sequence[int]) -> bool:
        """No word of the claim that the quote lacks, or has elsewhere, stands where the quote has its opposite."""
        for index, item in enumerate(self.claim.items):
            if self.places[index] and index not in loose and not item.is_light:
                continue
            for pair, side in item.sides:
                rivals = [other.place for other in self.items if (pair, 1 - side) in other.sides]
                if not rivals:
                    continue
                same = [other.place for other in self.items if (pair, side) in other.sides]
                best = max((self._fit(item.place, place) for place in same), default=0.0)
                if max(self._fit(item.place, place) for place in rivals) > best * BETTER_FIT:
                    return False
        return True

    def _fit(self, at: int, there: int) -> float:
        """How well the words around a place of the claim are the words around a place of the quote."""
        total = 0.0
        for index in self.claim.needed:
            item = self.claim.items[index]
            distance = abs(item.place - at)
            if item.number is not None or not 0 < distance <= CONTEXT_WORDS or not self.places[index]:
                continue
            near = min(abs(place - there) for place in self.places[index])
            if near:
                total += 1 / (distance * near)
        return total

    def _fits_best(self, index: int) -> bool:
        """Whether the claim's words around a number stand around it in the quote, and not around another."""
        item = self.claim.items[index]
        assert item.number is not None
        here = self.places[index]
        rivals = [
            other.place
            for other in self.by_key.get("#", ())
            if other.number and other.place not in here and _rank(other.number) == _rank(item.number)
        ]
        if not rivals or self.in_row:
            # Cells of a row share one label; which of them is meant, the header says.
            return True
        best = max(self._fit(item.place, place) for place in here)
        return max(self._fit(item.place, place) for place in rivals) <= best * BETTER_FIT

    def _column_header(self, year_index: int) -> int:
        """The header whose column of that year holds the claim's number in this row; -1 where it cannot be shown."""
        year = self.claim.items[year_index].number
        unit = self.passage.units[self.first]
        if year is None or year.kind != "year" or self.first != self.last or unit.header in (-1, self.first):
            return -1
        head = self.passage.units[unit.header]
        years = [
            item.number.value
            for item in self.passage.items[head.first : head.last]
            if item.number and item.number.kind == "year"
        ]
        label = max((place for place, item in enumerate(self.items) if item.number is None), default=-1)
        cells = [item for item in self.items[label + 1 :] if item.number]
        if len(cells) != len(years) or years.count(year.value) != 1:
            return -1
        # The claim's number nearest to the year is the one it is of.
        others = [
            (abs(index - year_index), index, self.claim.items[index].number)
            for index in self.claim.needed
            if (number := self.claim.items[index].number) and number.kind != "year"
        ]
        if not others:
            return -1
        claimed = min(others, key=lambda each: each[:2])[2]
        assert claimed is not None
        return unit.header if self.same_number(claimed, cells[years.index(year.value)]) else -1

    def weigh_fragment(self) -> Match | None:
        """A bare answer ("308", "Kawann Short"): it stands in the sentence that speaks of what was asked."""
        claim = self.claim
        body = [index for index in claim.needed if claim.items[index].key not in claim.verbs or self.places[index]]
        question = claim.question
        if not body or not all(self.places[index] for index in body) or not self._is_wanted(body):
            return None
        # One after the other, as whole words.
        starts = [
            start
            for start in self.places[body[0]]
            if all(start + step in self.places[index] for step, index in enumerate(body))
        ]
        keys = self.passage.units[self.first].keys
        weight = question_weight(question, keys, self.passage, self.title)
        shared = sum(1 for key in question.asked if key in keys)
        if not starts or not shared or weight < MIN_SHARE_OF_BEST * question.best:
            return None
        if weight < MIN_QUESTION_COVERAGE * sum(question.weights.values()):
            return None
        asked = question.asked
        # Of the numbers of its kind it is the one that the question's words stand around.
        for step, index in enumerate(body):
            number = claim.items[index].number
            if number is None:
                continue
            here = [start + step for start in starts]
            rivals = [
                item.place
                for item in self.by_key["#"]
                if item.number and item.place not in self.places[index] and _rank(item.number) == _rank(number)
            ]
            near = max(self._nearness(asked, place) for place in here)
            if max((self._nearness(asked, place) for place in rivals), default=0.0) > near * BETTER_FIT:
                return None
        return Match(self.first, self.last, weight / question.best)

    def _is_wanted(self, body: Sequence[int]) -> bool:
        """Whether the fragment could answer: a number to "how many", a name to "who", no mere echo of the question."""
        question = self.claim.question
        items = [self.claim.items[index] for index in body]
        if question.wants == "number" and not any(item.number for item in items):
            return False
        if question.wants == "name" and not any(item.token.is_capital for item in items):
            return False
        has_choice = any(token.folded == "or" for token in question.tokens)
        return has_choice or not all(item.number is None and item.key in question.asked for item in items)

    def _nearness(self, asked: dict[str, Token], there: int) -> float:
        return sum(
            1 / max(1, min(abs(item.place - there) for item in self.by_key[key])) for key in asked if key in self.by_key
        )


def _same_force(claimed: Item, quoted: Item) -> bool:
    """Whether a word is denied as often; a claim may hedge what the evidence states, not the reverse."""
    return claimed.denied == quoted.denied and (claimed.hedged or not quoted.hedged)


def _rank(number: Number) -> str:
    """Numbers of one rank could be taken for one another."""
    return "amount" if number.kind in ("plain", "money") else number.kind


def best_match(claim: Claim, passage: Passage, title: frozenset[str]) -> Match | None:
    """The shortest window of a passage that proves the claim best, or None.

    Args:
        claim: The sentence.
        passage: The evidence.
        title: Folded words of the document's name.
    """
    # A Chinese name in brackets does not make the sentence Chinese.
    if 2 * len(_UNSPACED_LETTER.findall(claim.text)) > len(claim.text):
        return _verbatim(claim, passage)
    wanted = {item.key: item for item in (claim.items[index] for index in claim.needed)}
    # No window can hold what the passage does not.
    numbers = [item.number for item in (claim.items[index] for index in claim.needed) if item.number]
    for number in numbers:
        if number.value not in passage.values and (
            not passage.scale or number.value.scaleb(-passage.scale) not in passage.values
        ):
            return None
    gone = sum(
        1
        for key, item in wanted.items()
        if item.number is None and key not in passage.keys and key not in claim.verbs and not item.sides
        and item.token.folded not in title
    )  # fmt: skip
    if gone > (1 - MIN_COVERAGE) * len(wanted) + 1e-9:
        return None
    own_words = sum(1 for key in wanted if key != "#" and key not in claim.verbs)
    is_fragment = own_words + len({number.value for number in numbers}) < FRAGMENT_ITEMS
    best: Match | None = None
    for first, last in _windows(claim, passage, wanted):
        if is_fragment and first != last:
            continue
        window = _Window(claim, passage, title, first, last)
        match = window.weigh_fragment() if is_fragment else window.weigh()
        if match and (best is None or match.score > best.score):
            best = match
    return best


def _windows(claim: Claim, passage: Passage, wanted: dict[str, Item]) -> Iterator[tuple[int, int]]:
    """Runs of units that a quote may span: a sentence, two, the rows of a table, the pieces of a long sentence."""
    longest = max(MAX_QUOTE_CHARACTERS, min(MAX_LONG_QUOTE_CHARACTERS, len(claim.text) * 5 // 4))
    units = passage.units
    hits = []
    for unit in units:
        found = wanted.keys() & unit.keys
        if "#" in wanted and any(item.number for item in passage.items[unit.first : unit.last]):
            found.add("#")
        hits.append(found)
    # Words of one side may stand for one another and names may be lent, hence only half is asked here.
    enough = max(1, len(wanted) // 2)
    for first, unit in enumerate(units):
        together: set[str] = set()
        for last in range(first, min(len(units), first + 8)):
            other = units[last]
            if last > first and (
                other.end - unit.start > longest or (last > first + 1 and not (other.is_row or other.is_piece))
            ):
                break
            adds = not hits[last] <= together
            together |= hits[last]
            if adds and hits[first] and len(together) >= enough:
                yield first, last


def _verbatim(claim: Claim, passage: Passage) -> Match | None:
    """For scripts without spaces and capitals only a sentence repeated letter for letter counts."""
    claimed = "".join(token.folded for token in tokenize(claim.text))
    for index, unit in enumerate(passage.units):
        inside = [token for token in passage.tokens[unit.first_token :] if token.start < unit.end]
        quoted = "".join(token.folded for token in inside)
        if len(claimed) >= 4 and claimed in quoted:
            return Match(index, index, len(claimed) / len(quoted))
    return None
