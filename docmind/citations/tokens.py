"""Text → words and numbers in a form that can be compared, each with its place in the text.

Knows how numbers, names and words are written; knows nothing of evidence or support.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from docmind.citations import words

NumberKind = Literal["plain", "money", "percent", "points", "ordinal", "decade", "year"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is compared.

    Attributes:
        value: With its scale applied; "5 million" is 5000000.
        unscaled: As written; a table "in millions" prints 5.
        sign: -1 minus sign, 1 none, 0 in parentheses (negative in a table, an aside in prose).
        currency: The symbol, "" when none is written.
    """

    value: Decimal
    unscaled: Decimal
    kind: NumberKind
    sign: int = 1
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A word or a number. `key` is what is compared: a stem; `folded` the whole word without case and accents."""

    start: int
    end: int
    text: str
    folded: str
    key: str
    number: Number | None = None
    parts: tuple[str, ...] = ()  # keys of the halves of a word broken at a line end: "well-\nknown"

    @property
    def is_capital(self) -> bool:
        return self.text[0].isupper() or self.text[0].isdigit()

    @property
    def is_negation(self) -> bool:
        return self.number is None and (self.folded in words.NEGATIONS or self.folded.endswith("n't"))

    @property
    def is_content(self) -> bool:
        """A word that says something: no stop word, no number, no negation."""
        return self.number is None and self.folded not in words.STOP_WORDS and not self.is_negation


# Invisible characters that sit inside words: soft hyphen, zero-width and direction marks, word joiner, BOM.
_INVISIBLE = "\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
_LETTER = r"(?:[^\W\d_]|[\u0300-\u036f])"
_ALNUM = r"(?:[^\W_]|[\u0300-\u036f])"
_CURRENCY = "$€£¥₹"
_FRACTIONS = "¼½¾⅓⅔⅛⅜⅝⅞"
# Scripts written without spaces; each character is a token.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"

# Every repetition is unambiguous or bounded: time is linear in the text, whatever the text is.
_TOKEN = re.compile(
    rf"""
    (?P<unspaced>[{_UNSPACED}])
  | (?P<acronym>\b(?:[^\W\d_]\.){{2,8}})
  | (?P<word>[^\W\d_]{_ALNUM}*(?:(?:['’&{_INVISIBLE}]|-[ \t]?\r?\n[ \t]{{0,8}}(?-i:(?=[a-z]))){_ALNUM}+)*)
  | (?:(?P<currency>[{_CURRENCY}])[ \t]{{0,2}}\n?[ \t]{{0,2}})?
    (?P<open>\([ ]?)?(?P<currency2>[{_CURRENCY}][ ]?)?(?P<sign>[-−–](?=[\d.]))?
    (?P<digits>\d{{1,3}}(?:,\d{{2,3}}){{0,8}},\d{{3}}(?!\d)(?:\.\d{{1,40}})?|\d+(?:\.\d{{1,40}})?|\.\d{{1,40}}|(?=[{_FRACTIONS}]))
    (?P<fraction>[{_FRACTIONS}])?
    (?P<suffix>{_LETTER}{{1,12}}(?!{_ALNUM}))?
    (?P<unit>
        \s{{0,2}}[%％] | [ ]?\n?(?:percentage[ ]points?|basis[ ]points?|bps)\b | [ -]?\n?(?:percent|per[ ]cent|pct)\b
      | [ -]?\n?(?P<scale>hundred|thousand|million|billion|trillion)s?\b
    )?(?P<close>\s?\))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BROKEN = re.compile(rf"-[ \t]?\r?\n[ \t]*|[{_INVISIBLE}]")
_FISCAL = re.compile(r"fy'?((?:19|20)?\d\d)")
_HALF = {"¼": "0.25", "½": "0.5", "¾": "0.75", "⅛": "0.125", "⅜": "0.375", "⅝": "0.625", "⅞": "0.875"}

_stemmers = threading.local()  # a Snowball stemmer keeps its word in itself: one per thread


@lru_cache(maxsize=1 << 16)
def _stem(folded: str) -> str:
    base = words.IRREGULAR.get(folded, folded)
    # Longer "words" are noise, and the stemmer is not fast.
    if len(base) > 40 or not base.isascii():
        return base[:200]
    stemmer = getattr(_stemmers, "english", None)
    if stemmer is None:
        from snowballstemmer.english_stemmer import EnglishStemmer

        stemmer = _stemmers.english = EnglishStemmer()
    return str(stemmer.stemWord(base))


@lru_cache(maxsize=1 << 16)
def fold(word: str) -> str:
    """A word without case, accents and possessive s, for comparison."""
    folded = word.casefold().replace("’", "'")
    if not folded.isascii():
        folded = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c)).casefold()
    if folded.endswith("'s"):
        folded = folded[:-2]
    return folded.strip("'") or word


def key_of(word: str) -> str:
    """The stem a word is compared by."""
    return _stem(fold(word))


def tokenize(text: str) -> list[Token]:
    """The words and numbers of a text, in order."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        start, end = match.span()
        if match["digits"] is not None:
            tokens.extend(_number_tokens(match, text))
            continue
        raw = match.group()
        if kind == "unspaced":
            tokens.append(Token(start, end, raw, raw, raw))
            continue
        if kind == "acronym":
            folded = fold(raw.replace(".", ""))
            tokens.append(Token(start, end, raw, folded, _stem(folded)))
            continue
        pieces = _BROKEN.split(raw)
        folded = fold("".join(pieces))
        parts = tuple(key_of(piece) for piece in pieces if piece) if "\n" in raw else ()
        tokens.append(_word_token(start, end, raw, folded, parts, tokens))
        # "twenty-five" is one number.
        if len(tokens) > 1 and tokens[-1].number and tokens[-2].number:
            _join_tens(tokens, text)
    return tokens


def _word_token(start: int, end: int, raw: str, folded: str, parts: tuple[str, ...], before: list[Token]) -> Token:
    number: Number | None = None
    if folded in words.NUMBER_WORDS:
        value = Decimal(words.NUMBER_WORDS[folded])
        number = Number(value, value, "plain")
    elif folded in words.ORDINAL_WORDS:
        value = Decimal(words.ORDINAL_WORDS[folded])
        number = Number(value, value, "ordinal")
    elif folded in words.SCALES and before and before[-1].number and before[-1].text.isalpha():
        # "two hundred", "five million" with the five in letters; digits took their scale already.
        last = before.pop()
        assert last.number is not None
        value = last.number.value.scaleb(words.SCALES[folded])
        return Token(last.start, end, raw, folded, "#", Number(value, last.number.value, "plain"))
    elif fiscal := _FISCAL.fullmatch(folded):
        year = fiscal[1] if len(fiscal[1]) == 4 else "20" + fiscal[1]
        number = Number(Decimal(year), Decimal(year), "year")
    if number is not None:
        return Token(start, end, raw, folded, "#", number)
    key = _stem(folded)
    # "second quarter" and "Q2" are one thing; the ordinal stays a number of its own.
    if folded == "quarter" and before and before[-1].number and before[-1].number.kind == "ordinal":
        parts = (f"q{before[-1].number.value}",)
    return Token(start, end, raw, folded, key, None, parts)


def _join_tens(tokens: list[Token], text: str) -> None:
    tens, ones = tokens[-2], tokens[-1]
    assert tens.number is not None
    assert ones.number is not None
    if not tens.text.isalpha() or not ones.text.isalpha() or text[tens.end : ones.start] not in ("-", " "):
        return
    if tens.number.kind == "plain" and tens.number.value in range(20, 100, 10) and 0 < ones.number.value < 10:
        value = tens.number.value + ones.number.value
        tokens[-2:] = [Token(tens.start, ones.end, text[tens.start : ones.end], ones.folded, "#",
                             Number(value, value, ones.number.kind))]  # fmt: skip


def _number_tokens(match: re.Match[str], text: str) -> list[Token]:
    """One token for a number; with its unit's letters as a second, or a name such as 777X."""
    start, end = match.span()
    digits, suffix = match["digits"], match["suffix"] or ""
    # The match may end in a bracket that belongs to the sentence; the token is then what was read before it.
    if match["close"] and not match["open"]:
        end -= len(match["close"])
    if match["open"] and not match["close"]:
        start = match.start("digits") if not match["currency"] else start
    raw = text[start:end]
    plain = digits.replace(",", "")
    if len(plain) > 40:
        # No quantity has forty digits; compared as a word.
        return [Token(start, end, raw, plain[:200], plain[:200])]
    value = Decimal(plain or "0") + Decimal(_HALF.get(match["fraction"] or "", "0"))
    if match["fraction"] and match["fraction"] not in _HALF:
        value += (Decimal(1 if match["fraction"] == "⅓" else 2) / 3).quantize(Decimal("0.001"))
    currency = (match["currency"] or match["currency2"] or "").strip()
    unit = (match["unit"] or "").casefold()
    folded_suffix = suffix.casefold()
    extra: list[Token] = []
    kind: NumberKind = "money" if currency else "plain"
    scale = words.SCALES.get((match["scale"] or "").casefold(), 0)
    if suffix:
        if folded_suffix in ("st", "nd", "rd", "th"):
            kind = "ordinal"
        elif folded_suffix == "s":
            kind = "decade"
        elif folded_suffix in words.SCALE_SUFFIXES and (currency or folded_suffix in ("mn", "bn", "tn")):
            # "$5m" is money; "5m" and "5mm" are lengths.
            scale = words.SCALE_SUFFIXES[folded_suffix]
        elif folded_suffix in words.UNIT_SUFFIXES and suffix == folded_suffix:
            at = match.start("suffix")
            extra = [Token(at, match.end("suffix"), suffix, folded_suffix, _stem(folded_suffix))]
        else:
            folded = fold(digits + suffix)
            return [Token(match.start("digits"), match.end("suffix"), digits + suffix, folded, folded)]
    if "%" in unit or "％" in unit or ("cent" in unit and "age" not in unit) or "pct" in unit:
        kind = "percent"
    elif "point" in unit or "bps" in unit:
        kind = "points"
    if (
        kind == "plain" and not scale and len(plain) == 4 and plain.isdigit() and "," not in digits
        and 1000 <= value <= 2100
    ):  # fmt: skip
        kind = "year"
    sign = 1
    before = text[match.start("sign") - 1 : match.start("sign")] if match["sign"] else ""
    if match["sign"] and not (before.isalnum() or before in (")", "%")):
        sign = -1
    elif match["open"] and match["close"]:
        sign = 0
    number = Number(value.scaleb(scale), value, kind, sign, currency)
    return [Token(start, end, raw, plain, "#", number), *extra]
