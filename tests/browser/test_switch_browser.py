"""From llama.cpp to Ollama and back in the sidebar, in the middle of a chat and of an answer, in a real browser."""

from __future__ import annotations

import psutil
import pytest
from asking import ask
from servers.ollama import Reply, serve
from waiting import is_gone, wait_until

from docmind import chats

QUAY = "How much did the repairs of the north quay cost?"
PILOTS = "How many people does the pilot station employ?"
WORDS = [f"word{n} " for n in range(60)]


@pytest.fixture
def ollama():
    """The stand-in for a server."""
    with serve() as server:
        yield server


def choose(page, backend):
    """Takes another backend in the sidebar."""
    box = page.get_by_test_id("stSidebar").get_by_role("combobox").nth(0)
    box.click()
    page.get_by_role("option", name=backend).click()
    wait_until(lambda: backend in box.evaluate("e => (e.value || '') + e.textContent"))


def children(server):
    """The processes of llama.cpp that the app has."""
    return [
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if not is_gone(child) and "llama_cpp_child" in " ".join(child.cmdline())
    ]


def test_backends_are_switched_in_the_middle_of_a_chat_and_of_an_answer(app_server, page, stocked, ollama):
    """Each answer is its own model's, where text goes is shown before it is sent, and the starter stays in memory."""
    ollama.enqueue(Reply(("Thought: I see.\nAnswer: ", *WORDS, "end."), pause_seconds=0.1))
    server = app_server(environment={"OLLAMA_HOST": ollama.url})
    page.goto(server.url)

    def kept():
        found = chats.list_chats(stocked)
        return chats.messages(stocked, found[0].chat_id) if found else []

    ask(page, QUAY)
    wait_until(lambda: len(kept()) == 2 and kept()[-1].finished)
    assert len(children(server)) == 1

    choose(page, "Ollama")
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_text("on this device").wait_for()
    ask(page, PILOTS)
    page.get_by_text("word3 ").wait_for()

    choose(page, "llama.cpp")
    wait_until(lambda: len(kept()) == 4 and kept()[-1].finished)
    page.get_by_text("word59 end.").wait_for()
    ask(page, QUAY)
    wait_until(lambda: len(kept()) == 6 and kept()[-1].finished)
    answers = [message for message in kept() if message.role == "assistant"]
    assert [answer.details["backend"] for answer in answers] == ["llama.cpp", "ollama", "llama.cpp"]
    assert answers[1].text == "".join(WORDS) + "end."
    assert not [answer for answer in (answers[0], answers[2]) if "word" in answer.text]
    assert len(ollama.chats) == 1
    assert len(children(server)) == 1
