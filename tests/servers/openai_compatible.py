"""A stand-in for servers that speak OpenAI's chat protocol: strict about what it is asked, and able to fail.

    with serve(kind="vllm") as server:      # a real socket on 127.0.0.1, in a thread
        server.enqueue(Reply(["Two", " words"], end="nothing"))
        … let something ask server.url …
        assert server.chats[0]["max_tokens"] == 512

Every request is validated with the types of OpenAI's own Python package; beside them only what the kind of server
really knows is allowed. What was refused so is in `violations`, and `serve` fails over it at its end. Each kind lists
its models and tells its window as the real one does. Answers are scripted by `enqueue`; without a script the server
repeats the words of the last message until it has written `max_tokens` of them.

    python -m tests.servers.openai_compatible [--port 8080] [--pace 200]     # by hand
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from pydantic import TypeAdapter, ValidationError

from docmind.backends.stop_strings import StopStrings
from tests.servers import vectors
from tests.servers.http_by_hand import HandServer, running

if TYPE_CHECKING:
    from collections.abc import Iterable

REQUEST = TypeAdapter(CompletionCreateParamsStreaming)
EMBEDDING = TypeAdapter(EmbeddingCreateParams)
FIELDS = {*CompletionCreateParamsStreaming.__annotations__} | {
    name for base in CompletionCreateParamsStreaming.__orig_bases__ for name in getattr(base, "__annotations__", {})
}
# What each kind takes beside OpenAI's own fields.
EXTRA_FIELDS = {
    "llama-server": {"top_k", "min_p", "repeat_penalty", "grammar"},
    "llama-swap": {"top_k", "min_p", "repeat_penalty", "grammar"},
    "vllm": {"top_k", "min_p", "repetition_penalty"},
    "mlx": {"top_k", "min_p", "repetition_penalty"},
    "trtllm": {"top_k", "min_p", "repetition_penalty"},
    "tabbyapi": {"top_k", "min_p", "repetition_penalty"},
    "together": {"top_k", "min_p", "repetition_penalty"},
    "instructlab": {"top_k", "min_p", "repeat_penalty"},
    "lm-studio-rest": {"top_k", "repeat_penalty"},
    "groq": set(),
    "other": set(),
}
OWNERS = {
    "llama-server": "llamacpp", "vllm": "vllm", "llama-swap": "llama-swap", "instructlab": "me", "trtllm":
    "tensorrt_llm", "tabbyapi": "tabbyAPI", "lm-studio-rest": "organization_owner", "groq": "Alibaba Cloud",
    "together": "Qwen", "other": "somebody",
}  # fmt: skip
# As each kind says that a prompt is too long.
TOO_LONG = {
    "llama-server": {"code": 400, "message": "request ({n} tokens) exceeds the available context size ({window} tokens)"
                     ", try increasing it", "type": "exceed_context_size_error"},
    "vllm": {"message": "This model's maximum context length is {window} tokens. However, you requested {n} tokens. "
             "Please reduce the length of the messages or completion.", "type": "BadRequestError", "code": 400},
    "groq": {"message": "Please reduce the length of the messages or completion.", "type": "invalid_request_error",
             "param": "messages", "code": "context_length_exceeded"},
    "lm-studio-rest": "Trying to keep the first {n} tokens when context the overflows. However, the model is loaded "
                      "with context length of only {window} tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What the server does with one chat request.

    Of `deltas` what is no text is sent as it is, or is a pause (`Connection.aside`); they may be endless.

    `end` is what comes after the deltas: "done" the finish reason, the usage and `[DONE]`; "nothing" a clean end;
    "done_only" `[DONE]` without a reason; "html" a page of a proxy; "comments" and "empty_chunks" for ever; "silence"
    for ever; "endless_line"; "endless_event"; "half_line" an event cut in the middle; "error" an error event; "json"
    the error as a line of its own; "reset" a connection torn down; the same two after the finish reason are
    "reset_later" and "silence_later".
    """

    deltas: Iterable[str | bytes | bytearray | float] = ("Hello", " there", ".")
    thinking: tuple[str, ...] = ()
    thinking_field: str = "reasoning_content"
    first_pause_seconds: float = 0.0
    pause_seconds: float = 0.0  # before each further delta
    end: str = "done"
    finish_reason: str | None = "stop"
    error: object = "the engine has stopped"  # a text or an object
    usage: dict | None = field(default_factory=dict)  # over the server's own; None: none is sent
    timings: dict | None = None  # as llama-server's
    lines: tuple[bytes, ...] = ()  # sent as they are, before the deltas
    # Another one is sent with `error` (or `body`), and nothing else; 0: the connection is torn down without an answer.
    status: int = 200
    body: bytes | None = None
    kind: str = "text/event-stream"
    headers: dict = field(default_factory=dict)


class Server(HandServer):
    """The server: what it has, what it was asked, what it will say."""

    def __init__(self, kind="llama-server", *, models=("qwen3-4b",), window=8192, pace_seconds=0.0):
        super().__init__()
        self.kind = kind
        self.models = list(models)
        self.window = window
        self.pace_seconds = pace_seconds
        self.key: str | None = None  # then a request needs "Bearer KEY"
        self.is_heeding_stop = True  # otherwise it writes on, as mlx_lm.server may
        self.is_loading = False  # then it says so to everything but its list of models
        self.refuses: set[str] = set()  # fields it does not know
        self.loaded: set[str] = {self.models[0]} if models else set()  # of those that load on demand
        self.vectors = vectors.packaged  # what makes them
        # What goes wrong with vectors: see tests/servers/vectors.py; also "no order" and "twice the first".
        self.fault = ""
        self._replies: deque[Reply] = deque()

    def enqueue(self, *replies):
        """Answers to the next chats."""
        self._replies.extend(replies)

    @property
    def chats(self):
        """The chat requests."""
        return [body for path, body in self.requests if path == "/v1/chat/completions"]

    # One request

    async def answer(self, connection, method, path, headers, request):
        """Answer one request."""
        told = self._told(path) if method == "GET" else None
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            await connection.whole(401, {"error": {"message": "Invalid API Key", "type": "authentication_error"}})
        elif self.is_loading and path != "/v1/models":
            await connection.whole(
                503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
            )
        elif told is not None:
            await connection.whole(200, told, {"Server": "BaseHTTP/0.6 Python/3.12.3"} if self.kind == "mlx" else {})
        elif (method, path) == ("POST", "/v1/chat/completions"):
            await self._chat(connection, request)
        elif (method, path) == ("POST", "/v1/embeddings"):
            await self._embed(connection, request)
        else:
            await connection.whole(
                404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
            )

    def _told(self, path):
        """What a GET gives; None: nothing."""
        listing = [self._entry(name) for name in self.models]
        props = {"default_generation_settings": {"n_ctx": self.window}, "total_slots": 1, "build_info": "b7000-abc"}
        rest = [
            {"id": name, "object": "model", "type": "embeddings" if "embed" in name else "llm", "quantization": "Q8_0",
             "state": "loaded" if name in self.loaded else "not-loaded", "max_context_length": 32_768}
            | ({"loaded_context_length": self.window} if name in self.loaded else {})
            for name in self.models
        ]  # fmt: skip
        card = {"id": next(iter(self.loaded), ""), "object": "model", "parameters": {"max_seq_len": self.window}}
        tells = {
            ("any", "/v1/models"): listing if self.kind == "together" else {"object": "list", "data": listing},
            ("any", "/health"): {"status": "ok"},
            ("llama-server", "/props"): props,
            ("vllm", "/version"): {"version": "0.11.0"},
            ("trtllm", "/version"): {"version": "1.1.0"},
            ("llama-swap", "/running"): {"running": [{"model": name, "state": "ready"} for name in self.loaded]},
            ("tabbyapi", "/v1/model"): card,
            ("lm-studio-rest", "/api/v0/models"): {"object": "list", "data": rest},
            **{("llama-swap", f"/upstream/{name}/props"): props for name in self.loaded},
        }
        return tells.get(("any", path)) or tells.get((self.kind, path))

    def _entry(self, name):
        entry = {"id": name, "object": "model", "created": 1_763_000_000}
        if self.kind in OWNERS:
            entry["owned_by"] = OWNERS[self.kind]
        own = {
            "llama-server": {"aliases": [f"{name}.gguf"], "meta": {"n_ctx_train": 40_960, "size": 2_600_000_000,
                             "ftype": "Q4_K_M"}},
            "vllm": {"max_model_len": self.window, "root": name, "parent": None},
            "groq": {"context_window": self.window, "active": "old" not in name},
            "together": {"context_length": self.window, "type": "embedding" if "embed" in name else "chat"},
            "tabbyapi": {"parameters": None},
        }  # fmt: skip
        return entry | own.get(self.kind, {})

    async def _refuse(self, connection, why):
        self.note(self.violations, why)
        await connection.whole(400, {"error": {"message": why, "type": "invalid_request_error"}})

    async def _embed(self, connection, request):
        if (wrong := _wrong_embedding(request)) is not None:
            await self._refuse(connection, wrong)
        elif request["model"] not in self.models:
            why = {"message": f"The model `{request['model']}` does not exist.", "type": "NotFoundError", "code": 404}
            await connection.whole(404, {"error": why})
        elif "embed" not in request["model"]:
            why = "This server does not support embeddings. Start it with `--embeddings`"
            await connection.whole(501, {"error": {"code": 501, "message": why, "type": "not_supported_error"}})
        elif (longest := max(len(text) // 4 for text in request["input"])) > self.window:
            why = f"input ({longest} tokens) is too large to process. increase the physical batch size"
            await connection.whole(500, {"error": {"code": 500, "message": why, "type": "server_error"}})
        else:
            made = await vectors.make(self, request["input"])
            data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(made)]
            if self.fault == "no order":
                data.reverse()
            elif self.fault == "twice the first":
                data = [entry | {"index": 0} for entry in data]
            usage = {"prompt_tokens": 9, "total_tokens": 9}
            answer = {"object": "list", "data": data, "model": request["model"], "usage": usage}
            if not await vectors.misbehave(connection, self, answer):
                await connection.whole(200, answer)

    async def _chat(self, connection, request):
        if (wrong := _wrong(request, self.kind)) is not None:
            await self._refuse(connection, wrong)
            return
        if refused := sorted(self.refuses & set(request)):
            await connection.whole(*_refused(self.kind, refused))
            return
        if request["model"] not in [*self.models, "default_model"]:
            why = {"message": f"The model `{request['model']}` does not exist.", "type": "NotFoundError", "code": 404}
            await connection.whole(404, {"error": why})
            return
        self.loaded.add(request["model"])
        reply = self._replies.popleft() if self._replies else None
        if reply is not None and (reply.status != 200 or reply.body is not None):
            if reply.status == 0:
                connection.writer.transport.abort()
                return
            body = reply.body if reply.body is not None else {"error": reply.error}
            await connection.whole(reply.status, body, reply.headers)
            return
        read = sum(len(message["content"]) for message in request["messages"]) // 4 + 8
        if read > self.window:
            why = TOO_LONG.get(self.kind, TOO_LONG["vllm"])
            await connection.whole(400, {"error": _filled(why, n=read, window=self.window)})
            return
        await self._write(connection, request, reply, read)

    async def _write(self, connection, request, reply, read):
        """The answer: scripted, or the echo."""
        source = _echo(request) if reply is None else _scripted(reply)
        reply = reply or Reply(pause_seconds=self.pace_seconds)
        stream = _Stream(connection, request["model"])
        await connection.begin(200, reply.kind, reply.headers)
        for line in reply.lines:
            await connection.piece(line)
        await asyncio.sleep(reply.first_pause_seconds)
        await stream.choice({"role": "assistant", "content": None})
        for thought in reply.thinking:
            await stream.choice({reply.thinking_field: thought})
            await asyncio.sleep(reply.pause_seconds)
        started = time.monotonic()
        written, reason = await self._deltas(stream, source, request, reply)
        if self.is_breaking_off:
            await connection.end()
            return
        if reply.end in _END:
            await _END[reply.end](connection, stream, reply)
            return
        await stream.choice({}, finish_reason=reason)
        if reply.end == "reset_later":
            connection.writer.transport.abort()
            return
        if reply.end == "silence_later":
            await asyncio.sleep(3600)
        asked = (request.get("stream_options") or {}).get("include_usage")
        if reply.usage is not None and asked:
            written += len(reply.thinking)
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            seconds = max(1e-6, time.monotonic() - started)
            clock = {"cache_n": 0, "prompt_n": read, "prompt_ms": 1.0 * read, "prompt_per_second": 1000.0,
                     "predicted_n": written, "predicted_per_second": written / seconds}  # fmt: skip
            own = {"timings": clock | (reply.timings or {})} if self.kind == "llama-server" else {}
            await stream.event({"choices": [], "usage": usage | reply.usage, **own})
        await connection.piece(b"data: [DONE]\n\n")
        await connection.end()

    async def _deltas(self, stream, source, request, reply):
        """Write until the source, a stop string or `max_tokens` ends it; how many, and why it ended."""
        stop = (self.is_heeding_stop and request.get("stop")) or []
        stops = StopStrings([stop] if isinstance(stop, str) else stop)
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or -1
        written = 0
        async with contextlib.aclosing(source):
            async for delta in source:
                if self.is_breaking_off:
                    return written, ""
                if await stream.connection.aside(delta):
                    continue
                text, is_end = stops.feed(delta)
                if text:
                    await stream.choice({"content": text})
                if is_end:
                    return written, "stop"
                written += 1
                if written == limit:
                    return written, "length"
                if reply.pause_seconds:
                    await asyncio.sleep(reply.pause_seconds)
        if rest := stops.rest():
            await stream.choice({"content": rest})
        return written, reply.finish_reason


class _Stream:
    """Server-sent events, as OpenAI's chunks."""

    def __init__(self, connection, model):
        self.connection = connection
        self._common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_763_000_000, "model": model}

    async def event(self, event):
        """One event."""
        await self.connection.piece(b"data: " + _json(self._common | event) + b"\n\n")

    async def choice(self, delta, finish_reason=None):
        """One event with a choice."""
        await self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _json(value):
    return json.dumps(value).encode()


# Where words come from ------------------------------------------------------------------------------------------------


async def _scripted(reply):
    for delta in reply.deltas:
        yield delta


async def _echo(request):
    """The words of the last message, over and over."""
    words = request["messages"][-1]["content"].split() or ["nothing"]
    for number, word in enumerate(itertools.cycle(words)):
        yield word if number == 0 else f" {word}"
        await asyncio.sleep(0)


# How an answer can end ------------------------------------------------------------------------------------------------


async def _end_nothing(connection, stream, reply):
    await connection.end()


async def _end_done_only(connection, stream, reply):
    await connection.piece(b"data: [DONE]\n\n")
    await connection.end()


async def _end_html(connection, stream, reply):
    await connection.piece(b"<html><body><h1>502 Bad Gateway</h1></body></html>\n")
    await connection.end()


async def _end_comments(connection, stream, reply):
    while True:
        await connection.piece(b": keep-alive\n\n")
        await asyncio.sleep(0.02)


async def _end_empty_chunks(connection, stream, reply):
    while True:
        await stream.choice({"content": ""})
        await asyncio.sleep(0.02)


async def _end_silence(connection, stream, reply):
    await asyncio.sleep(3600)


async def _end_endless_line(connection, stream, reply):
    while True:
        await connection.piece(b"x" * 65536)


async def _end_endless_event(connection, stream, reply):
    while True:
        await connection.piece(b"data: " + b"x" * 65536 + b"\n")


async def _end_half_line(connection, stream, reply):
    await connection.piece(b'data: {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"cont')
    await connection.end()


async def _end_error(connection, stream, reply):
    await connection.piece(b"data: " + _json({"error": reply.error}) + b"\n\n")
    await connection.end()


async def _end_json(connection, stream, reply):
    await connection.piece(_json({"error": reply.error}) + b"\n")
    await connection.end()


async def _end_reset(connection, stream, reply):
    connection.writer.transport.abort()


_END = {
    "nothing": _end_nothing, "done_only": _end_done_only, "html": _end_html, "comments": _end_comments,
    "empty_chunks": _end_empty_chunks, "silence": _end_silence, "endless_line": _end_endless_line,
    "endless_event": _end_endless_event, "half_line": _end_half_line, "error": _end_error, "json": _end_json,
    "reset": _end_reset,
}  # fmt: skip


# What must be right about a request -----------------------------------------------------------------------------------


def _wrong(request, kind):
    """What is wrong with a request, by OpenAI's own types; None: nothing."""
    if not isinstance(request, dict):
        return "the body is no JSON object"
    extra = EXTRA_FIELDS[kind]
    if unknown := set(request) - FIELDS - extra:
        return f"unknown fields {sorted(unknown)}"
    try:
        valid = REQUEST.validate_python({name: value for name, value in request.items() if name not in extra})
        messages = list(valid["messages"])  # an iterable: validated only when it is looked at
    except ValidationError as error:
        return str(error)
    if not messages or request.get("stream") is not True:
        return "no messages, or no stream"
    for name in extra & set(request):
        if not isinstance(request[name], str if name == "grammar" else (int, float)):
            return f"{name} is no value"
    return None


def _wrong_embedding(request):
    """What is wrong with a request for vectors, by OpenAI's own type; None: nothing."""
    if not isinstance(request, dict) or set(request) - {*EmbeddingCreateParams.__annotations__}:
        return "the body is no JSON object, or has unknown fields"
    try:
        texts = list(EMBEDDING.validate_python(request)["input"])
    except ValidationError as error:
        return str(error)
    if request.get("encoding_format") != "float" or not texts or not all(isinstance(text, str) for text in texts):
        return "no texts, or not in the format that is read"
    return None


def _refused(kind, names):
    """Status and body, as each kind says that it does not know a field."""
    if kind == "groq":
        return 400, {"error": {"message": f"property '{names[0]}' is unsupported, did you mean 'stop'?",
                               "type": "invalid_request_error"}}  # fmt: skip
    if kind == "together":
        return 422, {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg":
                                 "Extra inputs are not permitted", "input": 1} for name in names]}  # fmt: skip
    if kind == "trtllm":
        wrong = [{"type": "extra_forbidden", "loc": ("body", name), "msg": "Extra inputs are not permitted", "input": 1}
                 for name in names]  # fmt: skip
        return 400, {"object": "error", "message": str(wrong), "type": "BadRequestError", "param": None, "code": 400}
    return 400, {"error": {"message": f"Unsupported parameter: '{names[0]}' is not supported with this model.", "type":
                           "invalid_request_error", "param": names[0], "code": "unsupported_parameter"}}  # fmt: skip


def _filled(said, **values):
    if isinstance(said, dict):
        return {name: _filled(value, **values) for name, value in said.items()}
    return said.format(**values) if isinstance(said, str) else said


# Starting it ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(kind="llama-server", *, port=0, strict=True, **settings):
    """A running server, until the block ends.

    Args:
        strict: Fail at the end over a request that a real server would have misunderstood.
        settings: As for `Server`.
    """
    with running(Server(kind, **settings), port=port, strict=strict) as server:
        yield server


def main():
    """Serve until interrupted; the address is the first line printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pace", type=float, help="words a second, otherwise as fast as it can")
    arguments = parser.parse_args()
    pace = 1 / arguments.pace if arguments.pace else 0.0
    with serve(port=arguments.port, pace_seconds=pace) as server, contextlib.suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
