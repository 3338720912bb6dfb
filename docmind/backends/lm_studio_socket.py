"""The websocket to an LM Studio server: sent where it was told to, bytes counted, every failure with a remedy.

What is asked of a model is made by the `lmstudio` package (the endpoints given to `stream`); the frames around it are
few. *Why not its connection*: its client takes a proxy from the environment, also for a server on this machine; it
opens five connections where one is needed, reads messages of any length, says the same of an answer that broke off and
of one that is nonsense, may take 20 seconds to close, and loses an answer over a setting that is newer than itself.
Here one connection serves one part of the server, on the loop of its caller and without tasks of its own; leaving it
cancels what runs on it.

Source: packages/lms-communication/src/Transport.ts in https://github.com/lmstudio-ai/lmstudio-js

Knows no model and no LlamaIndex.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

import httpcore
import httpx
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import ProtocolError, generate_accept_token, generate_nonce

from docmind.backends.careful_http import (
    HEADERS,
    LISTING_BYTES,
    STREAM_BYTES,
    WRITE_SECONDS,
    bad_response,
    broken_off,
    clean,
    client_settings,
    converted,
    json_object,
    plain,
    refuse_redirect,
    unreachable,
)
from docmind.backends.lm_studio import CONNECT_SECONDS, LISTING_SECONDS, START, token_for
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelCrashed, ModelNotFound
from docmind.keys import given_out

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from lmstudio.json_api import ChannelEndpoint
    from wsproto.events import Event

    from docmind.config import Config

_READ_BYTES = 65_536
_CLOSE_SECONDS = 0.4  # to say goodbye; a stop takes less than a second in all
_GONE = (httpcore.NetworkError, httpcore.TimeoutException, httpx.HTTPError, OSError, ProtocolError)
_OURS_TO_MEND = (1002, 1003, 1007, 1009)  # close codes of RFC 6455, section 7.4.1: what came was no proper message
# What ends a channel; nothing need be cancelled after it.
_ENDS = ("success", "alreadyLoaded", "loadSuccess")

_closing: set[asyncio.Task[None]] = set()  # asyncio itself would forget them


@contextlib.asynccontextmanager
async def connected(
    config: Config, url: str, namespace: str, *, carries_text: bool = True
) -> AsyncGenerator[Connection, None]:
    """A connection to one part of the server ("llm", "system", "embedding"), until the block ends.

    Args:
        config: Where the person's decisions are kept.
        carries_text: Whether questions or passages are sent.

    Raises:
        BackendUnavailable: The server is not there (`unreachable`).
        BackendError: It wants a key (`key_rejected`), or is no LM Studio (`bad_response`).
    """
    connection = Connection(url, client_settings(config, url, CONNECT_SECONDS, carries_text=carries_text))
    try:
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                await connection.open(namespace)
        except TimeoutError as error:
            raise unreachable(url) from error
        yield connection
    except BackendUnavailable as absence:
        raise BackendUnavailable(str(absence), START) from absence
    finally:
        # As a task: a second cancellation must not keep the server from hearing of the first.
        closing = asyncio.create_task(connection.close())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        await asyncio.shield(closing)


class Connection:
    """One websocket. Made by `connected`; not for two tasks at once."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self.url = url
        self._client = httpx.AsyncClient(base_url=url, headers=HEADERS, **settings)
        self._answer: httpx.Response | None = None
        self._stream: httpcore.AsyncNetworkStream | None = None
        self._frames = Frames(ConnectionType.CLIENT)
        self._events: deque[Event] = deque()
        self._received_bytes = 0
        self._last_id = 0
        self._running: int | None = None  # the channel that a cancel would stop

    # Opening and closing

    async def open(self, namespace: str) -> None:
        """Shake hands (RFC 6455, section 4) and introduce ourselves, by the person's API token if there is one."""
        identity = _identity(self.url)
        nonce = generate_nonce()
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": nonce.decode(),
        }
        with converted(self._client):
            request = self._client.build_request("GET", f"/{namespace}", headers=headers)
            answer = self._answer = await self._client.send(request, stream=True)
        refuse_redirect(answer)
        if answer.status_code in (401, 403):
            raise _key_rejected(self.url, f"HTTP {answer.status_code}")
        accepted = answer.headers.get("sec-websocket-accept", "").encode()
        if answer.status_code != 101 or accepted != generate_accept_token(nonce):
            raise bad_response(f"No websocket is at {self.url}/{namespace} (HTTP {answer.status_code}).")
        self._stream = answer.extensions["network_stream"]
        await self._send({"authVersion": 1, **identity})
        told = await self._receive()
        if told.get("success") is not True:
            error = told.get("error")
            why = clean(error.get("title") if isinstance(error, dict) else error)
            raise _key_rejected(self.url, plain(why) or "no reason given")

    async def close(self) -> None:
        """Cancel what runs, say goodbye, and go, whatever the server does."""
        try:
            with contextlib.suppress(BackendError, *_GONE):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._say_goodbye()
        finally:  # also when the loop ends meanwhile
            for part in (self._stream, self._answer, self._client):
                if part is not None:
                    with contextlib.suppress(*_GONE):
                        async with asyncio.timeout(_CLOSE_SECONDS):
                            await part.aclose()

    async def _say_goodbye(self) -> None:
        if self._running is not None:
            await self._send({"type": "channelSend", "channelId": self._running, "message": {"type": "cancel"}})
        if self._stream is not None:
            await self._write(CloseConnection(1000))
            # Until the server has said it too: where its next message meets a closed connection, it may lose what it
            # has not read yet, the cancel among it.
            while not any(isinstance(event, CloseConnection) for event in self._events):
                self._events.clear()
                await self._read()

    # Asking

    async def call(self, endpoint: str, parameter: Mapping[str, Any] | None = None) -> Any:
        """What the server answers to one question.

        Raises:
            BackendError: It refuses, or does not know the question.
        """
        self._last_id += 1
        question = {"type": "rpcCall", "endpoint": endpoint, "callId": self._last_id}
        await self._send(question if parameter is None else {**question, "parameter": parameter})
        while True:
            message = await self._receive()
            match message:
                case {"type": "rpcResult", "callId": self._last_id}:
                    return message.get("result")
                case {"type": "rpcError", "callId": self._last_id}:
                    raise refusal(message.get("error"), self.url)
            _pass_over(message)

    async def stream(self, endpoint: ChannelEndpoint[Any, Any, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """What the server sends on a channel, until it closes it.

        Raises:
            BackendError: It refuses, or the connection breaks.
        """
        self._last_id += 1
        self._running = self._last_id  # before it is sent: a stop may come when it has gone, and before we know that
        await self._send(
            {
                "type": "channelCreate",
                "endpoint": endpoint.api_endpoint,
                "channelId": self._last_id,
                "creationParameter": endpoint.creation_params,
            }
        )
        while True:
            message = await self._receive()
            match message:
                case {"type": "channelSend", "channelId": self._last_id, "message": dict(contents)}:
                    if contents.get("type") in _ENDS:
                        self._running = None
                    yield contents
                case {"type": "channelClose", "channelId": self._last_id}:
                    self._running = None
                    return
                case {"type": "channelError", "channelId": self._last_id}:
                    self._running = None
                    raise refusal(message.get("error"), self.url)
                case {"channelId": self._last_id}:
                    raise bad_response(f"It said: {plain(json.dumps(message))}")
                case _:
                    _pass_over(message)

    # Messages

    async def _send(self, message: Mapping[str, Any]) -> None:
        await self._write(TextMessage(json.dumps(message)))

    async def _write(self, event: Event) -> None:
        assert self._stream is not None
        try:
            await self._stream.write(self._frames.send(event), timeout=WRITE_SECONDS)
        except _GONE as error:
            raise broken_off() from error

    async def _receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            BackendError: The connection ended (`no_end_marker`), or what came is no message (`bad_response`).
        """
        pieces: list[str] = []
        size = 0
        while True:
            while not self._events:
                await self._read()
            match self._events.popleft():
                case TextMessage(data=data, message_finished=is_whole):
                    size += len(data)
                    if size > LISTING_BYTES:
                        raise bad_response(f"A message is longer than {LISTING_BYTES >> 20} MiB.")
                    pieces.append(data)
                    if is_whole:
                        return json_object("".join(pieces).encode("utf-8", "replace"))
                case Ping() as ping:
                    await self._write(ping.response())
                case Pong():
                    pass
                case CloseConnection(code=code, reason=reason) if code in _OURS_TO_MEND:
                    raise bad_response(f"It said: {plain(reason or str(code))}")
                case CloseConnection():
                    raise broken_off()
                case _:
                    raise bad_response("It sent bytes where text belongs.")

    async def _read(self) -> None:
        """More of what the server sends."""
        assert self._stream is not None
        try:
            data = await self._stream.read(_READ_BYTES)
        except _GONE as error:
            raise broken_off() from error
        self._received_bytes += len(data)
        if not data:
            raise broken_off()
        if self._received_bytes > STREAM_BYTES:
            raise bad_response("It does not end.")
        try:
            self._frames.receive_data(data)
            self._events.extend(self._frames.events())
        except ProtocolError as error:
            raise bad_response(f"It sent no websocket message: {plain(str(error))}") from error


def _pass_over(message: dict[str, Any]) -> None:
    """A message for nobody: one that comes late is left alone, a complaint about ours is not.

    Raises:
        BackendError: The server did not understand us (`bad_response`); it would never answer.
    """
    if message.get("type") == "communicationWarning":
        raise BackendError(
            f"LM Studio did not understand us: {plain(clean(message.get('warning')))}",
            "Update LM Studio; 0.3.30 or newer is needed.",
            reason="bad_response",
        )


# What the server refuses ----------------------------------------------------------------------------------------------


_NOT_THERE = {"generic.noModelMatchingQuery", "generic.pathNotFound", "generic.identifierNotFound"}
_MEMORY = re.compile(
    r"out of memory|insufficient system resources|not enough (v?ram|memory)|unable to alloc|cudamalloc"
)
# "Trying to keep the first 9000 tokens when context the overflows. However, the model is loaded with context length of
# only 4096 tokens", "Context size has been exceeded": lmstudio-bug-tracker #237, #2339.
_CONTEXT = re.compile(r"context (length|size|window|the overflows|overflow)")
_TOKEN = re.compile(r"sk-lm-([A-Za-z0-9]{8}):([A-Za-z0-9]{20})")
_KEY = re.compile(r"api token|api key|unauthori[sz]ed|authenticat|permission")


def refusal(error: object, url: str) -> BackendError:
    """The error for what the server refused, by its code or its own words.

    Source: packages/lms-shared-types/src/GenericErrorDisplayData.ts in https://github.com/lmstudio-ai/lmstudio-js
    """
    told: dict[str, Any] = error if isinstance(error, dict) else {}
    parts = [clean(told.get(name)) for name in ("rootTitle", "title", "cause")]
    said = plain(" ".join(dict.fromkeys(part for part in parts if part))) or "without a reason"
    words = said.lower()
    shown = told.get("displayData")
    code = clean(shown.get("code")) if isinstance(shown, dict) else ""
    if code in _NOT_THERE:
        return ModelNotFound(f"LM Studio has no such model: {said}", "See the models there are. Run: lms ls")
    if code == "generic.specificModelUnloaded":
        return BackendError("LM Studio unloaded the model meanwhile.", "Ask again.", reason="closed")
    if code == "generic.domainMismatch":
        return BackendError(f"The model makes no text: {said}", "Choose another model.", reason="no_text_generation")
    if _MEMORY.search(words):
        return BackendError(
            f"The model does not fit the memory: {said}",
            "Choose a smaller model, lower `context_window`, or unload another model.",
            reason="out_of_memory",
        )
    if _CONTEXT.search(words):
        return ContextTooLong(
            f"The question and its evidence do not fit: {said}",
            "Ask with less text, or unload the model and raise `context_window`.",
        )
    if "crashed" in words:
        return ModelCrashed(f"The model crashed in LM Studio: {said}", "Ask again; it is loaded anew.")
    if _KEY.search(words):
        return _key_rejected(url, said)
    return BackendError(f"LM Studio failed: {said}", "Try again; its log says more. Run: lms log stream")


def _key_rejected(url: str, said: str) -> BackendError:
    is_other = (key := token_for(url)) is not None and not _TOKEN.fullmatch(key)
    form = " What is kept is none: it looks like sk-lm-, 8 letters or digits, a colon and 20 more." if is_other else ""
    return BackendError(
        f"{url} does not accept us ({said}).",
        f"Make an API token in LM Studio's server settings; keep it on the Models page, or set LM_API_TOKEN.{form}",
        reason="key_rejected",
    )


def _identity(url: str) -> dict[str, str]:
    """Who asks: the two halves of the API token for this address, else names made up for this connection.

    A key that is no such token is not sent: it may be meant for the OpenAI-compatible address of the same server.

    Source: `_create_auth_from_token` in src/lmstudio/json_api.py of https://github.com/lmstudio-ai/lmstudio-python,
    and packages/lms-shared-types/src/lmstudioAPIToken.ts of https://github.com/lmstudio-ai/lmstudio-js
    """
    halves = _TOKEN.fullmatch(token_for(url) or "")
    if halves is None:
        return {"clientIdentifier": str(uuid.uuid4()), "clientPasskey": str(uuid.uuid4())}
    return {"clientIdentifier": halves[1], "clientPasskey": given_out(halves[2])}
