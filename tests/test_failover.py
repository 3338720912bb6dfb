"""Many questions to a model that fails at random with a healthy one behind it, and many switches between two."""

from __future__ import annotations

import random
import time

import pytest
from backends.faults import FAULTS, POSITIONS, WIRES, pieces

from docmind import breaker, chats, runs
from docmind.answer import ask
from docmind.errors import BackendError, BackendUnavailable, ModelCrashed

pytestmark = pytest.mark.usefixtures("end_models")
QUAY = "How much did the repairs of the north quay cost?"
WORDS = "The repairs of the north quay cost 3.7 million euros and ended in October."
SHARE = 0.2  # of the questions, on which the first model fails


@pytest.fixture
def two(stocked, script):
    """A profile whose model fails at random, with a healthy one behind it. Each writes its name at each word."""
    from servers import scripted

    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name, model, fallbacks in (("first", "script", '["second"]'), ("second", "other", "[]")):
        text = f'backend = "scripted"\nmodel = "{model}"\nfallbacks = {fallbacks}\n'
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return scripted.WRITERS


def fault(dice):
    """How a model fails: at once, before a word, or after some of them; by an error or by a stream that just ends."""
    written = signed("A")[: dice.choice([0, 0, 10, 60, 90])]
    return [
        written,
        dice.choice([
            BackendUnavailable("Gone.", "Start it."), ModelCrashed("Died.", "Ask again."),
            BackendError("Nothing came.", "Wait.", reason="stalled"), "no end",
            BackendError("Nonsense.", "Look.", reason="bad_response"),
        ]),
    ]  # fmt: skip


def signed(name):
    """The answer, each word followed by its writer."""
    return " ".join(f"{word} {name}" for word in WORDS.split())


def run(library, two, questions, seed):
    """Ask so many questions; how many were completed. A wrong word fails the test."""
    dice = random.Random(seed)
    two["script"] = lambda: fault(dice) if dice.random() < SHARE else signed("A")
    two["other"] = lambda: signed("B")
    completed, by_second = 0, 0
    for number in range(questions):
        answer = list(ask(library, QUAY, profile="first", chat=f"c{number}"))[-1]
        completed += answer.finished == "complete"
        writer = "A" if answer.model == "script" else "B"
        by_second += writer == "B"
        assert answer.text == signed(writer), "two models in one text, or words lost or doubled"
        assert chats.messages(library, f"c{number}")[-1].text == answer.text
        if dice.random() < 0.05:
            breaker.forget()  # a while passes
    assert 0 < by_second < questions
    return completed


def test_with_one_healthy_model_behind_it_nearly_every_question_is_answered(stocked, two):
    """A few of them, on every run of the tests."""
    assert run(stocked, two, 40, seed=1) == 40


@pytest.mark.slow
def test_of_a_thousand_questions_nearly_all_are_answered(stocked, two):
    """At a fifth of random faults; the goal is 99.5 %."""
    assert run(stocked, two, 1000, seed=2) >= 995


# The same with a real server's faults


def test_a_server_that_fails_at_random_leaves_nearly_no_question_unanswered(stocked, two):
    """A few questions to the stand-in for Ollama, on every run of the tests."""
    assert ask_a_server(stocked, two, 25, seed=5) == 25


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_a_thousand_questions_to_a_server_nearly_all_are_answered(stocked, two):
    """A fifth of them meets a fault of the wire; the goal is 99.5 %."""
    assert ask_a_server(stocked, two, 1000, seed=6) >= 995


def ask_a_server(library, two, questions, seed):
    """Ask so many questions of a server of which a fifth fails in one of the ways of the fault matrix."""
    dice = random.Random(seed)
    two["other"] = lambda: signed("B")
    wire, ending = WIRES["ollama"], [fault for fault in FAULTS if "ollama" in fault.wires and is_ending(fault)]
    completed, by_second, failed = 0, 0, set()
    with wire.serve() as server:
        folder = library.config.model_folders[0]
        (folder / "first.toml").write_text(
            f'backend = "ollama"\nmodel = "{wire.model}"\nfallbacks = ["second"]\nfirst_token_seconds = 2.0\n'
            f'idle_seconds = 2.0\ntotal_seconds = 30.0\n[options]\nurl = "{server.url}"\n',
            encoding="utf-8",
        )
        for number in range(questions):
            words = pieces(signed("A"), dice)
            if dice.random() < SHARE:
                fault = dice.choice(ending)
                position = dice.choice([position for position in POSITIONS if position in fault.positions])
                cut = {"before": 0, "middle": dice.randint(1, len(words) - 1), "end": len(words)}[position]
                script = fault.script(wire, words[:cut], words[cut:], dice)
                server.enqueue(wire.reply(script.entries, end=script.end, **script.more))
                failed.add(fault.name)
            else:
                server.enqueue(wire.reply(words))
            answer = list(ask(library, QUAY, profile="first", chat=f"s{number}"))[-1]
            completed += answer.finished == "complete"
            by_second += answer.model == "other"
            writer = "B" if answer.model == "other" else "A"
            assert answer.text == signed(writer), "two models in one text, or words lost or doubled"
            assert chats.messages(library, f"s{number}")[-1].text == answer.text
            server._replies.clear()  # of a server that rested
            if dice.random() < 0.2:
                breaker.forget()  # a while passes
    assert 0 < by_second < questions
    assert len(failed) > min(3, questions // 20)
    return completed


def is_ending(fault):
    """Whether it ends an answer so that another model can help, while the server stays where it is."""
    return not fault.expected("ollama") & {"complete", "cut_at_limit", "model_missing", "unreachable"}


# Switching while answers are written


def switch(library, two, switches, seed):
    """Ask in some chats at once, each question with another model than the one before; nothing waits for an answer."""
    dice = random.Random(seed)
    two["script"], two["other"] = lambda: signed("A"), lambda: signed("B")
    started, model = [], "script"
    for _ in range(switches):
        model = "other" if model == "script" else "script"
        free = [chat for chat in ("a", "b", "c", "d") if runs.answering(chat) is None]
        while not free:  # one answer at a time in a chat, as on the page
            time.sleep(0.002)
            free = [chat for chat in ("a", "b", "c", "d") if runs.answering(chat) is None]
        chat = dice.choice(free)
        run = runs.start_answer(library, QUAY, chat_id=chat, backend="scripted", model=model)
        started.append((run, model))
        if dice.random() < 0.1:
            run.stop()
    wrong = []
    for run, model in started:
        assert run.wait(120)
        (message,) = [m for m in chats.messages(library, run.chat_id) if m.run_id == run.run_id and m.role != "user"]
        whole = signed("A" if model == "script" else "B")
        is_right = message.text == whole if message.finished == "complete" else whole.startswith(message.text)
        if not is_right or message.finished not in ("complete", "stopped"):
            wrong.append((model, message.finished, message.text))
    assert wrong == []
    return len(started)


def test_switching_while_answers_are_written_puts_no_word_into_the_wrong_message(stocked, two):
    """Some of them, on every run of the tests."""
    assert switch(stocked, two, 40, seed=3) == 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_switches_put_no_word_into_the_wrong_message(stocked, two):
    """Chats that a person would never have at once."""
    assert switch(stocked, two, 1000, seed=4) == 1000
