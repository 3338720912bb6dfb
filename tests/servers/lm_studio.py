"""A stand-in for LM Studio: speaks its websocket protocol, strict about what it is asked, and able to fail.

    with serve() as server:                 # a real socket on 127.0.0.1, in a thread
        server.enqueue(Reply(["Two", " words"], end="close"))
        … let something ask server.url …
        assert server.predictions[0]["predictionConfigStack"] …

Every message is validated with the official package's own schema classes, unknown fields and settings are refused, and
so is what comes in the wrong order; what was refused is in `violations`, and `serve` fails over it at its end. Answers
are scripted by `enqueue`; without a script the server repeats the words of the last message until the limit of the
call, or lets `writer` write, as the stand-in for Ollama does.

What the package does not know (endpoints and fields of newer servers, how errors look) is from
https://github.com/lmstudio-ai/lmstudio-js, packages/lms-external-backend-interfaces and packages/lms-shared-types.

    python -m tests.servers.lm_studio [--port 1234] [--starter] [--pace 200]     # by hand, or from a benchmark
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from lmstudio import _kv_config, _sdk_models
from websockets.asyncio.server import serve as serve_websockets
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.protocol import State

from docmind.backends.stop_strings import StopStrings
from tests.servers.http_by_hand import PATIENCE
from tests.servers.ollama import echo, starter_writer

if TYPE_CHECKING:
    from collections.abc import Iterable

LOGGER = logging.getLogger("lm studio stand-in")
LOGGER.addHandler(logging.NullHandler())
LOGGER.propagate = False
LOGGER.setLevel(logging.CRITICAL)  # what a server logs is not what DocMind logs, in which tests search for keys


@dataclass(frozen=True)
class Model:
    """A model on the server's disk."""

    key: str = "qwen/qwen3-4b-2507"
    window: int = 262_144
    size: int = 2_500_000_000
    quantization: str | None = "Q4_K_M"
    kind: str = "llm"
    path: str = "lmstudio-community/Qwen3-4B-Instruct-2507-GGUF/Qwen3-4B-Instruct-2507-Q4_K_M.gguf"
    device: str | None = None  # of a model that is on another machine


MODELS = (
    Model(),
    Model("llama-3.2-3b-instruct", 131_072, 2_020_000_000, None, path="a/b/Llama-3.2-3B-Instruct-Q8_0.gguf"),
    Model("text-embedding-nomic-embed-text-v1.5", 2048, 84_000_000, None, "embedding", "nomic/nomic.Q4_K_M.gguf"),
)


@dataclass
class Instance:
    """A model in memory."""

    identifier: str
    model: Model
    window: int
    reference: str
    ttl_ms: int | None = None


@dataclass(frozen=True)
class Reply:
    """What the server does with one prediction.

    Of `deltas` what is no text: a dictionary is sent on the channel, bytes as a text message (that may be none), a
    bytearray without any frame, and a number is a pause in seconds; they may be endless.

    `end` is what comes after the words: "success"; "close" the channel's end without it; "hang up" and "crash" that of
    the connection; "reset" a connection torn down; "error" on the channel; "silence", "progress" and "others" (messages
    of no channel of ours) for ever; "garbage", "list", "bytes", "bad frame" and "endless" what is no message; "warning"
    that the server did not understand.
    """

    deltas: Iterable[str | dict | bytes | bytearray | float] = ("Hello", " there", ".")
    thinking: tuple[str, ...] = ()
    first_pause_seconds: float = 0.0
    pause_seconds: float = 0.0  # before each further delta
    end: str = "success"
    stop_reason: str = "eosFound"
    error: dict = field(default_factory=lambda: {"title": "The model has crashed without additional information."})
    stats: dict = field(default_factory=dict)  # over those of the end; None leaves one out
    contents: tuple[object, ...] = ()  # sent on the channel, before the words


class Server:
    """The server: what it has, what it was asked, what it will say."""

    def __init__(self, models=MODELS, *, version="0.4.24", writer=None, pace_seconds=0.0, load_seconds=0.0):
        self.models = {model.key: model for model in models}
        self.version = version
        self.writer = writer
        self.pace_seconds = pace_seconds
        self.load_seconds = load_seconds
        self.load_error: dict | None = None
        self.is_detailed = True  # newer servers say how much of the prompt was kept
        self.key: str | None = None  # the only API token that lets somebody in
        self.turned_away: dict | None = None  # the error that everybody is turned away with, whatever the token
        self.loaded: dict[str, Instance] = {}
        self.messages: list[tuple[str, dict]] = []  # part of the server and message, in order
        self.requests: list[tuple[str, dict]] = []  # path and headers of each HTTP request
        self.violations: list[str] = []
        self.cancelled: list[str] = []  # endpoints of the channels that were cancelled
        self.hang_ups: list[str] = []  # endpoints of those whose client left without a word
        self.answering = 0  # channels that are being worked on
        self.is_breaking_off = False  # then answers that are being written end without their end
        self.instead: dict[str, tuple[int, dict, bytes]] = {}  # path → status, headers and body of an HTTP answer
        self.results: dict[str, object] = {}  # endpoint → what a call gives in place of the truth
        self.unknown: set[str] = set()  # endpoints that this server does not know, as older ones
        self.url = ""
        self._replies: deque[Reply] = deque()
        self._references = itertools.count(1)
        self._loading = asyncio.Lock()
        self._changed = threading.Condition()

    def enqueue(self, *replies):
        """Answers to the next predictions."""
        self._replies.extend(replies)

    def load(self, key, window=8192, identifier=None, ttl_ms=None):
        """Put a model into memory, as somebody may have done in the app."""
        identifier = identifier or key
        instance = Instance(identifier, self.models[key], window, f"reference-{next(self._references)}", ttl_ms)
        self.loaded[identifier] = instance
        return instance

    @property
    def predictions(self):
        """What each prediction was created with."""
        return self._created("predict")

    @property
    def loads(self):
        """What each load was created with."""
        return self._created("getOrLoad") + self._created("loadModel")

    @property
    def keys_sent(self):
        """The API token of each introduction; of one without, what was made up in its place."""
        return [_token(message) for _, message in list(self.messages) if "authVersion" in message]

    def _created(self, endpoint):
        return [
            message["creationParameter"]
            for _, message in self.messages
            if message.get("type") == "channelCreate" and message["endpoint"] == endpoint
        ]

    def called(self, endpoint):
        """How often a question was asked."""
        return sum(message.get("endpoint") == endpoint for _, message in self.messages)

    def wait_for(self, condition):
        """Wait until something is true of this server."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), "waited in vain"

    def note(self, list_, entry):
        """Remember something that happened."""
        with self._changed:
            list_.append(entry)
            self._changed.notify_all()

    def count(self, step):
        """One channel more, or less."""
        with self._changed:
            self.answering += step
            self._changed.notify_all()

    # HTTP

    def process_request(self, connection, request):
        """Answers what is no websocket; None: it may become one."""
        self.note(self.requests, (request.path, dict(request.headers.raw_items())))
        if request.path in self.instead:
            status, headers, body = self.instead[request.path]
            # Headers after `Connection`, as some want none of them.
            return Response(status, "Said", Headers({**headers, "Content-Length": str(len(body))}), body)
        if request.path == "/lmstudio-greeting":
            body = b'{"lmstudio":true}'
            return Response(200, "OK", Headers({"Content-Type": "application/json", "Content-Length": "17"}), body)
        return None

    # One connection

    async def serve_connection(self, websocket):
        """The messages of one client, until it leaves."""
        part = websocket.request.path.removeprefix("/")
        client = _Client(self, websocket, part)
        try:
            if await client.is_let_in():
                async for text in websocket:
                    await client.handle(text)
        except ConnectionClosed:
            pass
        finally:
            await client.leave()

    def instance_for(self, specifier):
        """The instance that a specifier means, or the error for none."""
        if specifier["type"] == "instanceReference":
            found = next((i for i in self.loaded.values() if i.reference == specifier["instanceReference"]), None)
            error = {"title": "Model unloaded.", "displayData": {"code": "generic.specificModelUnloaded"}}
            return found, None if found else error
        found = self.loaded.get(specifier["query"].get("identifier"))
        return found, None if found else _not_found(self, specifier["query"])


class _Client:
    """One websocket."""

    def __init__(self, server, websocket, part):
        self.server, self.websocket, self.part = server, websocket, part
        self.channels: dict[int, tuple[str, asyncio.Task]] = {}
        self.last_ids = {"callId": 0, "channelId": 0}

    async def send(self, message):
        await self.websocket.send(json.dumps(message))

    async def refuse(self, why):
        self.server.note(self.server.violations, why)
        await self.send({"type": "communicationWarning", "warning": why})

    async def is_let_in(self):
        """The first message says who the client is."""
        message = json.loads(await self.websocket.recv())
        self.server.note(self.server.messages, (self.part, message))
        if self.part not in ("llm", "embedding", "system", "files", "repository"):
            self.server.note(self.server.violations, f"there is no part {self.part}")
            return False
        is_right = set(message) == {"authVersion", "clientIdentifier", "clientPasskey"} and message["authVersion"] == 1
        if not is_right or not all(message[name] for name in message):
            self.server.note(self.server.violations, f"no introduction: {message}")
            return False
        error = self.server.turned_away
        if self.server.key not in (None, _token(message)):
            error = error or {"title": "Invalid API token"}
        if error is not None:
            await self.send({"success": False, "error": error})
            return False
        await self.send({"success": True})
        return True

    async def handle(self, text):
        """One message."""
        message = json.loads(text)
        self.server.note(self.server.messages, (self.part, message))
        match message:
            case {"type": "rpcCall", "endpoint": str(), "callId": int()}:
                await self.call(message)
            case {"type": "channelCreate", "endpoint": str(), "channelId": int(), "creationParameter": dict()}:
                await self.create(message)
            case {"type": "channelSend", "channelId": int(number), "message": {"type": "cancel"} as contents}:
                _, task = self.channels.get(number, ("", None))
                if len(message) != 3 or len(contents) != 1 or task is None:
                    await self.refuse(f"cannot cancel: {message}")
                else:
                    self.server.note(self.server.cancelled, self.channels[number][0])
                    task.cancel("by the client")
            case _:
                await self.refuse(f"unknown message {message}")

    async def is_new(self, message, name):
        """Whether the numbers rise, and nothing is said beside what is known."""
        rest = set(message) - {"type", "endpoint", name, "parameter", "creationParameter"}
        if rest or message[name] <= self.last_ids[name]:
            await self.refuse(f"wrong {name} or unknown fields: {message}")
            return False
        self.last_ids[name] = message[name]
        return True

    # Questions

    async def call(self, message):
        """One question with one answer."""
        if not await self.is_new(message, "callId"):
            return
        endpoint, parameter, answer = message["endpoint"], message.get("parameter"), {"callId": message["callId"]}
        known = _CALLS.get(endpoint)
        if known is None or self.part not in known[0] or endpoint in self.server.unknown:
            why = f"Received rpcCall for unknown endpoint, endpoint = {endpoint}"
            if endpoint not in self.server.unknown:
                self.server.note(self.server.violations, why)
            await self.send({"type": "communicationWarning", "warning": why})
            return
        if (parameter is None) != (known[1] is None) or (parameter is not None and _wrong(parameter, known[1])):
            await self.refuse(f"{endpoint}: {_wrong(parameter, known[1]) if known[1] else 'takes no parameter'}")
            return
        if endpoint in self.server.results:
            await self.send({"type": "rpcResult", **answer, "result": self.server.results[endpoint]})
            return
        result, error = known[2](self, parameter)
        if error is not None:
            await self.send({"type": "rpcError", **answer, "error": error})
        else:
            await self.send({"type": "rpcResult", **answer} | ({} if result is None else {"result": result}))

    def list_downloaded(self, parameter):
        return [_info(model) for model in self.server.models.values()], None

    def version(self, parameter):
        return {"version": self.server.version, "build": 1}, None

    def list_loaded(self, parameter):
        return [_instance_info(i) for i in self.server.loaded.values() if i.model.kind == self.part], None

    def model_info(self, parameter):
        found, error = self.server.instance_for(parameter["specifier"])
        return (_instance_info(found), None) if found else (None, error)

    def load_config(self, parameter):
        found, error = self.server.instance_for(parameter["specifier"])
        return (_load_config(found), None) if found else (None, error)

    def unload(self, parameter):
        if self.server.loaded.pop(parameter["identifier"], None) is None:
            return None, _not_found(self.server, {"identifier": parameter["identifier"]})
        return None, None

    def apply_template(self, parameter):
        found, error = self.server.instance_for(parameter["specifier"])
        return ({"formatted": _text(parameter["history"])}, None) if found else (None, error)

    def count_tokens(self, parameter):
        found, error = self.server.instance_for(parameter["specifier"])
        return ({"tokenCount": tokens_in(parameter["inputString"])}, None) if found else (None, error)

    # Channels

    async def create(self, message):
        """Something that takes a while."""
        endpoint, parameter, number = message["endpoint"], message["creationParameter"], message["channelId"]
        if not await self.is_new(message, "channelId"):
            return
        kind, work = _CHANNELS.get(endpoint, (None, None))
        if kind is None or self.part != "llm":
            await self.refuse(f"there is no channel {endpoint} at {self.part}")
            return
        wrong = _wrong(parameter, kind) or _wrong_settings(endpoint, parameter)
        if wrong:
            await self.refuse(f"{endpoint}: {wrong}")
            return
        self.channels[number] = endpoint, asyncio.create_task(self.work(number, work, parameter))

    async def work(self, number, work, parameter):
        """Do it, and close the channel."""

        async def say(contents):
            await self.send({"type": "channelSend", "channelId": number, "message": contents})

        self.server.count(1)
        try:
            error = await work(self, say, parameter)
            if error is not None:
                await self.send({"type": "channelError", "channelId": number, "error": error})
            else:
                await self.send({"type": "channelClose", "channelId": number})
        except asyncio.CancelledError as cancellation:
            if cancellation.args:  # by the client, which may have gone since
                with contextlib.suppress(ConnectionClosed):
                    await self.send({"type": "channelClose", "channelId": number})
                return
            raise
        except ConnectionClosed:
            self.server.note(self.server.hang_ups, self.channels[number][0])
        finally:
            self.server.count(-1)

    async def leave(self):
        """The client has gone."""
        for endpoint, task in self.channels.values():
            if not task.done() and not task.cancelling():
                self.server.note(self.server.hang_ups, endpoint)
                task.cancel()
        results = await asyncio.gather(*(task for _, task in self.channels.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                self.server.note(self.server.violations, f"the stand-in failed: {result!r}")

    async def load(self, say, parameter):
        """Load a model, or find it loaded."""
        server = self.server
        identifier = parameter["identifier"]
        async with server._loading:
            if identifier in server.loaded:
                await say({"type": "alreadyLoaded", "info": _instance_info(server.loaded[identifier])})
                return None
            if identifier not in server.models or server.models[identifier].kind != "llm":
                return _not_found(server, {"identifier": identifier})
            model = server.models[identifier]
            await say({"type": "startLoading", "identifier": identifier, "info": _info(model)})
            for step in range(5):
                await say({"type": "loadProgress", "progress": step / 4})
                await asyncio.sleep(server.load_seconds / 5)
            if server.load_error is not None:
                return server.load_error
            window = _settings(parameter["loadConfigStack"]).get("contextLength", 4096)
            instance = server.load(identifier, min(window, model.window), ttl_ms=parameter.get("loadTtlMs"))
            await say({"type": "loadSuccess", "info": _instance_info(instance)})
        return None

    async def predict(self, say, parameter):
        """Read the prompt, and write."""
        server = self.server
        instance, error = server.instance_for(parameter["modelSpecifier"])
        if error is not None:
            return error
        read = tokens_in(_text(parameter["history"]))
        if read > instance.window:
            return {
                "title": f"Trying to keep the first {read} tokens when context the overflows. However, the model is "
                f"loaded with context length of only {instance.window} tokens, which is not enough."
            }
        reply = server._replies.popleft() if server._replies else None
        settings = _settings(parameter["predictionConfigStack"])
        asked = _as_asked(parameter["history"], settings)
        source = (server.writer or echo)(asked) if reply is None else _scripted(reply)
        reply = reply or Reply(pause_seconds=server.pace_seconds)
        for contents in reply.contents:
            await say(contents)
        for share in (0.0, 0.5, 1.0):
            await say(_progress(share, read, server.is_detailed))
        await asyncio.sleep(reply.first_pause_seconds)
        started = time.monotonic()
        if reply.thinking:
            await say(_fragment("<think>", "reasoningStartTag"))
            for thought in reply.thinking:
                await say(_fragment(thought, "reasoning"))
                await asyncio.sleep(reply.pause_seconds)
            await say(_fragment("</think>", "reasoningEndTag"))
        try:
            written, reason = await self.write(say, source, settings, instance.window - read, reply)
        except asyncio.CancelledError as cancellation:
            if cancellation.args and not server.is_breaking_off:
                with contextlib.suppress(ConnectionClosed):
                    await say(_success(instance, parameter, {"stopReason": "userStopped"}))
            raise
        if server.is_breaking_off:
            return None
        if reply.end != "success":
            return await _END[reply.end](self, say, reply)
        seconds = max(1e-6, time.monotonic() - started)
        stats = {
            "stopReason": reason,
            "tokensPerSecond": written / seconds,
            "timeToFirstTokenSec": read / 1000,
            "promptTokensCount": read,
            "predictedTokensCount": written + len(reply.thinking),
            "totalTokensCount": read + written + len(reply.thinking),
        } | reply.stats
        await say(_success(instance, parameter, {name: value for name, value in stats.items() if value is not None}))
        return None

    async def write(self, say, source, settings, room, reply):
        """Write until the source, a stop string, the limit or the window ends it; how many, and why it ended."""
        stops = StopStrings(settings.get("stopStrings") or [])
        limit = settings.get("maxTokens")
        written = 0
        async with contextlib.aclosing(source):
            async for delta in source:
                if self.server.is_breaking_off:
                    return written, ""
                if await self.aside(say, delta):
                    continue
                text, is_end = stops.feed(delta)
                if text:
                    await say(_fragment(text))
                if is_end:
                    return written, "stopStringFound"
                written += 1
                if written == limit:
                    return written, "maxPredictedTokensReached"
                if written >= room:
                    return written, "contextLengthReached"
                if reply.pause_seconds:
                    await asyncio.sleep(reply.pause_seconds)
        if rest := stops.rest():
            await say(_fragment(rest))
        return written, reply.stop_reason


    async def aside(self, say, entry):
        """Whether an entry of a script is no text; it is done then."""
        if isinstance(entry, dict):
            await say(entry)
        elif isinstance(entry, bytearray):
            self.websocket.transport.write(entry)
            while self.websocket.transport.get_write_buffer_size() > 1 << 20:
                await asyncio.sleep(0.001)
            if self.websocket.transport.is_closing():
                raise ConnectionClosed(None, None)
        elif isinstance(entry, bytes):
            await self.websocket.send(entry, text=True)
        elif isinstance(entry, (int, float)):
            await asyncio.sleep(entry)
        return not isinstance(entry, str)


_PARTS = ("llm", "embedding")
# Endpoint → at which parts, what it is given, and what answers.
_CALLS = {
    "listDownloadedModels": (("system",), None, _Client.list_downloaded),
    "version": (("system",), None, _Client.version),
    "listLoaded": (_PARTS, None, _Client.list_loaded),
    "getModelInfo": (_PARTS, _sdk_models.LlmRpcGetModelInfoParameter, _Client.model_info),
    "getLoadConfig": (_PARTS, _sdk_models.LlmRpcGetLoadConfigParameter, _Client.load_config),
    "unloadModel": (_PARTS, _sdk_models.LlmRpcUnloadModelParameter, _Client.unload),
    "countTokens": (_PARTS, _sdk_models.LlmRpcCountTokensParameter, _Client.count_tokens),
    "applyPromptTemplate": (("llm",), _sdk_models.LlmRpcApplyPromptTemplateParameter, _Client.apply_template),
}
_CHANNELS = {
    "getOrLoad": (_sdk_models.LlmChannelGetOrLoadCreationParameter, _Client.load),
    "predict": (_sdk_models.PredictionChannelRequest, _Client.predict),
}


# Where words come from, and how they are counted ----------------------------------------------------------------------


async def _scripted(reply):
    for delta in reply.deltas:
        yield delta


def _as_asked(history, settings):
    """A prediction in the form that the writers of the stand-in for Ollama take."""
    names = {"maxTokens": "num_predict", "temperature": "temperature", "topPSampling": "top_p", "topKSampling": "top_k",
             "minPSampling": "min_p", "repeatPenalty": "repeat_penalty"}  # fmt: skip
    messages = [{"role": m["role"], "content": "".join(p["text"] for p in m["content"])} for m in history["messages"]]
    options = {theirs: settings[ours] for ours, theirs in names.items() if settings.get(ours) is not None}
    if "top_k" in options:
        options["top_k"] = int(options["top_k"])
    return {"messages": messages, "options": options}


def _token(introduction):
    return f"sk-lm-{introduction.get('clientIdentifier')}:{introduction.get('clientPasskey')}"


def _text(history):
    return "".join(
        f"<{m['role']}>{''.join(part['text'] for part in m['content'])}</{m['role']}>" for m in history["messages"]
    )


def tokens_in(text):
    """Tokens of a text, as this server counts them."""
    return len(text) // 4 + 1


# How an answer can end ------------------------------------------------------------------------------------------------


async def _end_close(client, say, reply):
    return None


async def _end_hang_up(client, say, reply):
    await client.websocket.close()


async def _end_crash(client, say, reply):
    await client.websocket.close(1011, "the app has crashed")


async def _end_reset(client, say, reply):
    client.websocket.transport.abort()


async def _end_error(client, say, reply):
    return reply.error


async def _end_silence(client, say, reply):
    await asyncio.sleep(3600)


async def _end_progress(client, say, reply):
    while True:
        await say(_progress(1.0, 10, client.server.is_detailed))
        await asyncio.sleep(0.02)


async def _end_others(client, say, reply):
    while True:
        await client.send({"type": "channelSend", "channelId": 999, "message": _fragment("not for us")})
        await asyncio.sleep(0.02)


async def _end_garbage(client, say, reply):
    await client.websocket.send("<html><h1>502 Bad Gateway</h1></html>")


async def _end_list(client, say, reply):
    await client.websocket.send("[" * 50_000)


async def _end_bytes(client, say, reply):
    await client.websocket.send(b"\x00\x01")


async def _end_bad_frame(client, say, reply):
    client.websocket.transport.write(b"\xff\xff\xff\xff")  # reserved bits, RFC 6455, section 5.2
    await asyncio.sleep(3600)


async def _end_endless(client, say, reply):
    client.websocket.transport.write(b"\x81\x7f" + (1 << 40).to_bytes(8, "big"))  # the head of a text of a terabyte
    while client.websocket.state is State.OPEN:
        if client.websocket.transport.get_write_buffer_size() < 1 << 20:
            client.websocket.transport.write(b"x" * 65_536)
        await asyncio.sleep(0)


async def _end_warning(client, say, reply):
    await client.send({"type": "communicationWarning", "warning": "Received channelCreate for unknown endpoint"})
    await asyncio.sleep(3600)


_END = {
    "close": _end_close, "hang up": _end_hang_up, "crash": _end_crash, "reset": _end_reset, "error": _end_error,
    "silence": _end_silence, "progress": _end_progress, "others": _end_others, "garbage": _end_garbage,
    "list": _end_list, "bytes": _end_bytes, "bad frame": _end_bad_frame, "endless": _end_endless,
    "warning": _end_warning,
}  # fmt: skip


# What must be right about a message -----------------------------------------------------------------------------------


def _wrong(value, kind):
    """What is wrong with a value, by the package's own class; None: nothing."""
    try:
        read = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error)
    # The package passes over what it does not know; here that is a mistake of the caller.
    return None if msgspec.to_builtins(read) == value else f"unknown or empty fields in {value}"


def _wrong_settings(endpoint, parameter):
    """What is wrong with the settings of a channel; None: nothing."""
    name, known = (
        ("predictionConfigStack", _kv_config.FROM_SERVER_PREDICTION)
        if endpoint == "predict"
        else ("loadConfigStack", _kv_config.FROM_SERVER_LOAD_LLM)
    )
    keys = [setting["key"] for layer in parameter[name]["layers"] for setting in layer["config"]["fields"]]
    if unknown := set(keys) - set(known):
        return f"unknown settings {sorted(unknown)}"
    kind = _sdk_models.LlmPredictionConfig if endpoint == "predict" else _sdk_models.LlmLoadModelConfig
    return _wrong(_settings(parameter[name]), kind)


def _settings(stack):
    """The settings in a stack of layers, under the names that the package gives them."""
    settings = {}
    for layer in stack["layers"]:
        settings |= _kv_config.parse_server_config(layer["config"])
    return settings


# What the server says -------------------------------------------------------------------------------------------------


def _info(model):
    about = {
        "type": model.kind, "modelKey": model.key, "format": "gguf", "displayName": model.key, "publisher": "somebody",
        "path": model.path, "sizeBytes": model.size, "indexedModelIdentifier": model.path,
        "deviceIdentifier": model.device, "paramsString": "4B", "architecture": "qwen3",
        "maxContextLength": model.window,
    }  # fmt: skip
    if model.quantization is not None:
        about["quantization"] = {"name": model.quantization, "bits": 4}
    return about | ({"vision": False, "trainedForToolUse": True} if model.kind == "llm" else {})


def _instance_info(instance):
    return _info(instance.model) | {
        "identifier": instance.identifier, "instanceReference": instance.reference, "contextLength": instance.window,
        "ttlMs": instance.ttl_ms, "lastUsedTime": None,
    }  # fmt: skip


def _load_config(instance):
    return {"fields": [{"key": "llm.load.contextLength", "value": instance.window}]}


def _not_found(server, query):
    loaded = list(server.loaded)
    return {
        "title": f"Model not found: {query.get('identifier')}",
        "displayData": {
            "code": "generic.noModelMatchingQuery", "query": query, "loadedModelsSample": loaded,
            "totalLoadedModels": len(loaded),
        },
    }  # fmt: skip


def _fragment(text, kind="none"):
    fragment = {"content": text, "tokensCount": 1, "containsDrafted": False, "reasoningType": kind}
    return {"type": "fragment", "fragment": fragment}


def _progress(share, read, is_detailed):
    progress = {"type": "promptProcessingProgress", "progress": share}
    processed = round(share * read)
    details = {"cachedTokenCount": 0, "totalPromptTokenCount": read, "processedPromptTokenCount": processed}
    return progress | ({"details": details | {"unprocessedPromptTokenCount": read - processed}} if is_detailed else {})


def _success(instance, parameter, stats):
    return {
        "type": "success", "stats": stats, "modelInfo": _instance_info(instance),
        "loadModelConfig": _load_config(instance),
        "predictionConfig": {
            "fields": [f for layer in parameter["predictionConfigStack"]["layers"] for f in layer["config"]["fields"]]
        },
    }  # fmt: skip


# Starting it ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(models=MODELS, *, port=0, strict=True, **settings):
    """A running server, until the block ends.

    Args:
        strict: Fail at the end over a message that a real server would not have understood.
        settings: As for `Server`.
    """
    server = Server(models, **settings)
    loop = asyncio.new_event_loop()

    async def start():
        return await serve_websockets(
            server.serve_connection, "127.0.0.1", port, process_request=server.process_request, compression=None,
            ping_interval=None, close_timeout=1.0, max_size=None, logger=LOGGER,
        )  # fmt: skip

    async def close():
        listening.close()
        await listening.wait_closed()
        await asyncio.sleep(0)  # in which the aborted connections are closed

    thread = threading.Thread(target=loop.run_forever, name="lm studio stand-in", daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(start(), loop).result()
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert not (strict and server.violations), server.violations


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
