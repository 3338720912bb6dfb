"""The fault matrix: what each backend makes of everything that can go wrong, asked as a person asks.

A cell is a backend, a fault, where it happens (before the first token, in the middle, at the end) and a seed, which
says where the words are cut, how they are sent and which variant of the fault it is. Some cells run every time, chosen
so that each fault is there; all of them by

    pytest -m "slow or not slow" tests/backends/test_faults.py
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import random
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tiny_model
from faults import (
    COMPLETE,
    FAULTS,
    POSITIONS,
    PROCESS_FAULTS,
    QUESTION,
    STALLED,
    WIRES,
    WORDS,
    Fault,
    ProcessFault,
    pieces,
)
from llama_index.core.llms import ChatMessage
from test_llama_cpp import with_template

from docmind import breaker, chats
from docmind.answer import Answer, ask
from docmind.backends import REGISTRY, backend
from docmind.backends import child as child_module
from docmind.backends.llama_cpp import STARTER
from docmind.config import Config
from docmind.errors import DocMindError
from docmind.events import ModelWaiting, StepFinished, StepStarted, TextDelta
from docmind.library import Library
from docmind.profiles import Profile, save_profile

pytestmark = pytest.mark.usefixtures("end_models", "patient")

REASONS = set(re.findall(r"^\| `(\w+)`", (Path(__file__).parents[2] / "docs" / "reasons.md").read_text("utf-8"), re.M))
SEEDS = (0, 1)
HANG_SECONDS = 200.0  # far beyond every deadline here: nothing is timed but what does not end
HASTY = {"first_token_seconds": 1.0, "idle_seconds": 1.0, "total_seconds": 2.0}
PATIENT = {"first_token_seconds": 90.0, "idle_seconds": 90.0}


@pytest.fixture(scope="module")
def library(shelf, tmp_path_factory):
    """The made-up documents, for all cells."""
    home = tmp_path_factory.mktemp("faults") / "home"
    shutil.copytree(shelf.config.home, home, ignore=shutil.ignore_patterns("*.lock"))
    return Library(Config(home=home))


@dataclass(frozen=True)
class Outcome:
    """How a question ended.

    Attributes:
        finished: As the contract says it; "failed" where there is nothing to show for it.
        text: What was shown in the end.
        deltas: What was shown as it came.
    """

    finished: str
    reason: str | None
    text: str
    deltas: str


def asked(library, profile, chat, on_event=lambda event: None):
    """Ask as a person does; everything that can be said of any outcome is asserted here.

    Args:
        on_event: Called with each event of the answer as it comes.
    """
    stop = threading.Event()
    alarm = threading.Timer(HANG_SECONDS, stop.set)
    alarm.start()
    deltas, answer, error = "", None, None
    try:
        for event in ask(library, QUESTION, profile=profile, chat=chat, stop=stop):
            if isinstance(event, TextDelta):
                deltas = event.text if event.replaces else deltas + event.text
            if isinstance(event, Answer):
                answer = event
            on_event(event)
    except DocMindError as failure:  # any other exception is a traceback, and fails the test
        error = failure
    finally:
        alarm.cancel()
    assert not stop.is_set(), "it hung"
    message = chats.messages(library, chat)[-1]
    if answer is None:
        assert error is not None
        assert deltas == ""
        assert error.hint
        assert error.reason in REASONS
        assert message.finished == "failed"
        return Outcome("failed", error.reason, "", "")
    assert answer.fallbacks == ()
    assert (message.text, message.finished) == (answer.text, answer.finished)
    assert answer.finished in ("complete", "cut")
    if answer.finished == "cut":
        assert answer.reason in REASONS
    json.dumps(answer.as_json()).encode("utf-8")
    return Outcome(answer.finished, answer.reason, answer.text, deltas)


def judged(outcome, expected, said, sent):
    """Whether an outcome is right.

    Args:
        expected: The reasons that may end it.
        said: The whole answer.
        sent: The words that were sent at most.
    """
    if outcome.finished == "complete":
        assert expected & COMPLETE, "a broken answer is shown as complete"
        assert outcome.text == said, "a part of an answer is shown as complete"
        assert outcome.reason is None
    else:
        assert outcome.reason in expected
        assert sent.startswith(outcome.text), "something is shown that was not sent"
    assert outcome.deltas.rstrip() == outcome.text.rstrip()


@pytest.fixture(autouse=True)
def no_stray_error(caplog):
    """Nothing goes wrong on the event loop or in a thread without being told; one cell's failures do not count
    for the next."""
    breaker.forget()
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.name == "asyncio"] == []


# Servers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A place in the matrix."""

    backend: str
    fault: Fault | ProcessFault
    position: str
    seed: int

    def __str__(self):
        return f"{self.backend}, {self.fault.name}, {self.position}, {self.seed}"


def every_cell():
    """The matrix of servers."""
    return [
        Cell(backend, fault, position, seed)
        for fault in FAULTS
        for backend in fault.wires
        for position in POSITIONS
        if position in fault.positions
        for seed in SEEDS
    ]


def some_cells(cells):
    """Of each fault one cell, in turns of every backend, at every position."""
    chosen = set()
    for turn, fault in enumerate(FAULTS):
        own = [cell for cell in cells if cell.fault is fault]
        chosen.add(str(own[(7 * turn) % len(own)]))
    return chosen


CELLS = every_cell()
SMOKE = some_cells(CELLS)


def script_of(cell):
    """What the server does: the script, and the words it sends before the fault."""
    dice = random.Random(f"{cell.fault.name} {cell.backend} {cell.position} {cell.seed}")
    words = pieces(WORDS, dice)
    cut = {"before": 0, "middle": dice.randint(1, len(words) - 1), "end": len(words)}[cell.position]
    return cell.fault.script(WIRES[cell.backend], words[:cut], words[cut:], dice), "".join(words[:cut])


def save(library, backend, model, url, **settings):
    """The profile to ask with; no other goes on from it."""
    profile = Profile("cell", backend, model, fallbacks=(), options={"url": url}, source="user", **settings)
    save_profile(library.config, profile, overwrite=True)
    return profile.name


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=[] if str(cell) in SMOKE else pytest.mark.slow, id=str(cell)) for cell in CELLS]
)
def test_a_fault_of_a_server_has_its_reason_and_the_next_question_works(library, cell):
    """Nothing broken is shown as complete, nothing hangs, nothing is made up."""
    wire, (script, before) = WIRES[cell.backend], script_of(cell)
    expected = cell.fault.expected(cell.backend)
    with contextlib.ExitStack() as running:
        server = running.enter_context(wire.serve())
        port = int(server.url.rpartition(":")[2])
        profile = save(library, cell.backend, wire.model, server.url, **(HASTY if expected == STALLED else PATIENT))
        server.enqueue(wire.reply(script.entries, end=wire.ends.get(script.end, script.end), **script.more))
        if script.more.get("status") and expected == COMPLETE:  # the second try is the answer
            server.enqueue(wire.reply(pieces(WORDS, random.Random(cell.seed))))

        def on_event(event):
            """The server goes away where it is to."""
            if script.goes_down and isinstance(event, StepFinished if cell.position == "before" else TextDelta):
                running.close()

        outcome = asked(library, profile, str(cell), on_event)
        judged(outcome, expected, script.said, before if script.said == WORDS else script.said)
        if script.goes_down:
            server = running.enter_context(wire.serve(port=port))
        server.wait_for(lambda: server.answering == 0)  # nobody writes on for nobody
        server.enqueue(wire.reply(pieces(WORDS, random.Random(cell.seed))))
        again = backend(cell.backend).build(library.config, wire.model, {"url": server.url})
        last = again.chat([ChatMessage(role="user", content=QUESTION)])
        assert (last.message.content, last.raw["finish_reason"]) == (WORDS, "stop")


# Processes ------------------------------------------------------------------------------------------------------------


CHILDREN = {"llama.cpp": SEEDS, "transformers": SEEDS[:1]}  # the second takes seconds to start
PROCESS_CELLS = [
    Cell(backend, fault, position, seed)
    for backend, seeds in CHILDREN.items()
    for fault in PROCESS_FAULTS
    if sys.platform == "linux" or not fault.is_linux
    for position in POSITIONS
    for seed in seeds
]
PROCESS_SMOKE = {
    "llama.cpp, killed, end, 0", "llama.cpp, suspended, middle, 0", "llama.cpp, garbage on its pipe, before, 1",
}  # fmt: skip


def save_own(library, name, model):
    """A profile of a model that this machine runs, with what makes it write the same every time."""
    written = WORDS.replace('"', '\\"')
    options = {"grammar": f'root ::= "{written}"'} if name == "llama.cpp" else {}
    profile = Profile(
        "cell", name, model, fallbacks=(), options=options, source="user", temperature=0.0,
        max_output_tokens=200 if options else 60,
    )  # fmt: skip
    save_profile(library.config, profile, overwrite=True)
    return profile


@pytest.fixture(scope="module")
def whole(library):
    """What a model writes when nothing goes wrong, by backend."""
    known = {"llama.cpp": WORDS}

    def written(name):
        if name not in known:  # random words, but always the same
            tiny_model.make(library.config.home / "models" / "tiny")
            known[name] = asked(library, save_own(library, name, "tiny").name, "whole").text
            assert len(known[name]) > 20
        return known[name]

    return written


def child_of(name):
    """The parent's side of the process that has a model in memory."""
    children = list(importlib.import_module(REGISTRY[name])._children._children.values())
    return next(child for child in children if child.pid is not None)


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[] if str(cell) in PROCESS_SMOKE else pytest.mark.slow, id=str(cell))
     for cell in PROCESS_CELLS],
)  # fmt: skip
def test_a_fault_of_a_models_process_has_its_reason_and_the_next_question_works(library, whole, cell, monkeypatch):
    """The process dies, hangs or lies; another takes its place."""
    text = whole(cell.backend)
    profile = save_own(library, cell.backend, STARTER if cell.backend == "llama.cpp" else "tiny")
    dice = random.Random(str(cell))
    seen = []

    def on_event(event):
        """The fault, once, where it belongs."""
        match event:
            case ModelWaiting(phase="reading"):
                is_time = cell.position == "before"
            case TextDelta(text=delta):
                seen.append(delta)
                is_time = cell.position == ("end" if len("".join(seen)) >= len(text) - 8 else "middle")
            case _:
                is_time = False
        if is_time and None not in seen:
            seen.append(None)
            cell.fault.act(child_of(cell.backend), dice)

    with monkeypatch.context() as patch:
        if cell.fault.name == "suspended":  # else a busy machine would be taken for one
            patch.setattr(child_module, "_SILENT_SECONDS", {"reading": 2.0, "writing": 2.0})
            patch.setattr(child_module, "_TEMPLATE_SECONDS", 4.0)
        outcome = asked(library, profile.name, str(cell), on_event)
    is_answer = outcome.text == text and outcome.reason in (None, "cut_at_limit")  # it was faster than the fault
    assert is_answer or outcome.reason in cell.fault.reasons
    assert text.startswith(outcome.text)
    assert outcome.finished != "complete" or outcome.text == text
    again = asked(library, profile.name, f"{cell}, again")
    if is_answer and again.reason in cell.fault.reasons:  # the answer was faster, and this question met the fault
        again = asked(library, profile.name, f"{cell}, once more")
    assert (again.text, again.reason) == (text, None if cell.backend == "llama.cpp" else "cut_at_limit")


# Model files, memory, and several who ask at once ---------------------------------------------------------------------

ENDLESS = b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def limited_memory(patch):
    """The processes that are started from now on have less memory than a model takes."""
    spawn = child_module._spawn

    def spawn_limited(*arguments):
        popen = spawn(*arguments)
        psutil.Process(popen.pid).rlimit(psutil.RLIMIT_AS, (490_000_000, 490_000_000))
        return popen

    patch.setattr(child_module, "_spawn", spawn_limited)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="removes a file that is in use")
@pytest.mark.parametrize(
    ("fault", "reasons"),
    [("removed before", {"model_missing"}), ("removed while it loads", {"model_damaged"}),
     ("cut short", {"model_damaged"}), ("something else", {"model_damaged"}),
     ("endless template", {"template_failed"}), ("broken template", {"template_failed"}),
     pytest.param("too little memory", {"out_of_memory"},
                  marks=pytest.mark.skipif(sys.platform != "linux", reason="limits it with prlimit"))],
)  # fmt: skip
def test_a_fault_of_a_model_file_has_its_reason_and_the_next_question_works(
    library, starter_path, fault, reasons, monkeypatch
):
    """Nothing hangs over it and nothing is written; with the file in order again it answers."""
    path = library.config.home / "models" / "x.gguf"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(starter_path, path)
    profile = save_own(library, "llama.cpp", "x")
    with monkeypatch.context() as patch:
        patch.setattr(child_module, "_TEMPLATE_SECONDS", 4.0)
        match fault:
            case "cut short":
                path.write_bytes(starter_path.read_bytes()[:-100])
            case "something else":
                path.write_bytes(b"GGUF" + random.Random(1).randbytes(100_000))
            case "endless template":
                with_template(starter_path, path, ENDLESS)
            case "broken template":
                with_template(starter_path, path, b"{{ raise_exception('no') }}")
            case "too little memory":
                limited_memory(patch)
            case "removed before":
                path.unlink()

        def on_event(event):
            """The file goes when its process has just been started, and has not opened it yet."""
            if fault == "removed while it loads" and isinstance(event, StepStarted):
                path.unlink(missing_ok=True)

        outcome = asked(library, profile.name, fault, on_event)
    was_faster = fault == "removed while it loads" and (outcome.finished, outcome.text) == ("complete", WORDS)
    assert was_faster or (outcome.finished, outcome.text) == ("failed", "")
    assert was_faster or outcome.reason in reasons
    path.unlink(missing_ok=True)
    shutil.copy(starter_path, path)
    again = asked(library, profile.name, f"{fault}, again")
    path.unlink()
    assert (again.finished, again.text) == ("complete", WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama.cpp", *WIRES])
def test_three_who_ask_at_once_get_their_answer_or_are_told_to_wait(library, name):
    """Nobody gets another's words or half an answer; a server takes them all, a process one and one more."""
    with contextlib.ExitStack() as running:
        if name == "llama.cpp":
            save_own(library, name, STARTER)
        else:
            server = running.enter_context(WIRES[name].serve())
            server.enqueue(*(WIRES[name].reply(pieces(WORDS, random.Random(seed))) for seed in range(3)))
            save(library, name, WIRES[name].model, server.url, **PATIENT)
        with ThreadPoolExecutor(3) as threads:
            outcomes = list(threads.map(lambda one: asked(library, "cell", f"{name} {one}"), range(3)))
    whole = [outcome for outcome in outcomes if (outcome.finished, outcome.text) == ("complete", WORDS)]
    told = [outcome for outcome in outcomes if (outcome.finished, outcome.reason) == ("failed", "busy")]
    assert len(whole) + len(told) == 3
    assert len(whole) >= (1 if name == "llama.cpp" else 3)
