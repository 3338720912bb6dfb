"""First questions, made from what the documents speak of."""

from __future__ import annotations

import json

import pytest

from docmind import store
from docmind.suggest import first_questions

HARBOUR = "The Ellmere Harbour Board met. Ellmere Harbour Board members agreed. The Ellmere Harbour Board is old."
BEES = "Queen Victoria kept bees. Queen Victoria liked honey. Bees liked Queen Victoria. Then came winter."


def _set_outline(library, name, entries):
    with store.writing(library.path) as db:
        db.execute("UPDATE documents SET outline = ? WHERE name = ?", (json.dumps(entries), name))


def test_an_empty_library_has_no_questions(library):
    """There is nothing to ask."""
    assert first_questions(library) == []


def test_names_that_come_back_are_asked_for_one_per_document(library, insert):
    """The document added last comes first."""
    insert(library, "harbour.txt", (HARBOUR,))
    insert(library, "bees.txt", (BEES,))
    questions = first_questions(library)
    assert len(questions) == 2
    assert set(questions) == {
        "What does harbour.txt say about Ellmere Harbour Board?",
        "What does bees.txt say about Queen Victoria?",
    }


@pytest.mark.parametrize(
    ("heading", "topic"),
    [
        ("3. Loading and unloading", "Loading and unloading"),
        ("Chapter 2: Tides of the estuary", "Tides of the estuary"),
        ("IV. GDP growth", "GDP growth"),
        ("Contents", None),
        ("List of figures", None),
        ("A Guide", None),
        ("Pilots", None),
        ("x" * 300, None),
    ],
)
def test_headings_of_the_outline_are_topics(library, insert, heading, topic):
    """Without their numbers; what every document has is no topic."""
    insert(library, "a guide.txt", ("Nothing comes back here.",))
    _set_outline(library, "a guide.txt", [[1, heading]])
    assert first_questions(library) == ([f"What does a guide.txt say about {topic}?"] if topic else [])


def test_one_document_gives_several_questions(library, insert):
    """At most as many as wanted, each once."""
    insert(library, "guide.txt", ("Text.",))
    _set_outline(library, "guide.txt", [[1, f"Loading of {word}"] for word in ("coal", "grain", "salt", "salt")])
    assert len(first_questions(library)) == 3
    assert len(set(first_questions(library))) == 3
    assert len(first_questions(library, 1)) == 1
