"""A model in a process of its own: the child's side, for every backend that holds its model itself.

It owns the library that computes, so that a native crash, a load that takes too long or an endless chat template can
be ended from outside without taking the app down. It knows nothing of documents, LlamaIndex or settings, and no
backend. The parent's side is `child.py`.

Requests come as JSON lines on standard input, replies go as JSON lines to standard output:

    {"id": 1, "do": "load", "path": …, "window": …, "threads": …, …}
        → {"id": 1, "loading": 0.4} … {"id": 1, "ready": {…}}
    {"id": 2, "do": "answer", "messages": [{"role", "content"}] or "prompt": "…", "max_tokens": …, …}
        → {"id": 2, "read": 128, "of": 900, "cached": 0} … {"id": 2, "text": "The"} … {"id": 2, "end": {…}}
    {"id": 3, "do": "count", "texts": […] or "messages": […]}   → {"id": 3, "counts": […]}, also during an answer
    {"id": 2, "do": "stop"}                                     → ends answer 2, before or while it runs
    any of them                                                 → {"id": …, "error": reason, "message": …}

When standard input closes the process ends at once, in whatever phase: it never outlives the app.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A model without a template of its own; the same fallback as llama.cpp's server.
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


class Refused(Exception):
    """A request that cannot be served; the model stays usable."""

    def __init__(self, reason: str, message: str, **details: int) -> None:
        super().__init__(message)
        self.reason, self.details = reason, details


class Pipe:
    """The lines to the parent; written by two threads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._lock = file, threading.Lock()

    def send(self, request_id: int, **fields: Any) -> None:
        """One reply. ASCII only, so that no half character can sit in the pipe."""
        line = json.dumps({"id": request_id, **fields}).encode("ascii") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


class Model(Protocol):
    """What a backend's child makes of the request that loads: a model that counts and answers."""

    ready: dict[str, Any]  # what is known of it once it is loaded

    def count(self, request: dict[str, Any]) -> list[int]:
        """How many tokens the messages take, with the template, or each of the texts by itself."""
        ...

    def answer(self, request: dict[str, Any]) -> None:
        """Write an answer, piece by piece; its last reply says how it ended and what it took."""
        ...


# Text and tokens


def control_pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of the texts that would be read as control tokens, `<|im_end|>` for example."""
    longest_first = sorted((text for text in texts if len(text) > 2), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def harmless(text: str, control: re.Pattern[str] | None) -> str:
    """The text without control tokens: a document must not be able to end the person's turn.

    A zero-width space after the first character makes them ordinary text.
    """
    if control is None:
        return text
    return control.sub(lambda found: found[0][0] + "\u200b" + found[0][1:], text)


def rendered(
    messages: list[dict[str, str]], template: Callable[[list[dict[str, str]]], str], control: re.Pattern[str] | None
) -> str:
    """The prompt, by the model's own template.

    Raises:
        Refused: The template fails with these messages (`template_failed`).
    """
    import jinja2

    # A template is a program of the model's maker: whatever it can raise inside the sandbox.
    failures = (jinja2.TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError,
                RecursionError)  # fmt: skip
    messages = [{"role": m["role"], "content": harmless(m["content"], control)} for m in messages]
    try:
        return template(messages)
    except failures:
        # Some templates refuse a system message, or two messages of one role in a row: say it in the way they do.
        try:
            return template(alternating(messages))
        except failures as error:
            raise Refused("template_failed", f"The model's chat template failed: {error}") from error


def alternating(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same words as turns of user and assistant only, the system's in front of the person's."""
    turns: list[dict[str, str]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": turns[-1]["content"] + "\n\n" + message["content"]}
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns


def lacks_memory(log: str) -> bool:
    """Whether what a native library wrote before it gave up means that memory ran out."""
    signs = (
        "failed to allocate", "unable to allocate", "allocate memory", "out of memory", "bad_alloc", "MemoryError",
        "mem_buffer != NULL",  # an assertion of ggml
        "Thread creation failed",  # OpenMP
    )  # fmt: skip
    return any(sign.lower() in log.lower() for sign in signs)


# Serving


def run(load: Callable[[dict[str, Any], Pipe, Callable[[int], bool]], Model], package: str) -> None:
    """Load the model named by the first request, then serve until the parent closes the pipe.

    Args:
        load: Makes the model of the request, the pipe for its progress, and a function that says whether the request
            with an id has been stopped.
        package: That computes, for the message when it cannot be used.
    """
    lines, pipe = _take_pipes()
    work: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    counts: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_listen, args=(lines, work, counts, stopped), daemon=True).start()
    if sys.platform != "win32":
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    request = work.get()
    try:
        model = load(request, pipe, stopped.__contains__)
    except Refused as refused:
        pipe.send(request["id"], error=refused.reason, message=str(refused))
        os._exit(1)
    except (ImportError, OSError, RuntimeError) as error:
        # The library is missing, or was built against another one: some report that as a RuntimeError.
        pipe.send(request["id"], error="not_installed", message=f"{package} cannot be used: {error}")
        os._exit(1)
    pipe.send(request["id"], ready=model.ready)
    threading.Thread(target=_serve, args=(model, counts, pipe, stopped), daemon=True).start()
    _serve(model, work, pipe, stopped)


def _take_pipes() -> tuple[BinaryIO, Pipe]:
    """Own the two pipes, so that nothing printed by a library can get between the lines."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return requests, Pipe(replies)


def _listen(
    lines: Iterable[bytes], work: queue.SimpleQueue[dict[str, Any]], counts: queue.SimpleQueue[dict[str, Any]],
    stopped: set[int],
) -> None:  # fmt: skip
    """Sort the requests as they come; ends the process when the parent is gone."""
    for line in lines:
        request = json.loads(line)
        if request["do"] == "stop":
            stopped.add(request["id"])
        else:
            (counts if request["do"] == "count" else work).put(request)
    os._exit(0)


def _watch_parent(parent: int) -> None:
    """End with the parent even when another process holds the pipe open (one forked from it, for example)."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def _serve(model: Model, requests: queue.SimpleQueue[dict[str, Any]], pipe: Pipe, stopped: set[int]) -> None:
    """Serve requests one after the other, for ever."""
    while True:
        request = requests.get()
        try:
            if request["do"] == "count":
                pipe.send(request["id"], counts=model.count(request))
            elif request["id"] in stopped:
                pipe.send(request["id"], end={"finish_reason": "stopped"})
            else:
                model.answer(request)
        except Refused as refused:
            pipe.send(request["id"], error=refused.reason, message=str(refused), **refused.details)
        stopped.discard(request["id"])
