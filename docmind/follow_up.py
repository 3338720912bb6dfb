"""A follow-up question → a question that can be searched by itself. Rules, no model: it costs no call and no second.

"And the year before?" finds nothing; "What did the repairs cost in 2022?" does. Rules can only put in what was asked
before: a question that is taken for a follow-up and is none is searched with a few words too many.

Limitations: English, like the search. What a pronoun means is not resolved; the earlier question goes along instead.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from docmind.search import STOP_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_OWN_WORDS: Final = 8  # a question with more words of its own says by itself what it asks for
MAX_WORDS_BEFORE: Final = 24  # of the earlier question: the search reads 32 words, and the new ones come last
_WORD: Final = re.compile(r"[\w'’-]+")
_SENTENCE_END: Final = re.compile(r"(?<=[?.!])\s+")
_YEAR: Final = re.compile(r"\b(1[89]\d\d|20\d\d)\b")
# Begins like something that goes on.
_GOES_ON: Final = re.compile(
    r"^(and|but|or|so|also|then|plus|what about|how about|what else|anything else|why|since when|in which|"
    r"compared|instead|same)\b",
    re.IGNORECASE,
)
_ASKS_WHY: Final = re.compile(r"^(why|in which|since when|so)\b", re.IGNORECASE)
# Points at something that was named before.
_POINTS_BACK: Final = re.compile(
    r"\b(it|its|itself|they|them|their|theirs|he|him|his|she|her|hers|this|that|these|those|there|"
    r"the same(?!-)|the former|the latter|the other|the others|another one|each of them|"
    r"both(?= of (them|these)|\W*$)|ones|(which|what|that|this|the other) one)\b",
    re.IGNORECASE,
)
_POSSESSIVES: Final = frozenset({"its", "their", "his", "her"})
# What was named in an earlier part of the question is what a later part points at.
_NEW_CLAUSE: Final = re.compile(
    r",? (?:and|or|but|when|while|if|because|before|after|until|so that|so|once) ", re.IGNORECASE
)
# "What is swarming?" has one word of its own and needs no other.
_ASKS_ABOUT: Final = re.compile(
    r"^(what (is|are)|tell me about|explain|define)\s+(?!the\b|this|that|it\b)", re.IGNORECASE
)
# These point at nothing: "Is it true that …", "Which bees are there …", "How long does it take to …", "this report".
_POINTS_NOWHERE: Final = re.compile(
    r"\b((is|was) it (\w+ )?(to|true|possible|from|in|at)\b( that)?|"
    r"(does|did|will|when|if) it (take|rain|rains|snow|snows)|is there|are there|was there|were there|"
    r"(true|said|say|says|stated?|claims?) that|one of|(no|any|some|every)one|"
    r"(this|these|those|that) (document|report|study|paper|file|book|contract|page|text|year)s?)|"
    r"\b(?!so )\w+ (that|who) ",
    re.IGNORECASE,
)
# Relative to the year that was asked about; "last year" and "next year" are relative to today.
_YEAR_BEFORE: Final = re.compile(
    r"\b(the |in the )?(year before( that)?|previous year|prior year|preceding year|year earlier)\b",
    re.IGNORECASE,
)
_YEAR_AFTER: Final = re.compile(r"\b(the |in the )?(year after( that)?|following year|year later)\b", re.IGNORECASE)
_EMPTY: Final = frozenset(
    "and but or so also then plus about how what else why same instead please tell me compared anything ones".split()
)


def standalone(question: str, earlier: Sequence[str]) -> str:
    """The question to search for.

    Args:
        earlier: The questions asked before in the chat as they were searched for, oldest first.

    Returns:
        The question itself when it says by itself what it asks for; else one that holds what it refers to.
    """
    question = question.strip()
    before = next((text.strip() for text in reversed(earlier) if text.strip()), "")
    if not before or not _is_follow_up(question):
        return question
    year = _year_meant(question, before)
    if year is not None and not _own_words(_YEAR.sub(" ", _YEAR_BEFORE.sub(" ", _YEAR_AFTER.sub(" ", question)))):
        # Only the year changes: the same question about another year, without the old one that would be found instead.
        return _YEAR.sub(year, before) if _YEAR.search(before) else f"{before.rstrip(' ?.!')} in {year}?"
    parts = _SENTENCE_END.split(before)
    if len(parts) > 2:  # a chain of follow-ups: where it began, and what was asked last
        before = f"{parts[0]} {parts[-1]}"
    before = " ".join(before.split()[:MAX_WORDS_BEFORE])
    if year is not None:
        before = _YEAR.sub(year, before)
        question = _YEAR_AFTER.sub(year, _YEAR_BEFORE.sub(year, question))
    return f"{before} {question}"


def _is_follow_up(question: str) -> bool:
    own = _own_words(question)
    if len(own) > MAX_OWN_WORDS:
        return False
    if _GOES_ON.search(question) or _YEAR_BEFORE.search(question) or _YEAR_AFTER.search(question):
        # "Why do bees swarm?" goes on with nothing: it names what it asks for.
        return not own or not _ASKS_WHY.search(question) or bool(_POINTS_BACK.search(question))
    text = _POINTS_NOWHERE.sub(" ", question)
    if points := _POINTS_BACK.search(text):
        ahead = text[: points.start()]
        clause = _NEW_CLAUSE.search(ahead + " ")
        if clause and _own_words(ahead[: clause.start()]):
            return False
        return points[0].lower() not in _POSSESSIVES or len(_own_words(ahead)) < 2
    names_something = any(word[0].isupper() for word in _WORD.findall(question)[1:])
    return len(own) <= 1 and not _ASKS_ABOUT.search(question) and not names_something


def _own_words(question: str) -> list[str]:
    """The words that say what is asked for."""
    return [word for word in _WORD.findall(question.lower()) if word not in STOP_WORDS and word not in _EMPTY]


def _year_meant(question: str, before: str) -> str | None:
    """The year a follow-up names, or means relative to the one asked about before."""
    named = _YEAR.findall(question)
    if named:
        return str(named[0])
    asked = _YEAR.findall(before)
    if not asked:
        return None
    if _YEAR_BEFORE.search(question):
        return str(int(asked[-1]) - 1)
    if _YEAR_AFTER.search(question):
        return str(int(asked[-1]) + 1)
    return None
