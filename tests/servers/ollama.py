"""A stand-in for an Ollama server: strict about what it is asked, and able to fail in every way a real one can.

    with serve() as server:                 # a real socket on 127.0.0.1, in a thread
        server.enqueue(Reply(["Two", " words"], end="nothing"))
        … let something ask server.url …
        assert server.chats[0]["options"]["num_ctx"] == 8192

Every request is validated with the official client's own types, and unknown fields and options are refused: a real
server would ignore them in silence. What was refused so is in `violations`, and `serve` fails over it at its end.
Answers are scripted by `enqueue`; without a script the server repeats the words of the last message until it has
written `num_predict` of them, or lets `writer` write (`starter_writer` asks the bundled model).

    python -m tests.servers.ollama [--port 11434] [--starter] [--pace 200]     # by hand, or from a benchmark
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ollama._types import ChatRequest, DeleteRequest, EmbedRequest, Message, Options, PullRequest, ShowRequest
from pydantic import ValidationError

from docmind.backends.stop_strings import StopStrings
from tests.servers import vectors
from tests.servers.http_by_hand import PATIENCE, HandServer, running

if TYPE_CHECKING:
    from collections.abc import Iterable

# What Ollama knows and the client's types of this version do not: github.com/ollama/ollama, docs/api.md and
# docs/modelfile.mdx.
CHAT_FIELDS = {*ChatRequest.model_fields, "truncate", "shift"}
OPTION_NAMES = {*Options.model_fields, "min_p"}


@dataclass(frozen=True)
class Model:
    """A model on the server."""

    name: str = "qwen3:4b"
    window: int = 40_960
    size: int = 2_600_000_000
    quantization: str = "Q4_K_M"
    architecture: str = "qwen3"
    capabilities: tuple[str, ...] | None = ("completion", "tools", "thinking")
    remote_host: str | None = None  # of a cloud model


MODELS = (
    Model(),
    Model("llama3.2:latest", 131_072, 2_000_000_000, architecture="llama", capabilities=("completion", "tools")),
    Model("nomic-embed-text:latest", 2048, 274_000_000, "F16", "nomic-bert", ("embedding",)),
)


LIBRARY = (Model("gemma3:1b", 32_768, 815_000_000, architecture="gemma3"),)


@dataclass(frozen=True)
class Reply:
    """What the server does with one chat request.

    Of `deltas` what is no text is sent as it is, or is a pause (`Connection.aside`); they may be endless.

    `end` is what comes after the deltas: "done" the marker; "nothing" a clean end without it; "html" a page of a proxy;
    "blank_lines" and "empty_chunks" for ever; "silence" for ever; "endless_line"; "half_line" a line cut in the middle;
    "error" an error line; "reset" a connection torn down.
    """

    deltas: Iterable[str | bytes | bytearray | float] = ("Hello", " there", ".")
    thinking: tuple[str, ...] = ()
    first_pause_seconds: float = 0.0
    pause_seconds: float = 0.0  # before each further delta
    end: str = "done"
    done_reason: str = "stop"
    error: str = "the model runner has stopped"
    figures: dict = field(default_factory=dict)  # over those of the last event; None leaves one out
    lines: tuple[bytes, ...] = ()  # sent as they are, before the deltas
    # Another one is sent with `error` (or `body`), and nothing else; 0: the connection is torn down without an answer.
    status: int = 200
    body: bytes | None = None
    location: str | None = None  # of a redirect
    kind: str = "application/x-ndjson"
    headers: dict = field(default_factory=dict)  # of the stream


class Server(HandServer):
    """The server: what it has, what it was asked, what it will say."""

    def __init__(self, models=MODELS, *, version="0.33.2", writer=None, load_seconds=0.0, pace_seconds=0.0):
        super().__init__()
        self.models = {model.name: model for model in models}
        self.version = version
        self.writer = writer
        self.load_seconds = load_seconds
        self.pace_seconds = pace_seconds
        self.key: str | None = None  # then a request needs "Bearer KEY"
        self.loaded: dict[str, int] = {}  # model → window
        self.gpu_share = 1.0  # of a loaded model's memory
        self.library = {model.name: model for model in LIBRARY}  # what can be pulled
        self.fetched: dict[str, int] = {}  # bytes of layers that are here, by digest
        # How pulls end: "success", "nothing" (a clean end without it), "silence", "reset", or an error's words.
        self.pull_end = "success"
        self.pull_pause_seconds = 0.0  # before each step of a pull
        self.vectors = vectors.packaged  # what makes them
        self.fault = ""  # what goes wrong with vectors: see tests/servers/vectors.py
        self._replies: deque[Reply] = deque()

    def enqueue(self, *replies):
        """Answers to the next chats that have messages."""
        self._replies.extend(replies)

    @property
    def chats(self):
        """The chat requests with messages: calls of the model."""
        return [body for path, body in self.requests if path == "/api/chat" and body.get("messages")]

    async def answer(self, connection, method, path, headers, request):
        """Answer one request."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            await connection.whole(401, {"error": "unauthorized"})
        elif (method, path) == ("GET", "/api/version"):
            await connection.whole(200, {"version": self.version})
        elif (method, path) == ("GET", "/api/tags"):
            await connection.whole(200, {"models": [_tag(model) for model in self.models.values()]})
        elif (method, path) == ("GET", "/api/ps"):
            await connection.whole(200, {"models": [self._running(name) for name in self.loaded]})
        elif (method, path) == ("POST", "/api/show"):
            await self._show(connection, request)
        elif (method, path) == ("POST", "/api/pull"):
            await self._pull(connection, request)
        elif (method, path) == ("DELETE", "/api/delete"):
            await self._delete(connection, request)
        elif (method, path) == ("POST", "/api/embed"):
            await self._embed(connection, request)
        elif (method, path) == ("POST", "/api/chat"):
            await self._chat(connection, request)
        else:
            await connection.whole(404, b"404 page not found")

    def _running(self, name):
        model = self.models[name]
        in_all = model.size + 100_000 * self.loaded[name]
        window = {"context_length": self.loaded[name]}
        return _tag(model) | {"size": in_all, "size_vram": int(self.gpu_share * in_all)} | window

    def _model(self, name):
        return self.models.get(name) or self.models.get(f"{name}:latest")

    async def _refuse(self, connection, why):
        self.note(self.violations, why)
        await connection.whole(400, {"error": why})

    async def _show(self, connection, request):
        if (wrong := _wrong(request, ShowRequest, {*ShowRequest.model_fields})) is not None:
            await self._refuse(connection, wrong)
        elif (model := self._model(request["model"])) is None:
            await connection.whole(404, {"error": f"model '{request['model']}' not found"})
        else:
            about = {
                "general.architecture": model.architecture,
                f"{model.architecture}.context_length": model.window,
                f"{model.architecture}.embedding_length": 2560,
            }
            shown = {"modelfile": "FROM x", "template": "{{ .Prompt }}", "details": _details(model)}
            abilities = {} if model.capabilities is None else {"capabilities": list(model.capabilities)}
            await connection.whole(200, {**shown, "model_info": about, **abilities})

    async def _pull(self, connection, request):
        if (wrong := _wrong(request, PullRequest, {*PullRequest.model_fields})) is not None:
            await self._refuse(connection, wrong)
            return
        await connection.begin(200, "application/x-ndjson")
        await connection.line({"status": "pulling manifest"})
        model = self.library.get(request["model"])
        if model is None:
            await connection.line({"error": "pull model manifest: file does not exist"})
            await connection.end()
            return
        for number, total in enumerate((model.size, 12_000, 500)):
            digest = f"sha256:{number:064x}"
            step = max(1, total // 10)
            while True:
                done = min(total, self.fetched.get(digest, 0))
                event = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": total}
                await connection.line(event | ({"completed": done} if done else {}))
                if done == total:
                    break
                if number == 0 and done >= total // 2 and self.pull_end != "success":
                    await self._fail_pull(connection)
                    return
                await asyncio.sleep(self.pull_pause_seconds)
                self.fetched[digest] = done + step
        for status in ("verifying sha256 digest", "writing manifest", "removing unused layers", "success"):
            if status == "success":
                self.models[model.name] = model
            await connection.line({"status": status})
        await connection.end()

    async def _fail_pull(self, connection):
        if self.pull_end == "reset":
            connection.writer.transport.abort()
        elif self.pull_end == "silence":
            await asyncio.sleep(PATIENCE)
        else:
            if self.pull_end != "nothing":
                await connection.line({"error": self.pull_end})
            await connection.end()

    async def _delete(self, connection, request):
        if (wrong := _wrong(request, DeleteRequest, {*DeleteRequest.model_fields})) is not None:
            await self._refuse(connection, wrong)
        elif (model := self._model(request["model"])) is None:
            await connection.whole(404, {"error": f"model '{request['model']}' not found"})
        else:
            del self.models[model.name]
            self.loaded.pop(model.name, None)
            await connection.whole(200, b"")

    async def _embed(self, connection, request):
        if (wrong := _wrong_embed(request)) is not None:
            await self._refuse(connection, wrong)
        elif (model := self._model(request["model"])) is None:
            await connection.whole(404, {"error": f'model "{request["model"]}" not found, try pulling it first'})
        elif "embedding" not in (model.capabilities or ("embedding",)):
            await connection.whole(400, {"error": "this model does not support embeddings"})
        elif max(len(text) // 4 for text in request["input"]) > model.window:
            await connection.whole(400, {"error": "the input length exceeds the context length"})
        else:
            self.loaded.setdefault(model.name, model.window)
            made = await vectors.make(self, request["input"])
            answer = {"model": model.name, "embeddings": made, "total_duration": 1, "prompt_eval_count": 9}
            if not await vectors.misbehave(connection, self, answer):
                await connection.whole(200, answer)

    async def _chat(self, connection, request):
        if (wrong := _wrong_chat(request)) is not None:
            await self._refuse(connection, wrong)
            return
        model = self._model(request["model"])
        if model is None:
            await connection.whole(404, {"error": f"model '{request['model']}' not found"})
            return
        thinks = request.get("think") not in (None, False)
        if thinks and model.capabilities is not None and "thinking" not in model.capabilities:
            await connection.whole(400, {"error": f'"{model.name}" does not support thinking'})
            return
        load_seconds = await self._load(model, request)
        if not request.get("messages"):
            reason = "unload" if _seconds(request.get("keep_alive")) == 0 else "load"
            await connection.whole(200, _event(model, "", done=True, done_reason=reason))
            return
        await self._write(connection, model, request, load_seconds)
        if _seconds(request.get("keep_alive")) == 0:
            self.loaded.pop(model.name, None)

    async def _load(self, model, request):
        """Load the model, if it is not there with this window."""
        window = (request.get("options") or {}).get("num_ctx", 4096)
        unload = not request.get("messages") and _seconds(request.get("keep_alive")) == 0
        if unload:
            self.loaded.pop(model.name, None)
            return 0.0
        if self.loaded.get(model.name) == window:
            return 0.0
        started = time.monotonic()
        await asyncio.sleep(self.load_seconds)
        self.loaded[model.name] = window
        return time.monotonic() - started

    async def _write(self, connection, model, request, load_seconds):
        """The answer: scripted, or written by `writer`, or the echo."""
        reply = self._replies.popleft() if self._replies else None
        options = request["options"]
        if reply is not None and (reply.status != 200 or reply.location or reply.body is not None):
            if reply.status == 0:
                connection.writer.transport.abort()
                return
            body = reply.body if reply.body is not None else {"error": reply.error}
            await connection.whole(reply.status, body, {"Location": reply.location} if reply.location else {})
            return
        read = sum(len(message.get("content", "")) for message in request["messages"]) // 4 + 8
        if read > options["num_ctx"]:
            if request.get("truncate") is False:
                why = f"request ({read} tokens) exceeds the available context size ({options['num_ctx']} tokens)"
                await connection.whole(400, {"error": why})
                return
            read = options["num_ctx"] // 2
        source = (self.writer or echo)(request) if reply is None else _scripted(reply)
        reply = reply or Reply(pause_seconds=self.pace_seconds)
        await connection.begin(200, reply.kind, reply.headers)
        for line in reply.lines:
            await connection.piece(line)
        await asyncio.sleep(reply.first_pause_seconds)
        for thought in reply.thinking:
            await connection.line(_event(model, "", thinking=thought))
            await asyncio.sleep(reply.pause_seconds)
        started = time.monotonic()
        written, reason = await self._deltas(connection, model, source, options, reply)
        if self.is_breaking_off:
            await connection.end()
            return
        if reply.end != "done":
            await _END[reply.end](connection, model, reply)
            return
        figures = {
            "total_duration": 1,
            "load_duration": int(load_seconds * 1e9),
            "prompt_eval_count": read,
            "prompt_eval_duration": read * 1_000_000,
            "eval_count": written + len(reply.thinking),
            "eval_duration": max(1, int((time.monotonic() - started) * 1e9)),
        } | reply.figures
        figures = {name: value for name, value in figures.items() if value is not None}
        await connection.line(_event(model, "", done=True, done_reason=reason) | figures)
        await connection.end()

    async def _deltas(self, connection, model, source, options, reply):
        """Write until the source, a stop string or `num_predict` ends it; how many, and why it ended."""
        stops = StopStrings(options.get("stop") or [])
        limit = options.get("num_predict", -1)
        written = 0
        async with contextlib.aclosing(source):
            async for delta in source:
                if self.is_breaking_off:
                    return written, ""
                if await connection.aside(delta):
                    continue
                text, is_end = stops.feed(delta)
                if text:
                    await connection.line(_event(model, text))
                if is_end:
                    return written, "stop"
                written += 1
                if written == limit:
                    return written, "length"
                if reply.pause_seconds:
                    await asyncio.sleep(reply.pause_seconds)
        if rest := stops.rest():
            await connection.line(_event(model, rest))
        return written, reply.done_reason


# Where words come from ------------------------------------------------------------------------------------------------


async def _scripted(reply):
    for delta in reply.deltas:
        yield delta


async def echo(request):
    """The words of the last message, over and over."""
    words = (request["messages"][-1].get("content") or "nothing").split()
    for number, word in enumerate(itertools.cycle(words)):
        yield word if number == 0 else f" {word}"
        await asyncio.sleep(0)


def starter_writer(config):
    """A writer that lets the bundled model write, in DocMind's own llama.cpp child."""
    from llama_index.core.llms import ChatMessage

    from docmind.backends import llama_cpp

    llm = llama_cpp.build(config, llama_cpp.STARTER)

    async def write(request):
        options = request["options"]
        ours = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed", "num_predict":
                "max_tokens", "repeat_penalty": "repeat_penalty", "min_p": "min_p"}  # fmt: skip
        arguments = {name: options[key] for key, name in ours.items() if key in options}
        messages = [ChatMessage(role=m["role"], content=m.get("content", "")) for m in request["messages"]]
        async with contextlib.aclosing(await llm.astream_chat(messages, **arguments)) as stream:
            async for response in stream:
                if response.delta:
                    yield response.delta

    return write


# How an answer can end ------------------------------------------------------------------------------------------------


async def _end_nothing(connection, model, reply):
    await connection.end()


async def _end_html(connection, model, reply):
    await connection.piece(b"<html><body><h1>502 Bad Gateway</h1></body></html>\n")
    await connection.end()


async def _end_blank_lines(connection, model, reply):
    while True:
        await connection.piece(b"\n")
        await asyncio.sleep(0.02)


async def _end_empty_chunks(connection, model, reply):
    while True:
        await connection.line(_event(model, ""))
        await asyncio.sleep(0.02)


async def _end_silence(connection, model, reply):
    await asyncio.sleep(3600)


async def _end_endless_line(connection, model, reply):
    while True:
        await connection.piece(b"x" * 65536)


async def _end_half_line(connection, model, reply):
    await connection.piece(b'{"model": "qwen3:4b", "message": {"role": "assist')
    await connection.end()


async def _end_error(connection, model, reply):
    await connection.line({"error": reply.error})
    await connection.end()


async def _end_reset(connection, model, reply):
    connection.writer.transport.abort()


_END = {
    "nothing": _end_nothing, "html": _end_html, "blank_lines": _end_blank_lines, "empty_chunks": _end_empty_chunks,
    "silence": _end_silence, "endless_line": _end_endless_line, "half_line": _end_half_line, "error": _end_error,
    "reset": _end_reset,
}  # fmt: skip


# What must be right about a request -----------------------------------------------------------------------------------


def _wrong(request, kind, fields):
    """What is wrong with a request, by the client's own type; None: nothing."""
    if not isinstance(request, dict):
        return "the body is no JSON object"
    if unknown := set(request) - fields:
        return f"unknown fields {sorted(unknown)}"
    try:
        kind.model_validate(request)
    except ValidationError as error:
        return str(error)
    return None


def _wrong_embed(request):
    if (wrong := _wrong(request, EmbedRequest, {*EmbedRequest.model_fields})) is not None:
        return wrong
    if request.get("truncate") is not False:
        return "truncate is not false: long texts would be cut"
    texts = request["input"]
    return None if isinstance(texts, list) and texts and all(texts) else "no texts"


def _wrong_chat(request):
    if (wrong := _wrong(request, ChatRequest, CHAT_FIELDS)) is not None:
        return wrong
    options = request.get("options") or {}
    if unknown := set(options) - OPTION_NAMES:
        return f"unknown options {sorted(unknown)}"
    is_unloading = not request.get("messages") and _seconds(request.get("keep_alive")) == 0
    if "num_ctx" not in options and not is_unloading:
        return "num_ctx is not said: the server's default would cut the prompt"
    for message in request.get("messages") or []:
        if unknown := set(message) - {*Message.model_fields}:
            return f"unknown fields {sorted(unknown)} in a message"
        if message["role"] not in ("system", "user", "assistant", "tool"):
            return f"unknown role {message['role']}"
    try:
        Options.model_validate(options)
    except ValidationError as error:
        return str(error)
    keep_alive = request.get("keep_alive")
    if isinstance(keep_alive, str) and keep_alive.lstrip("-").isdigit():
        return "keep_alive is a text without a unit"
    return None


def _seconds(keep_alive):
    """0 for what means "not at all"; anything else for anything else."""
    return 0 if keep_alive in (0, "0s", "0m") else 1


# Bodies --------------------------------------------------------------------------------------------------------------


def _event(model, content, *, thinking=None, done=False, done_reason=None):
    message = {"role": "assistant", "content": content}
    if thinking is not None:
        message["thinking"] = thinking
    event = {"model": model.name, "created_at": "2026-11-21T12:00:00.000000Z", "message": message, "done": done}
    return event | ({"done_reason": done_reason} if done_reason is not None else {})


def _details(model):
    return {
        "parent_model": "", "format": "gguf", "family": model.architecture, "families": [model.architecture],
        "parameter_size": "4B", "quantization_level": model.quantization,
    }  # fmt: skip


def _tag(model):
    remote = {"remote_host": model.remote_host, "remote_model": model.name} if model.remote_host else {}
    return {
        "name": model.name, "model": model.name, "modified_at": "2026-11-20T12:00:00Z", "size": model.size,
        "digest": "0" * 64, "details": _details(model), **remote,
    }  # fmt: skip


# Starting it ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(models=MODELS, *, host="127.0.0.1", port=0, strict=True, **settings):
    """A running server, until the block ends.

    Args:
        host: Where it listens; its `url` is the loopback address all the same.
        strict: Fail at the end over a request that a real server would have misunderstood.
        settings: As for `Server`.
    """
    with running(Server(models, **settings), host=host, port=port, strict=strict) as server:
        yield server


def main():
    """Serve until interrupted; the address is the first line printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--starter", action="store_true", help="let the bundled model write")
    parser.add_argument("--pace", type=float, help="words a second, otherwise as fast as it can")
    arguments = parser.parse_args()
    writer = None
    if arguments.starter:
        from docmind.config import load_config

        writer = starter_writer(load_config())
    pace = 1 / arguments.pace if arguments.pace else 0.0
    with serve(port=arguments.port, writer=writer, pace_seconds=pace) as server, contextlib.suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
