"""Conversations: kept as they happen, found again, deleted for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

from docmind import chats, runs, store
from docmind.errors import ModelNotFound


def _begin(library, chat="c1", question="How many quays are there?"):
    run_id = runs.start_run(library, "answer")
    return run_id, chats.begin(library, chat, question, run_id)


def test_a_question_is_kept_before_it_is_answered(library):
    """With an answer that is being written, and grows."""
    _, message_id = _begin(library)
    asked, answer = chats.messages(library, "c1")
    assert (asked.role, asked.text, asked.finished) == ("user", "How many quays are there?", None)
    assert (answer.message_id, answer.text, answer.finished) == (message_id, "", None)
    chats.keep_partial(library, message_id, "There are")
    assert chats.messages(library, "c1")[-1].text == "There are"


def test_a_failed_answer_says_why_and_what_to_do(library):
    """As the error did."""
    _, message_id = _begin(library)
    chats.fail(library, message_id, ModelNotFound("There is no model 'x'.", "Take another."))
    answer = chats.messages(library, "c1")[-1]
    assert answer.finished == "failed"
    assert answer.details == {"reason": "model_missing", "message": "There is no model 'x'.", "hint": "Take another."}


def test_an_answer_whose_process_died_is_cut_and_keeps_its_text(library):
    """Another process writes half an answer and is gone without a word."""
    script = (
        "import os, sys; from docmind import chats, runs; from docmind.library import open_library\n"
        "library = open_library(sys.argv[1])\n"
        "run = runs.start_run(library, 'answer')\n"
        "chats.keep_partial(library, chats.begin(library, 'c1', 'Why?', run), 'Because')\n"
        "print(chats.messages(library, 'c1')[-1].finished, flush=True); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(library.config.home)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "None", done.stderr
    answer = chats.messages(library, "c1")[-1]
    assert (answer.text, answer.finished, answer.details) == ("Because", "cut", {"reason": "interrupted"})


def test_chats_come_newest_first_and_are_found_by_their_words(library):
    """In the title, the question or the answer; % and _ are letters like others."""
    for chat, question in (("a", "About bees"), ("b", "About 100 % wool"), ("c", "About quays")):
        _, message_id = _begin(library, chat, question)
        chats.keep_partial(library, message_id, f"Answer of {chat}.")
    _begin(library, "a", "And honey?")
    assert next(chat.chat_id for chat in chats.list_chats(library)) == "a"
    assert {chat.chat_id for chat in chats.list_chats(library)} == {"a", "b", "c"}
    assert [chat.chat_id for chat in chats.list_chats(library, "HONEY")] == ["a"]
    assert [chat.chat_id for chat in chats.list_chats(library, "of b")] == ["b"]
    assert [chat.chat_id for chat in chats.list_chats(library, "%")] == ["b"]
    assert chats.list_chats(library, "_") == []


@pytest.mark.parametrize(
    ("given", "title"), [("  New\nname ", "New name"), (" ", "How many quays are there?"), ("x" * 80, "x" * 59 + "…")]
)
def test_a_chat_takes_another_title(library, given, title):
    """One line of at most 60 characters; nothing is no title."""
    _begin(library)
    chats.rename(library, "c1", given)
    assert [chat.title for chat in chats.list_chats(library)] == [title]


def test_a_deleted_chat_leaves_no_word_and_does_not_come_back(library):
    """Also by an answer that is still being written."""
    run_id, message_id = _begin(library, question="Does Quibblethorpe moor here?")
    chats.keep_partial(library, message_id, "Quibblethorpe does.")
    chats.delete(library, "c1")
    chats.keep_partial(library, message_id, "Quibblethorpe does, often.")
    chats.fail(library, message_id, None)
    assert chats.messages(library, "c1") == []
    assert chats.list_chats(library) == []
    everything = b"".join(path.read_bytes() for path in library.config.home.rglob("*") if path.is_file())
    assert b"Quibblethorpe" not in everything
    assert run_id


def test_a_library_of_the_first_version_takes_the_new_column(config, monkeypatch):
    """Its messages stay."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "MIGRATIONS", store.MIGRATIONS[:1])
        store.prepare(config.database)
        with store.writing(config.database) as db:
            db.execute("INSERT INTO chats VALUES ('c1', 'old', '2026', '2026')")
            db.execute("INSERT INTO messages (chat_id, role, text, created_at) VALUES ('c1', 'user', 'Hello?', '2026')")
    from docmind.library import Library

    (message,) = chats.messages(Library(config), "c1")
    assert (message.text, message.details) == ("Hello?", {})
