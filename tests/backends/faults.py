"""What can go wrong with an answer, for test_faults.py: faults of servers by their wires, and of model processes.

A fault of a server is a function of the words that were sent before it and those that would come after; it gives a
`Script`. It is written once for all three wires, in the words of `Wire`. A fault of a process is an act upon it, or
what is wrong with its model beforehand.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from servers import lm_studio, ollama, openai_compatible

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

QUESTION = "How much did the repairs of the north quay cost?"
WORDS = (
    "The repairs of the north quay cost 3.7 million euros and ended in October 2023. Its harbour handled 48,200 "
    "containers, and the pilot station employs 26 people — “more than ever”, as its director says."
)
POSITIONS = ("before", "middle", "end")  # the first token; in the middle; after the last one, before the end is said
ANY = frozenset(POSITIONS)
FIRST = frozenset({"before"})

STALLED = frozenset({"stalled"})
BROKEN_OFF = frozenset({"no_end_marker"})
NONSENSE = frozenset({"bad_response"})
FAILED = frozenset({"backend_failed", "server_failed"})
COMPLETE = frozenset({"complete"})  # no fault of the answer: all of it must come
CUT = frozenset({"cut_at_limit"})


def pieces(text, dice):
    """The text as a model might send it."""
    sent, at = [], 0
    while at < len(text):
        sent.append(text[at : at + dice.randint(1, 12)])
        at += len(sent[-1])
    return sent


@dataclass(frozen=True)
class Script:
    """What a server does.

    Attributes:
        entries: `deltas` of the stand-in's reply.
        said: The words that make the answer, where they are others than those of the whole text.
        end: "done", "nothing" (a clean end that says nothing), "reset", or "error".
        more: Other arguments of the stand-in's reply.
        goes_down: The server goes away once it was asked.
    """

    entries: Iterable[Any]
    said: str = WORDS
    end: str = "nothing"
    more: dict[str, Any] = field(default_factory=dict)
    goes_down: bool = False


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a server's answer.

    Attributes:
        script: Of the wire, the words before and after the fault, and dice.
        reasons: One of these ends the answer; "complete" and "cut_at_limit" are answers.
        others: The same where a wire says it otherwise.
        positions: Where it can happen.
        wires: Which can have it.
    """

    name: str
    script: Callable[[Wire, list[str], list[str], random.Random], Script]
    reasons: frozenset[str]
    others: dict[str, frozenset[str]] = field(default_factory=dict)
    positions: frozenset[str] = ANY
    wires: tuple[str, ...] = ("ollama", "openai-compatible", "lm-studio")

    def expected(self, backend):
        """The reasons of a backend."""
        return self.others.get(backend, self.reasons)


# The three wires ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """How a server says things.

    Attributes:
        raw: Bytes that are one message, from any text.
        words: A message with words of the answer.
        over: The message that ends an answer.
        failure: What a reply needs to fail with these words in the middle, by a status where the wire has any.
        filled: The arguments of a reply whose end has these figures.
        ended: The arguments of a reply that ends with a reason.
        nothing: A message that only keeps the connection open.
    """

    model: str
    serve: Callable[..., Any]
    reply: Callable[..., Any]
    raw: Callable[[bytes], bytes]
    words: Callable[[Any], Any]
    over: Callable[[str], Any]
    failure: Callable[[str, int], dict[str, Any]]
    filled: Callable[[list[Any]], dict[str, Any]]
    ended: Callable[[str], dict[str, Any]]
    nothing: Any
    ends: dict[str, str] = field(default_factory=dict)  # its own words for those of `Script.end`


def _json(value):
    return json.dumps(value).encode()


def _ollama_event(content, **more):
    return _json({"model": "qwen3:4b", "message": {"role": "assistant", "content": content}, "done": False} | more)


def _chunk(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + _json({"id": "1", "object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


def _fragment(content):
    return {"type": "fragment", "fragment": {"content": content, "tokensCount": 1, "reasoningType": "none"}}


_STOP_REASONS = {"stop": "eosFound", "length": "maxPredictedTokensReached"}
WIRES = {
    "ollama": Wire(
        "qwen3:4b", ollama.serve, ollama.Reply,
        raw=lambda text: text + b"\n",
        words=lambda content: _ollama_event(content) + b"\n",
        over=lambda reason: _ollama_event("", done=True, done_reason=reason) + b"\n",
        failure=lambda text, status: {"error": text},
        filled=lambda odd: {"figures": dict(zip(
            ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"), odd, strict=True))},
        ended=lambda reason: {"done_reason": reason},
        nothing=b"\n",
    ),
    "openai-compatible": Wire(
        "qwen3-4b", openai_compatible.serve, openai_compatible.Reply,
        raw=lambda text: b"data: " + text + b"\n\n",
        words=lambda content: _chunk({"content": content}),
        over=lambda reason: _chunk({}, reason),
        failure=lambda text, status: {"error": {"message": text, "code": status}},
        filled=lambda odd: {"usage": {"prompt_tokens": odd[0], "completion_tokens": odd[2]},
                            "timings": {"prompt_ms": odd[1], "predicted_per_second": odd[3], "prompt_n": odd[0]}},
        ended=lambda reason: {"finish_reason": reason},
        nothing=b": keep-alive\n\n",
    ),
    "lm-studio": Wire(
        "qwen/qwen3-4b-2507", lm_studio.serve, lm_studio.Reply,
        raw=lambda text: text,
        words=_fragment,
        over=lambda reason: {"type": "success", "stats": {"stopReason": _STOP_REASONS[reason]}},
        failure=lambda text, status: {"error": {"title": text}},
        filled=lambda odd: {"stats": dict(zip(
            ("promptTokensCount", "timeToFirstTokenSec", "predictedTokensCount", "tokensPerSecond"), odd,
            strict=True))},
        ended=lambda reason: {"stop_reason": _STOP_REASONS.get(reason, reason)},
        nothing={"type": "promptProcessingProgress", "progress": 1.0},
        ends={"done": "success", "nothing": "close"},
    ),
}  # fmt: skip
HTTP = ("ollama", "openai-compatible")
OPENAI = ("openai-compatible",)
LM_STUDIO = ("lm-studio",)


# Faults that end the answer -------------------------------------------------------------------------------------------


def _then(*entries, **script):
    """The words before, then this."""
    return lambda wire, before, after, dice: Script([*before, *entries], **script)


def _for_ever(*entries):
    """The words before, then this without end."""
    return lambda wire, before, after, dice: Script(itertools.chain(before, itertools.cycle(entries)))


def _raw(*choices):
    """The words before, then one of these in place of a message."""
    return lambda wire, before, after, dice: Script([*before, wire.raw(dice.choice(choices))])


def _refusal(status, text, **more):
    """An HTTP status where nothing was written yet; later, and where the wire has none, an error in its words."""

    def script(wire, before, after, dice):
        failure = wire.failure(text, status)
        if not before and wire.reply is not lm_studio.Reply:
            return Script((), more={"status": status, **failure, **more})
        return Script(before, end="error", more=failure)

    return script


def _page(wire, before, after, dice):
    page = b"<!DOCTYPE html>\n<html><body><h1>502 Bad Gateway</h1></body></html>\n"
    if not before and wire.reply is not lm_studio.Reply:
        return Script((), more={"status": dice.choice([200, 502, 504]), "body": page})
    return Script([*before, page])


def _half(wire, before, after, dice):
    whole = wire.words("half of a message")
    if isinstance(whole, dict):  # the head of a text of a hundred bytes, and ten of them
        return Script([*before, bytearray(b"\x81\x64" + b"x" * 10)], end="reset")
    return Script([*before, whole[: dice.randint(10, len(whole) - 10)]])


def _without_a_line_end(wire, before, after, dice):
    if wire.reply is lm_studio.Reply:  # the head of a text of a terabyte
        head = bytearray(b"\x81\x7f" + (1 << 40).to_bytes(8, "big"))
        return Script(itertools.chain(before, [head], itertools.repeat(bytearray(b"x" * 65_536))))
    return Script(itertools.chain(before, itertools.repeat(b"x" * 65_536)))


def _redirect(wire, before, after, dice):
    where = dice.choice(["http://127.0.0.1:9/", "//127.0.0.1:9/", "https://example.com/", "/elsewhere"])
    if wire.reply is ollama.Reply:
        return Script((), more={"status": 307, "location": where})
    return Script((), more={"status": 307, "headers": {"Location": where}})


def _too_slow(wire, before, after, dice):
    return Script([*before, 2.5, *after], end="done")


def _endless_answer(wire, before, after, dice):
    more = itertools.cycle(["and ", 0.01, "so ", 0.01, "on ", 0.01])
    return Script(
        itertools.chain([*before, *after, " "], more), said="".join([*before, *after, " "]) + "and so on " * 99
    )


def _vanished(wire, before, after, dice):
    if wire.reply is lm_studio.Reply:
        error = {"title": "Model not found", "displayData": {"code": "generic.noModelMatchingQuery"}}
        return Script(before, end="error", more={"error": error})
    return _refusal(404, f"model '{wire.model}' not found")(wire, before, after, dice)


def _packed(wire, before, after, dice):
    whole = gzip.compress(b"".join(wire.words(word) for word in after) + wire.over("stop"))
    return Script([whole], more={"headers": {"Content-Encoding": "gzip"}})


# Oddities that leave the answer whole ---------------------------------------------------------------------------------


def _among(*choices):
    """One of these between the words, which go on to their end."""
    return lambda wire, before, after, dice: Script([*before, wire.raw(dice.choice(choices)), *after], end="done")


def _words_after_the_end(wire, before, after, dice):
    doubled = [wire.words(word) for word in [*before, *after]]
    return Script([*before, wire.over("stop"), *doubled], said="".join(before))


def _second_end(wire, before, after, dice):
    second = wire.over(dice.choice(["stop", "length"]))
    return Script([*before, wire.over("stop"), second, *map(wire.words, after)], said="".join(before))


def _half_a_pair(wire, before, after, dice):
    half = wire.words(dice.choice(["\ud83d", "\ude00"]))
    return Script([*before, half, *after], said="".join([*before, "?", *after]), end="done")


def _huge_delta(wire, before, after, dice):
    huge = "herring and " * dice.randint(5_000, 9_000)
    return Script([*before, huge, *after], said="".join([*before, huge, *after]), end="done")


def _wrong_figures(wire, before, after, dice):
    odd = [-3, math.inf, -math.inf, math.nan, "many", True, [], {}, 10**30, 0, 1e-300]
    return Script([*before, *after], end="done", more=wire.filled([dice.choice(odd) for _ in range(4)]))


def _slow(wire, before, after, dice):
    paused = [entry for word in after[:20] for entry in (dice.uniform(0.0, 0.04), word)]
    return Script([*before, *paused, *after[20:]], end="done")


def _kept_open_a_while(wire, before, after, dice):
    return Script([*before, *[wire.nothing, 0.002] * dice.randint(5, 30), *after], end="done")


def _empty_for_a_while(wire, before, after, dice):
    return Script([*before, *[wire.words("")] * dice.randint(5, 300), *after], end="done")


def _other_content_type(wire, before, after, dice):
    kinds = ["text/html", "text/plain; charset=latin-1", "application/octet-stream", "nonsense", "image/png"]
    return Script([*before, *after], end="done", more={"kind": dice.choice(kinds)})


def _ended(reason):
    return lambda wire, before, after, dice: Script(before, said="".join(before), end="done", more=wire.ended(reason))


def _loads_once(wire, before, after, dice):
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    return Script((), more={"status": 503, "error": error})


FAULTS = (
    # The connection
    Fault("the server goes away", _then(3600.0, goes_down=True), frozenset({"unreachable", "no_end_marker"})),
    Fault("reset", _then(end="reset"), BROKEN_OFF),
    Fault("hangs up without an answer", lambda *_: Script((), more={"status": 0}), frozenset({"unreachable"}),
          positions=FIRST, wires=HTTP),
    Fault("hangs up politely", lambda w, before, a, d: Script(before, end="hang up"), BROKEN_OFF, wires=LM_STUDIO),
    Fault("broken frame", _then(bytearray(b"\xff\xff\xff\xffnonsense\r\n")), BROKEN_OFF, {"lm-studio": NONSENSE}),
    # Nothing more comes
    Fault("silence", _then(3600.0), STALLED),
    Fault("kept open for ever", lambda w, before, a, d: Script(
        itertools.chain(before, itertools.cycle([w.nothing, 0.02]))), STALLED),
    Fault("empty words for ever", lambda w, before, a, d: Script(
        itertools.chain(before, itertools.cycle([w.words(""), 0.02]))), STALLED),
    Fault("too slow", _too_slow, STALLED),
    Fault("never comes to an end", _endless_answer, STALLED, positions=frozenset({"middle"})),
    # An end that proves nothing
    Fault("clean end", _then(), BROKEN_OFF),
    Fault("only [DONE]", _raw(b"[DONE]"), BROKEN_OFF, wires=OPENAI),
    Fault("half a message", _half, BROKEN_OFF),
    Fault("unknown finish reason", _ended("because"), BROKEN_OFF),
    Fault("filtered", _ended("content_filter"), BROKEN_OFF, {"openai-compatible": frozenset({"filtered"})}),
    Fault("calls a tool", _ended("tool_calls"), BROKEN_OFF, {"openai-compatible": frozenset({"unsupported"})}),
    Fault("cut at its limit", _ended("length"), CUT),
    # Something else than an answer
    Fault("page of a proxy", _page, NONSENSE),
    Fault("line without end", _without_a_line_end, NONSENSE),
    Fault("event without end", _for_ever(b"data: " + b"x" * 65_536 + b"\n"), NONSENSE, wires=OPENAI),
    Fault("json of another kind", _raw(b"[]", b"7", b'"text"', b"true", b"null", b"[1e999, NaN]"), NONSENSE),
    Fault("no json", _raw(b"nonsense", b"{'a': 1}", b'{"a" 1}', b"9" * 5000, b"\x1b[2J"), NONSENSE),
    Fault("json too deep", _raw(b"[" * 50_000, b'{"a":' * 50_000), NONSENSE),
    Fault("invalid utf-8", _raw(b'{"message": {"content": "\xff\xfe"}}', b'"\xc3("', b"\xed\xa0\x80"), NONSENSE),
    Fault("bytes in place of text", lambda w, before, a, d: Script(before, end="bytes"), NONSENSE, wires=LM_STUDIO),
    Fault("not understood", lambda w, before, a, d: Script(before, end="warning"), NONSENSE, wires=LM_STUDIO),
    Fault("packed though nobody asked", _packed, NONSENSE | BROKEN_OFF, positions=FIRST, wires=HTTP),
    Fault("a whole document is promised", lambda w, before, after, d: Script(
        [*before, *after], end="done", more={"kind": "application/json"}), NONSENSE, positions=FIRST, wires=OPENAI),
    Fault("redirect", _redirect, NONSENSE, positions=FIRST, wires=HTTP),
    # Refusals, as a status or in the middle
    Fault("the engine stops", lambda w, before, a, d: Script(before, end="error"), FAILED,
          {"lm-studio": frozenset({"crashed"})}),
    Fault("400", _refusal(400, "bad request"), FAILED),
    Fault("401", _refusal(401, "unauthorized"), frozenset({"key_rejected"}) | FAILED),
    Fault("403", _refusal(403, "permission denied"), frozenset({"key_rejected"}) | FAILED),
    Fault("404", _refusal(404, "404 page not found"), NONSENSE | FAILED),
    Fault("429", _refusal(429, "too many requests"), frozenset({"rate_limited"}) | FAILED),
    Fault("500", _refusal(500, "internal error"), FAILED),
    Fault("503", _refusal(503, "overloaded"), FAILED),
    Fault("out of memory", _refusal(500, "CUDA error: out of memory"), frozenset({"out_of_memory"})),
    Fault("too long", _refusal(400, "the prompt exceeds the context length"), frozenset({"context_too_long"})),
    Fault("the model has vanished", _vanished, frozenset({"model_missing"})),
    # Oddities
    Fault("words after the end", _words_after_the_end, COMPLETE, positions=frozenset({"middle", "end"})),
    Fault("a second end", _second_end, COMPLETE, positions=frozenset({"middle", "end"})),
    Fault("half a surrogate pair", _half_a_pair, COMPLETE),
    Fault("huge delta", _huge_delta, COMPLETE),
    Fault("wrong figures", _wrong_figures, COMPLETE, positions=frozenset({"end"})),
    Fault("slow", _slow, COMPLETE),
    Fault("kept open a while", _kept_open_a_while, COMPLETE),
    Fault("empty words for a while", _empty_for_a_while, COMPLETE),
    Fault("events of another kind", _among(b"{}", b'{"status": "ok", "choices": 7, "message": []}'), COMPLETE,
          wires=HTTP),
    Fault("another content type", _other_content_type, COMPLETE, positions=FIRST, wires=HTTP),
    Fault("still loading", _loads_once, COMPLETE, positions=FIRST, wires=OPENAI),
)  # fmt: skip


# Faults of model processes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessFault:
    """Something that happens to the process a model is in.

    Attributes:
        act: What is done to the process; given the parent's side of it, and dice.
        reasons: One of these ends the answer, unless it was whole already.
        is_linux: Whether it can be made to happen on Linux only.
    """

    name: str
    act: Callable[[Any, random.Random], None]
    reasons: frozenset[str]
    is_linux: bool = False

    def expected(self, backend):
        """The reasons of a backend."""
        return self.reasons


def _kill(child, dice):
    psutil.Process(child.pid).kill()


def _terminate(child, dice):
    psutil.Process(child.pid).terminate()


def _crash(child, dice):
    psutil.Process(child.pid).send_signal(dice.choice([signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGBUS]))


def _suspend(child, dice):
    psutil.Process(child.pid).suspend()


def _close_its_input(child, dice):
    child._process.popen.stdin.close()


def _write_into_its_pipe(child, text):
    """Write as if the process had, by its own end of the pipe."""
    pipe = Path(f"/proc/self/fd/{child._process.popen.stdout.fileno()}").readlink()
    ends = [end for end in Path(f"/proc/{child.pid}/fd").iterdir() if end.readlink() == pipe]
    with ends[0].open("wb", buffering=0) as end:
        end.write(text)


def _garbage(child, dice):
    garbage = [b"[]\n", b"nonsense\n", b'{"text": "for nobody"}\n', b"\xff\xfe\n", b"null\n", b"[" * 50_000 + b"\n"]
    _write_into_its_pipe(child, dice.choice(garbage))


def _line_without_end(child, dice):
    with contextlib.suppress(BrokenPipeError):  # nobody reads all of it
        _write_into_its_pipe(child, b"x" * (2 << 20))


def _half_a_line(child, dice):
    process = psutil.Process(child.pid)
    _write_into_its_pipe(child, b'{"id": 1, "te')
    process.kill()


CRASHED = frozenset({"crashed"})
PROCESS_FAULTS = (
    ProcessFault("killed", _kill, CRASHED),
    ProcessFault("terminated", _terminate, CRASHED),
    ProcessFault("native crash", _crash, frozenset({"native_crash"}), is_linux=True),
    ProcessFault("suspended", _suspend, STALLED | {"template_failed"}, is_linux=True),
    ProcessFault("input closed", _close_its_input, CRASHED),
    ProcessFault("garbage on its pipe", _garbage, CRASHED, is_linux=True),
    ProcessFault("line without end on its pipe", _line_without_end, CRASHED, is_linux=True),
    ProcessFault("half a line on its pipe", _half_a_line, CRASHED, is_linux=True),
)
