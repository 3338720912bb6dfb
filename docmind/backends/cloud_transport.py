"""How a request to a cloud travels: over our own careful client, once, and to one address only.

A cloud's package is given a client of the HTTP library that it wants, whose transport is a `Transport`. So what it
would do by itself it cannot do: follow a redirect, send a request again, use a proxy, speak to another host, read a
line without end. What goes wrong becomes a `BackendError` here, whatever the package makes of it. Knows no cloud by
name.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import TYPE_CHECKING, Any

import httpx

from docmind.backends.careful_http import (
    HEADERS,
    LINE_BYTES,
    STREAM_BYTES,
    bad_response,
    broken_off,
    client_settings,
    plain,
    read_whole,
    refuse_redirect,
    unreachable,
)
from docmind.backends.clouds import CONNECT_SECONDS
from docmind.backends.places import origin
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from docmind.config import Config

# How a model's refusal of an argument is told from other refusals; the argument's name must stand beside it.
_REFUSES = re.compile(
    r"unsupported|not supported|does not support|doesn't support|not permitted|not allowed|deprecated|unrecognized"
    r"|extraneous|unknown|unexpected|extra inputs|cannot both be|only the default|cannot find field"
)
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|prompt is too long|input is too long|too many (input )?tokens"
    r"|exceeds? the (maximum|max)( allowed)?( number of)? (input )?tokens|input token count|token limit"
)
_NO_MODEL = re.compile(
    r"model_not_found|deploymentnotfound|invalid[ _]model|no such model|unknown model"
    r"|(model|deployment|models/)\S*.{0,120}(not found|does not exist|not exist|is invalid|not available|not supported)"
)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|credit balance|billing|payment")
_SOON = re.compile(r"per ?minute|retry in|retrydelay|try again in")
_FILTERED = re.compile(r"content_filter|content management policy|responsibleaipolicyviolation|safety system")
_KEY = re.compile(r"api[ _]key not valid|api_key_invalid|invalid[ _]api[ _]?key|invalid x-api-key|unauthenticated")


class ArgumentsRefused(BackendError):
    """The model takes a request only without these arguments; nothing of it was accepted."""

    default_reason = "unsupported"

    def __init__(self, message: str, names: frozenset[str]) -> None:
        super().__init__(message, "Leave it out of the profile.")
        self.names = names


class Transport:
    """The network of one call. `async with` closes it and all that was opened.

    Args:
        url: The only address, with the path under which all is.
        key: Never shown, whatever the server says.
        wire: Our names of the arguments that are sent → the provider's.

    Raises:
        ConsentMissing: The person has not allowed it.
    """

    def __init__(self, config: Config, url: str, key: str, *, label: str, model: str, wire: Mapping[str, str]) -> None:
        self.url, self.label = url, label
        self._secrets, self._model, self._wire = [key], model, wire
        settings = client_settings(config, url, CONNECT_SECONDS)
        self._transport: httpx.AsyncBaseTransport = settings["transport"]
        self._timeout: dict[str, float | None] = settings["timeout"].as_dict()
        self._is_used = False
        self.failure: BackendError | None = None  # what went wrong, before a package wrapped it

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    def hide(self, secret: str) -> None:
        """Another text that no message may show."""
        self._secrets.append(secret)

    def client(self, library: Any) -> Any:
        """A client that sends over this, for a package that wants one of `library`: `httpx`, or a fork of it."""
        transport = self

        class Stream(library.AsyncByteStream):  # type: ignore[misc]
            def __init__(self, answer: httpx.Response) -> None:
                self._answer = answer

            async def __aiter__(self) -> AsyncGenerator[bytes, None]:
                async for piece in transport.pieces(self._answer):
                    yield piece

            async def aclose(self) -> None:
                await self._answer.aclose()

        class Bridge(library.AsyncBaseTransport):  # type: ignore[misc]
            async def handle_async_request(self, request: Any) -> Any:
                answer = await transport.send(
                    request.method, str(request.url), request.headers.raw, await request.aread()
                )
                return library.Response(answer.status_code, headers=answer.headers.raw, stream=Stream(answer))

        return library.AsyncClient(transport=Bridge(), follow_redirects=False, trust_env=False, timeout=None)

    async def send(self, method: str, url: str, headers: list[tuple[bytes, bytes]], content: bytes) -> httpx.Response:
        """The answer of the service, its body not read yet.

        Raises:
            BackendError: The service is not there, refuses, points elsewhere, or was asked before.
        """
        try:
            return await self._send(method, url, headers, content)
        except BackendError as error:
            self.failure = self.failure or error
            raise

    async def _send(self, method: str, url: str, headers: list[tuple[bytes, bytes]], content: bytes) -> httpx.Response:
        if origin(url) != origin(self.url):
            raise BackendError(
                f"{plain(origin(url))} was to be asked instead of {origin(self.url)}; nothing was sent there.",
                "Give the address of the service itself as `url`.",
                reason="address_refused",
            )
        if self._is_used:  # what may have been accepted is never sent twice
            raise self.failure or BackendError(f"{self.label} was asked once already.", "Ask again.")
        self._is_used = True
        own = {b"accept-encoding", b"connection"}
        kept = [(name, value) for name, value in headers if name.lower() not in own]
        request = httpx.Request(
            method, url, headers=[*kept, *((n.encode(), v.encode()) for n, v in HEADERS.items())], content=content,
            extensions={"timeout": self._timeout},
        )  # fmt: skip
        try:
            answer = await self._transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise not_there(self.url, self.label) from error
        except (httpx.TimeoutException, httpx.TransportError) as error:
            raise self._broken(error) from error
        answer.request = request
        kind = answer.headers.get("content-type", "")
        is_strange = answer.headers.get("content-encoding", "identity") != "identity" or kind.startswith("text/html")
        try:
            refuse_redirect(answer)
            if answer.status_code < 300 and not is_strange:
                return answer
            text = (await read_whole(answer)).decode("utf-8", "replace")
        except httpx.TransportError as error:
            raise self._broken(error) from error
        finally:
            if answer.status_code >= 300 or is_strange:
                await answer.aclose()
        if answer.status_code < 300:
            raise bad_response(f"It said: {plain(self.without_secrets(text))}")
        if refused := self._refused(answer.status_code, text):
            said = plain(self.without_secrets(text))
            raise ArgumentsRefused(f"{self.label} refuses {', '.join(sorted(refused))}: {said}", refused)
        raise refusal(
            answer.status_code, _said(self.without_secrets(text)), answer.headers, label=self.label, url=self.url,
            model=self._model,
        )  # fmt: skip

    def without_secrets(self, text: str) -> str:
        """Words of the service that may be shown."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    async def pieces(self, answer: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The bytes of an answer as they come.

        Raises:
            BackendError: The connection breaks (`no_end_marker`), or a line or the whole is too long (`bad_response`).
        """
        total = line = 0
        is_lines = not answer.headers.get("content-type", "").startswith("application/vnd.")
        try:
            async for piece in answer.stream:  # type: ignore[union-attr]
                total += len(piece)
                end = piece.rfind(b"\n")
                line = line + len(piece) if end < 0 else len(piece) - end
                if total > STREAM_BYTES or (is_lines and line > LINE_BYTES):
                    raise bad_response("A line of the answer does not end.")
                yield piece
        except httpx.TransportError as error:
            self.failure = broken_off()
            raise self.failure from error
        except BackendError as error:
            self.failure = error
            raise

    def _refused(self, status: int, text: str) -> frozenset[str]:
        """The arguments that the model does not take, by the words of the service."""
        words = text.lower()[:4000]
        if status not in (400, 422) or not _REFUSES.search(words):
            return frozenset()
        words = re.split(r"use '|did you mean", words)[0]  # what to use instead is not what is refused
        return frozenset(
            ours for ours, theirs in self._wire.items() if re.search(rf"\b{re.escape(theirs.lower())}\b", words)
        )

    def _broken(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(
            f"The connection to {self.label} broke ({type(error).__name__}).",
            "Ask again; whether the question was answered and paid for is not known.",
        )


def http_library(client: type) -> Any:
    """The HTTP library that a package's own client is made with: httpx, or since 2026 a fork of it."""
    name = next(base.__module__ for base in client.__mro__ if base.__name__ == "AsyncClient")
    return importlib.import_module(name.partition(".")[0])


def not_there(url: str, label: str) -> BackendUnavailable:
    """The error for a service that does not answer."""
    return BackendUnavailable(str(unreachable(url)), f"See whether this machine is online, and whether {label} is up.")


def _said(text: str) -> dict[str, Any]:
    """What a refusal says, as an object."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {"error": text}
    said = said[0] if isinstance(said, list) and said else said
    return said if isinstance(said, dict) else {"error": text}


def refusal(
    status: int, answer: Mapping[str, Any], headers: Mapping[str, str], *, label: str, url: str, model: str = ""
) -> BackendError:
    """The error for what a service refused, by its status and its own words.

    Args:
        status: Of the answer; 0 for an error in the middle of a stream.
        answer: Its object, without secrets.
        headers: Its own, for `Retry-After`.
    """
    inner = answer.get("error")
    message = inner.get("message") if isinstance(inner, dict) else answer.get("message", answer.get("Message", inner))
    if not isinstance(message, str):
        message = json.dumps(answer, default=str) if answer else ""
    words = (json.dumps(answer, default=str) + " " + headers.get("x-amzn-errortype", "")).lower()[:4000]
    said = plain(message) or f"HTTP {status}"
    if status in (401, 403) or _KEY.search(words):
        return BackendError(
            f"{label} refuses us (HTTP {status}).",
            f"Give a valid key that may use this model, in the environment or by: docmind keys keep {origin(url)}",
            reason="key_rejected",
        )
    is_too_often = status == 429 or "throttl" in words or "rate_limit" in words
    is_soon = "retry-after" in headers or _SOON.search(words)
    if status == 402 or (_QUOTA.search(words) and status in (0, 400, 429) and not is_soon):
        return BackendError(
            f"The account at {label} has nothing left: {said}", "See its limits and its billing at the provider.",
            reason="quota_exceeded",
        )  # fmt: skip
    if is_too_often:
        after = plain(headers.get("retry-after", ""))[:40]
        wait = f"Ask again in {after} seconds." if after.isdigit() else f"Ask again after {after}." if after else ""
        return BackendError(f"{label} is asked too often: {said}", wait or "Wait a moment.", reason="rate_limited")
    if _FILTERED.search(words):
        return BackendError(f"{label} refuses the question: {said}", "Ask in other words.", reason="filtered")
    if _TOO_LONG.search(words) or status == 413:
        return ContextTooLong(f"The question and its evidence do not fit: {said}", "Ask with less text.")
    if status == 404 or (status in (0, 400) and _NO_MODEL.search(words)):
        if "<html" in words:
            return bad_response(f"It said: {said}")
        return ModelNotFound(
            f"{label} does not have {model or 'the model'}: {said}", "`docmind backends` lists what it has."
        )
    if status >= 500 or status == 0:
        return BackendError(f"{label} failed: {said}", "Ask again in a moment.", reason="server_failed")
    return BackendError(f"{label} refused: {said}", "Leave out what it names, or choose another model.")
