"""An answer that was cut goes on: with its own model, its own evidence, and nothing twice."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers.ollama import Reply, serve

from docmind import chats, runs
from docmind.answer import ask
from docmind.continuing import CONTINUE, joined, to_go_on_from
from docmind.errors import DocMindError
from docmind.events import TextDelta

pytestmark = pytest.mark.usefixtures("end_models")
QUAY = "How much did the repairs of the north quay cost?"
OLLAMA = {"backend": "ollama", "model": "qwen3:4b"}
BEGUN = "The repairs of the north quay cost"


@pytest.fixture
def ollama(monkeypatch):
    """The stand-in, where Ollama would listen."""
    with serve() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


def replies(text, done_reason="stop", **settings):
    """A reply, word by word."""
    words = text.split(" ")
    return Reply((words[0], *(f" {word}" for word in words[1:])), done_reason=done_reason, **settings)


@pytest.fixture
def cut(stocked, ollama):
    """A chat whose answer ended at its limit, in the middle of a sentence."""
    ollama.enqueue(replies(f"Answer: {BEGUN} 3.7 mil", "length"))
    answer = list(ask(stocked, QUAY, chat="c", **OLLAMA))[-1]
    assert (answer.finished, answer.reason) == ("cut", "cut_at_limit")
    return answer


def test_an_answer_that_was_cut_goes_on_with_its_evidence(stocked, ollama, cut):
    """The model reads what it had read, what it wrote, and the word to go on; the message stays one."""
    ollama.enqueue(replies("million euros and ended in October."))
    events = list(ask(stocked, "", chat="c", continues=True))
    answer = events[-1]
    assert answer.text == f"{BEGUN} 3.7 million euros and ended in October."
    assert (answer.finished, answer.backend, answer.model) == ("complete", "ollama", "qwen3:4b")
    assert [(c["page"], "3.7 million" in c["quote"]) for c in answer.citations] == [(1, True)]
    text = ""
    for event in events:
        if isinstance(event, TextDelta):
            text = event.text if event.replaces else text + event.text
    assert text == answer.text
    told = ollama.chats[-1]["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert "3.7 million euros" in told[1]["content"]
    assert QUAY in told[1]["content"]
    assert (told[2]["content"], told[3]["content"]) == (f"{BEGUN} 3.7", CONTINUE)
    kept = chats.messages(stocked, "c")
    assert [(message.role, message.finished) for message in kept] == [("user", None), ("assistant", "complete")]
    assert kept[1].text == answer.text
    assert len(kept[1].citations) == len(answer.citations)


def test_an_answer_can_go_on_more_than_once(stocked, ollama, cut):
    """Each time from its end; its quotes are not doubled."""
    ollama.enqueue(replies("million euros and", "length"))
    assert list(ask(stocked, "", chat="c", continues=True))[-1].finished == "cut"
    ollama.enqueue(replies("and ended in October."))
    answer = list(ask(stocked, "", chat="c", continues=True))[-1]
    assert answer.text == f"{BEGUN} 3.7 million euros and ended in October."
    assert len(chats.messages(stocked, "c")[1].citations) == 1


def test_what_was_written_survives_whatever_happens_to_the_rest(stocked, ollama, cut, monkeypatch):
    """The server dies, says nothing, or the model is gone: the text stays, and can go on later."""
    for broken in (
        Reply(("milli",), end="nothing"),
        Reply((), end="reset"),
        Reply((), end="error", error="no"),
    ):
        before = chats.messages(stocked, "c")[1].text
        ollama.enqueue(broken)
        answer = list(ask(stocked, "", chat="c", continues=True))[-1]
        assert answer.finished == "cut"
        kept = chats.messages(stocked, "c")[1]
        assert kept.text.startswith(to_go_on_from(before))
        assert kept.details["hint"]
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    answer = list(ask(stocked, "", chat="c", continues=True))[-1]
    assert (answer.finished, answer.reason) == ("cut", "unreachable")
    assert answer.fallbacks == (), "never two models in one text"
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    ollama.enqueue(replies("million euros."))
    answer = list(ask(stocked, "", chat="c", continues=True))[-1]
    assert (answer.finished, answer.text) == ("complete", f"{BEGUN} 3.7 million euros.")


def test_a_model_that_says_nothing_more_leaves_the_answer_cut_and_whole(stocked, ollama, cut):
    """Not a word short, and not called complete."""
    for silent in (Reply((" ",)), replies(BEGUN)):
        ollama.enqueue(silent)
        answer = list(ask(stocked, "", chat="c", continues=True))[-1]
        assert (answer.finished, answer.text) == ("cut", cut.text)
    assert chats.messages(stocked, "c")[1].text == cut.text


def test_a_stop_while_the_model_loads_takes_no_word_away(stocked, ollama, cut):
    """It was not asked yet."""
    stop = threading.Event()
    stop.set()
    answer = list(ask(stocked, "", chat="c", continues=True, stop=stop))[-1]
    assert (answer.finished, answer.text) == ("stopped", cut.text)


def test_an_answer_goes_on_once_at_a_time(stocked, ollama, cut):
    """The second is refused, and what the first writes is kept."""
    message = chats.messages(stocked, "c")[1]
    assert chats.reopen(stocked, message, "another")
    assert not chats.reopen(stocked, message, "a third")


def test_an_answer_left_at_its_first_event_can_go_on_later(stocked, ollama, cut):
    """A page that was closed at once strands nothing."""
    events = ask(stocked, "", chat="c", continues=True)
    next(events)
    events.close()
    ollama.enqueue(replies("million euros."))
    assert list(ask(stocked, "", chat="c", continues=True))[-1].finished == "complete"


def test_a_model_at_another_address_does_not_go_on(stocked, ollama, cut, monkeypatch):
    """It is another one, whatever its name; and nobody was told that text goes there."""
    with serve() as other:
        monkeypatch.setenv("OLLAMA_HOST", other.url)
        answer = list(ask(stocked, "", chat="c", continues=True))[-1]
        assert other.chats == []
    assert (answer.finished, answer.text) == ("cut", cut.text)


def test_what_was_removed_is_not_written_on_from_nothing(stocked, ollama, cut):
    """The answer stays as it is."""
    stocked.remove([document.document_id for document in stocked.documents()])
    with pytest.raises(DocMindError) as caught:
        list(ask(stocked, "", chat="c", continues=True))
    assert caught.value.reason == "nothing_to_continue"
    assert chats.messages(stocked, "c")[1].finished == "cut"


def test_a_follow_up_goes_on_with_the_evidence_of_the_turns_before(stocked, ollama):
    """What an earlier turn had read is not read again, and is proof all the same."""
    ollama.enqueue(replies("Answer: They cost 3.7 million euros."))
    list(ask(stocked, QUAY, chat="c", **OLLAMA))
    ollama.enqueue(replies("Answer: The repairs of the north quay cost 3.7 mil", "length"))
    list(ask(stocked, QUAY, chat="c", **OLLAMA))
    ollama.enqueue(replies("million euros and ended in October."))
    answer = list(ask(stocked, "", chat="c", continues=True))[-1]
    assert answer.text == "The repairs of the north quay cost 3.7 million euros and ended in October."
    assert "3.7 million euros" in "".join(message["content"] for message in ollama.chats[-1]["messages"][:-2])
    assert [citation["page"] for citation in answer.citations] == [1]


def test_a_run_goes_on_as_any_other(stocked, ollama, cut):
    """The page follows it, and sees what was there already."""
    ollama.enqueue(replies("million euros."))
    run = runs.start_answer(stocked, "", chat_id="c", continues=True)
    run.wait(60)
    texts = [event.text for event in run.events_after() if isinstance(event, TextDelta)]
    assert texts[0] == cut.text
    assert chats.messages(stocked, "c")[1].finished == "complete"


@pytest.mark.parametrize("chat", [None, "nobody", "whole"])
def test_what_is_whole_does_not_go_on(stocked, ollama, chat):
    """Nor what is not there."""
    if chat == "whole":
        ollama.enqueue(replies("Answer: 3.7 million euros."))
        list(ask(stocked, QUAY, chat=chat, **OLLAMA))
    with pytest.raises(DocMindError) as caught:
        list(ask(stocked, "", chat=chat, continues=True))
    assert caught.value.reason == "nothing_to_continue"
    assert caught.value.hint


# Nothing twice

WRITTEN = "The repairs of the north quay cost 3.7 million euros. They ended in"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("October.", " October."),
        ("  October.", " October."),
        ("They ended in October.", " October."),
        ("ended in October.", " October."),
        (f"{WRITTEN} October.", " October."),
        ("The repairs of the north quay cost 3.7 million euros. They ended in\nOctober.", "\nOctober."),
        ("The repairs of the north quay were long.", " The repairs of the north quay were long."),
        ("the north quay cost 3.7 million euros.", " the north quay cost 3.7 million euros."),
        ("\n- October\n- November", "\n- October\n- November"),
        ("ended in\n\n1. October", "\n\n1. October"),
        ("The harbour is old.", " The harbour is old."),
        (", as planned, October.", ", as planned, October."),
        (WRITTEN, ""),
        ("", ""),
        ("The", ""),
    ],
)
def test_what_was_said_is_not_said_again(text, rest):
    """From the beginning, from the last sentence, or the last words."""
    assert joined(WRITTEN, text, is_all=True).removeprefix(WRITTEN) == rest or text == "The"
    assert joined(WRITTEN, text, is_all=True).startswith(WRITTEN)


@given(st.text(alphabet="ab .\n", max_size=40), st.text(alphabet="ab .\n", max_size=40))
def test_while_it_grows_the_text_only_grows(written, text):
    """Whatever the pieces: what is shown is never taken back."""
    written = to_go_on_from(written)
    shown = written
    for end in range(len(text) + 1):
        now = joined(written, text[:end], is_all=end == len(text))
        assert now.startswith(shown.rstrip())
        shown = now


def test_half_a_word_is_written_again():
    """Nobody knows how much of it was missing; a sentence's end and a single word stay."""
    assert to_go_on_from("cost 3.7 mil") == "cost 3.7"
    assert to_go_on_from("It is so. ") == "It is so."
    assert to_go_on_from("word") == "word"
    chinese = "第一段。 " + "北码头的修理费用为三百七十万欧元" * 4
    assert to_go_on_from(chinese) == chinese, "no blank says where a word begins"
