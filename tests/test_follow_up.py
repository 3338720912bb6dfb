"""A follow-up is searched with what it refers to, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docmind.follow_up import standalone

QUAY = "What did repairs of the north quay cost in 2023?"
PILOTS = "How many people does the pilot station employ?"


@pytest.mark.parametrize(
    ("question", "before", "searched"),
    [
        ("And the year before?", QUAY, "What did repairs of the north quay cost in 2022?"),
        ("and the following year?", QUAY, "What did repairs of the north quay cost in 2024?"),
        ("What about 2019?", QUAY, "What did repairs of the north quay cost in 2019?"),
        ("And in 2019?", PILOTS, "How many people does the pilot station employ in 2019?"),
        ("Who is its director?", PILOTS, f"{PILOTS} Who is its director?"),
        ("What about the south quay?", QUAY, f"{QUAY} What about the south quay?"),
        ("Why?", QUAY, f"{QUAY} Why?"),
        ("How much did they cost the year before?", QUAY, f"{QUAY[:-5]}2022? How much did they cost 2022?"),
        ("and the year before?", PILOTS, f"{PILOTS} and the year before?"),
    ],
)  # fmt: skip
def test_a_follow_up_takes_along_what_was_asked_before(question, before, searched):
    """The year moves; anything else goes along with the earlier question."""
    assert standalone(question, [before]) == searched


@pytest.mark.parametrize(
    "question",
    [
        "When do bees swarm?",
        "Why do bees swarm in May?",
        "How many eggs does a lemon cake need?",
        "Is it true that herring landings fell?",
        "How long does it take to bake the cake?",
        "Who was the quarterback that threw the winning pass?",
        "Are there any bees in Ellmere?",
        "What is the Amazon rainforest?",
        "What is swarming?",
        "How much honey does a colony need so that it survives the winter?",
        "When do the bees leave their hive?",
        "What time is it in Tokyo?",
        "How many containers were handled last year?",
        "What does this report say about the pilots?",
        "Is it legal to record a call?",
        "Ellmere?",
    ],
)
def test_a_question_that_stands_by_itself_is_searched_as_it_is(question):
    """Also when something was asked before."""
    asked = f"About {question}" if question == "Ellmere?" else question
    assert standalone(asked, [QUAY]) == asked
    assert standalone(question, []) == question


def test_a_chain_of_follow_ups_refers_to_what_the_last_one_meant():
    """2023, the year before, and the year before that."""
    first = standalone("And the year before?", [QUAY])
    assert standalone("And the year before that?", [QUAY, first]) == QUAY.replace("2023", "2021")


def test_a_long_question_leaves_room_for_the_follow_ups_own_words():
    """The search reads 32 words."""
    words = standalone("What about the beekeepers?", ["Which " + "long " * 60 + "question?"]).split()
    assert len(words) <= 32
    assert words[-1] == "beekeepers?"


def test_a_long_chain_keeps_where_it_began_and_what_was_asked_last():
    """It does not grow with every question."""
    asked = [QUAY]
    for question in ("Who paid for it?", "Why did they?", "And who decided it?"):
        asked.append(standalone(question, asked))
    assert asked[-1] == f"{QUAY} Why did they? And who decided it?"


@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=3))
def test_any_text_gives_a_text_that_holds_the_question_or_the_one_before(question, earlier):
    """Nothing raises, nothing is lost."""
    searched = standalone(question, earlier)
    assert isinstance(searched, str)
    assert question.strip() in searched or any(text.strip() and text.strip()[:3] in searched for text in earlier)
