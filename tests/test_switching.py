"""Between llama.cpp and Ollama in the middle of a chat and of an answer: the real child, the stand-in server."""

from __future__ import annotations

import gc
import shutil
import socket

import psutil
import pytest
from servers.ollama import Reply, serve
from waiting import is_gone, wait_until

from docmind import chats, routing, runs
from docmind.answer import ask
from docmind.backends import llama_cpp
from docmind.backends.places import allow
from docmind.events import FellBack, ModelWaiting, TextDelta

pytestmark = pytest.mark.usefixtures("end_models")
QUAY = "How much did the repairs of the north quay cost?"
PILOTS = "How many people does the pilot station employ?"
HONEY = "How much honey does a colony need to survive the winter?"
OLLAMA = {"backend": "ollama", "model": "qwen3:4b"}


@pytest.fixture
def ollama(monkeypatch):
    """The stand-in, where Ollama would listen."""
    with serve() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


def said(text):
    """A step of the agent that answers: the stand-in's model is large enough to drive it."""
    return Reply(tuple(f"Thought: I see it.\nAnswer: {text}".partition(" ")))


def children():
    """The processes of llama.cpp."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if not is_gone(child) and "llama_cpp_child" in " ".join(child.cmdline())
    ]


def test_a_chat_goes_on_with_another_model_and_nothing_stands_in_the_wrong_message(stocked, ollama):
    """Three turns, two backends; each answer by the model that was chosen for it."""
    ollama.enqueue(said("The pilot station employs 26 people."))
    answers = [
        list(ask(stocked, QUAY, chat="c"))[-1],
        list(ask(stocked, PILOTS, chat="c", **OLLAMA))[-1],
        list(ask(stocked, HONEY, chat="c"))[-1],
    ]
    assert [answer.backend for answer in answers] == ["llama.cpp", "ollama", "llama.cpp"]
    assert answers[1].text == "The pilot station employs 26 people."
    assert answers[1].citations[0]["page"] == 2
    kept = chats.messages(stocked, "c")
    assert [message.text for message in kept if message.role == "user"] == [QUAY, PILOTS, HONEY]
    assert [message.text for message in kept if message.role == "assistant"] == [answer.text for answer in answers]
    (told,) = ollama.chats
    contents = [message["content"] for message in told["messages"]]
    assert QUAY in contents, "the other model's turn is known"
    assert told["options"]["num_ctx"] == answers[1].context["window"] == 8192


def test_the_memory_of_the_model_before_is_freed(stocked, ollama, monkeypatch):
    """The child of a large model ends when another backend answers, and comes back when it is chosen again."""
    monkeypatch.setattr(routing, "SMALL_BYTES", 1_000_000)  # so that the starter is a large one
    ollama.enqueue(said("26 people."))
    list(ask(stocked, QUAY))
    assert len(children()) == 1
    gc.collect()
    list(ask(stocked, PILOTS, **OLLAMA))
    wait_until(lambda: not children())
    assert list(ask(stocked, QUAY))[-1].finished == "complete"
    assert len(children()) == 1


def test_a_small_model_stays_while_another_backend_answers(stocked, ollama):
    """The starter is there at once when it is chosen again."""
    ollama.enqueue(said("26 people."))
    list(ask(stocked, QUAY))
    (before,) = children()
    gc.collect()
    list(ask(stocked, PILOTS, **OLLAMA))
    assert list(ask(stocked, QUAY))[-1].finished == "complete"
    assert children() == [before]


def test_a_model_is_as_large_as_all_its_files_and_what_its_process_holds(config):
    """The first part of several may be small, and on a GPU the process is."""
    starter_path = next(model.path for model in llama_cpp.models(config) if model.name == llama_cpp.STARTER)
    folder = config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(starter_path, folder / "big-00001-of-00002.gguf")
    with (folder / "big-00002-of-00002.gguf").open("wb") as second:
        second.truncate(1_000_000_000)
    for name, is_kept in (("big", False), (llama_cpp.STARTER, True)):
        llama_cpp.build(config, name, {}).release()
        llama_cpp.close_unused(above_bytes=routing.SMALL_BYTES)
        assert bool(llama_cpp._children._children) == is_kept
    llm = llama_cpp.build(config, llama_cpp.STARTER, {})
    llm.warm_up()
    held = psutil.Process(llm.process_id).memory_info().rss
    llm.release()
    assert held > 50_000_000
    llama_cpp.close_unused(above_bytes=starter_path.stat().st_size)
    assert bool(llama_cpp._children._children) == (held < starter_path.stat().st_size)


def test_a_switch_in_the_middle_of_an_answer_changes_nothing_about_it(stocked, ollama):
    """The answer that is being written ends with its own model; the next one begins beside it with another."""
    words = [f"word{n} " for n in range(200)]
    ollama.enqueue(Reply(("Answer: ", *words, "end."), pause_seconds=0.02))
    slow = runs.start_answer(stocked, PILOTS, chat_id="slow", **OLLAMA)
    wait_until(lambda: any(isinstance(event, TextDelta) for event in slow.events_after()))
    quick = runs.start_answer(stocked, QUAY, chat_id="quick")
    assert quick.wait(120)
    assert slow.wait(120)
    assert (slow.state, quick.state) == ("complete", "complete")
    assert chats.messages(stocked, "slow")[-1].text == "".join(words) + "end."
    other = chats.messages(stocked, "quick")[-1]
    assert other.details["backend"] == "llama.cpp"
    assert "word" not in other.text


def test_when_the_server_breaks_off_the_starter_begins_anew(stocked, ollama):
    """Its half sentence stays an attempt; not one of its words is in the answer."""
    ollama.enqueue(Reply(("Answer: It cost ", "about zzyzx "), end="reset"))
    events = list(ask(stocked, QUAY, chat="c", **OLLAMA))
    (fell,) = [event for event in events if isinstance(event, FellBack)]
    assert fell.text.startswith("It cost about zzyzx"[:8])
    answer = events[-1]
    assert answer.backend == "llama.cpp"
    assert "zzyzx" not in answer.text
    assert [attempt["model"] for attempt in answer.attempts] == ["ollama · qwen3:4b"]
    assert len(ollama.chats) == 1, "no second attempt at the same server"


def test_when_the_server_is_gone_the_starter_answers_with_a_note(stocked, monkeypatch):
    """Nothing listens there."""
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    events = list(ask(stocked, QUAY, **OLLAMA))
    answer = events[-1]
    assert answer.backend == "llama.cpp"
    assert answer.attempts == ()
    assert answer.fallbacks[0]["reason"] == "unreachable"
    assert "Ollama" in answer.fallbacks[0]["hint"]


def test_a_stop_reaches_the_server(stocked, ollama):
    """The client hangs up, which is what stops Ollama; what was written is kept."""
    ollama.enqueue(Reply(("Answer: ", "It cost 3.7 million. "), end="silence"))
    run = runs.start_answer(stocked, QUAY, chat_id="c", **OLLAMA)
    wait_until(lambda: any(isinstance(event, TextDelta) for event in run.events_after()))
    run.stop()
    assert run.wait(60)
    ollama.wait_for_hang_up()
    assert run.state == "stopped"
    assert chats.messages(stocked, "c")[-1].text.startswith("It cost 3.7 million")


def test_a_prompt_that_the_server_cut_is_told(stocked, ollama):
    """It read far fewer tokens than were sent."""
    ollama.enqueue(Reply(("Answer: ", "It cost 3.7 million euros."), figures={"prompt_eval_count": 40}))
    answer = list(ask(stocked, QUAY, **OLLAMA))[-1]
    assert (answer.finished, answer.reason) == ("complete", "context_cut")
    assert answer.context["counted_tokens"] == 40
    assert answer.context["sent_tokens"] > 40


def test_a_model_that_loads_says_for_how_long(stocked, monkeypatch):
    """Each second, until it is there; then it is not said again."""
    with serve(load_seconds=1.2) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.enqueue(said("The pilot station employs 26 people."))
        events = [event for event in ask(stocked, PILOTS, **OLLAMA) if isinstance(event, ModelWaiting)]
        loading = [event.seconds for event in events if event.phase == "loading"]
        assert loading[:2] == [0, 1]
        server.enqueue(said("26 people."))
        events = [event for event in ask(stocked, PILOTS, **OLLAMA) if isinstance(event, ModelWaiting)]
        assert "loading" not in [event.phase for event in events]


def test_a_server_of_the_network_gets_no_word_before_it_was_allowed(stocked, monkeypatch):
    """The starter answers instead, and the note says what to allow; once allowed, it is asked."""
    with serve() as server:
        port = server.url.rpartition(":")[2]
        resolve = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **named: resolve({"nas": "127.0.0.1"}.get(host, host), *rest)
        )
        monkeypatch.setenv("OLLAMA_HOST", f"http://nas:{port}")
        answer = list(ask(stocked, QUAY, **OLLAMA))[-1]
        assert (answer.backend, answer.fallbacks[0]["reason"]) == ("llama.cpp", "consent_missing")
        assert f"docmind settings allow http://nas:{port}" in answer.fallbacks[0]["hint"]
        assert server.chats == []
        allow(stocked.config, f"http://nas:{port}")
        server.enqueue(said("It cost 3.7 million euros."))
        assert list(ask(stocked, QUAY, **OLLAMA))[-1].backend == "ollama"
