"""Talking to a model server without trusting it: bytes are counted, nothing is followed, every failure has a remedy.

What a backend's HTTP client is made with (`client_settings`), and how its answers are read: a listing whole
(`fetch`), a stream line by line (`read_lines`), each up to a limit. Foreign exceptions become `BackendError` here and
nowhere else. Knows no backend by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from docmind.background import event_loop, is_on_the_event_loop
from docmind.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Coroutine, Iterator

_T = TypeVar("_T")

LISTING_BYTES = 8 << 20  # of one answer that is read whole
LINE_BYTES = 1 << 20  # of one line of a stream; a line carries a few words
STREAM_BYTES = 64 << 20  # of a whole stream: far more than any window of tokens
WRITE_SECONDS = 30.0
HEADERS = {"Accept-Encoding": "identity"}
_SHOWN_CHARACTERS = 300  # of a server's own words in a message


def client_settings(url: str, connect_seconds: float) -> dict[str, Any]:
    """Arguments for an `httpx.AsyncClient` that speaks to one server only.

    No redirects: a 307 would send the whole prompt to another host. Nothing from the environment: with HTTP_PROXY set
    the prompt would go to the proxy, also for a server on this machine. No compression: a few bytes could become
    gigabytes. No timeout for reading: the callers have deadlines, on tokens and not on bytes.

    Args:
        url: With scheme and host, "http://127.0.0.1:8080".
        connect_seconds: The longest wait for a connection.

    Raises:
        BackendError: The address is none (`invalid_option`).
    """
    invalid = BackendError(
        f"'{plain(url)}' is no address.", "Write it as http://127.0.0.1:8080.", reason="invalid_option"
    )
    try:
        parts = httpx.URL(url)
        host, port = parts.host, parts.port  # the host is decoded only when it is looked at
    except (httpx.InvalidURL, UnicodeError) as error:
        raise invalid from error
    # The client itself finds these out when it connects, by errors that nobody expects there.
    if parts.scheme not in ("http", "https") or not host or not (port is None or 0 < port < 65_536):
        raise invalid
    return {
        "follow_redirects": False,
        "trust_env": False,
        "timeout": httpx.Timeout(None, connect=connect_seconds, write=WRITE_SECONDS),
        # For plain http no TLS is set up, which would take longer than the request.
        "verify": _tls() if parts.scheme == "https" else False,
    }


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


async def fetch(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and JSON object of an answer; for a status from 400 on `{"error": the text}` where it is no such object.

    Raises:
        BackendError: It is a redirect, too long, or no JSON object (`bad_response`).
        BackendUnavailable: The server is not there, or the connection broke.
    """
    with converted(client):
        async with client.stream(method, path, json=body) as answer:
            refuse_redirect(answer)
            whole = await read_whole(answer)
    if answer.status_code < 400:
        return answer.status_code, _object(whole)
    with contextlib.suppress(BackendError):
        return answer.status_code, _object(whole)
    return answer.status_code, {"error": whole.decode("utf-8", "replace")}


async def read_whole(answer: httpx.Response) -> bytes:
    """The body, up to `LISTING_BYTES`.

    Raises:
        BackendError: It is longer (`bad_response`).
    """
    whole = bytearray()
    async for piece in answer.aiter_raw():
        whole += piece
        if len(whole) > LISTING_BYTES:
            raise bad_response(f"The answer is longer than {LISTING_BYTES >> 20} MiB.")
    return bytes(whole)


async def read_lines(
    answer: httpx.Response, most_bytes: int = STREAM_BYTES
) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON object on each line; empty lines, which only keep a connection open, are left out.

    Args:
        most_bytes: Of all lines together.

    Raises:
        BackendError: A line is too long or no JSON object (`bad_response`), or the stream ends within one
            (`no_end_marker`).
    """
    rest = bytearray()
    total = 0
    async for piece in _pieces(answer):
        total += len(piece)
        begin = 0
        while (end := piece.find(b"\n", begin)) >= 0:
            line = bytes(rest) + piece[begin:end]
            rest.clear()
            begin = end + 1
            if line.strip():
                yield _object(line)
        rest += piece[begin:]
        if len(rest) > LINE_BYTES or total > most_bytes:
            raise bad_response("A line of the answer does not end.")
    if rest.strip():
        yield _last_object(bytes(rest))


async def _pieces(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The bytes as they come, until the server is done or gone."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TransportError as error:
        raise _broken_off() from error


def _last_object(text: bytes) -> dict[str, Any]:
    """What stands after the last newline: whole, or cut short."""
    try:
        return _object(text)
    except BackendError as error:
        if text.lstrip().startswith(b"{"):
            raise _broken_off() from error
        raise


def _broken_off() -> BackendError:
    return BackendError(
        "The connection broke in the middle of the answer.", "See whether the server still runs, then ask again.",
        reason="no_end_marker",
    )  # fmt: skip


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object that a text is."""
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: ten thousand brackets in each other
        raise bad_response(f"It said: {plain(text.decode('utf-8', 'replace'))}") from error
    if not isinstance(value, dict):
        raise bad_response(f"It said: {plain(text.decode('utf-8', 'replace'))}")
    return value


def bad_response(detail: str) -> BackendError:
    """The error for an answer that is none."""
    return BackendError(
        f"The server answered with something that is no model's answer. {detail}",
        "Check the address and what listens there; a proxy in between may have answered.",
        reason="bad_response",
    )


def refuse_redirect(answer: httpx.Response) -> None:
    """Refuse to go where the server points.

    Raises:
        BackendError: The answer is a redirect; its message names the other host.
    """
    if 300 <= answer.status_code < 400:
        target = plain(answer.headers.get("location", "nowhere"))
        raise BackendError(
            f"{answer.request.url.host} sends us on to {target}; nothing was sent there.",
            "If that is where your models are, give its address as `url`.",
            reason="bad_response",
        )


@contextlib.contextmanager
def converted(client: httpx.AsyncClient) -> Iterator[None]:
    """Turns what the HTTP client raises into errors with a remedy."""
    url = str(client.base_url).rstrip("/")
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise unreachable(url) from error
    except (httpx.TimeoutException, httpx.TransportError, httpx.InvalidURL) as error:
        raise BackendUnavailable(
            f"The connection to {url} broke ({type(error).__name__}).", "See whether the server still runs, then retry."
        ) from error


def unreachable(url: str) -> BackendUnavailable:
    """The error for a server that is not there; a backend adds how to start it."""
    return BackendUnavailable(f"Nothing answers at {url}.", "Start the server, or choose another backend.")


def plain(text: str) -> str:
    """A server's words for a message: one line, printable, not endless."""
    line = " ".join(text[: 4 * _SHOWN_CHARACTERS].split())
    return "".join(character for character in line if character.isprintable())[:_SHOWN_CHARACTERS]


def clean(value: object) -> str:
    """A piece of text from a server: what is no text is none, and half a surrogate pair cannot be stored."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def count(value: object) -> int | None:
    """A number from a server, if it is one that counts something."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def wait_for(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine returns, for synchronous code such as `detect`; it runs on the one event loop.

    It must have a deadline of its own (`asyncio.timeout`): this waits as long as it does.

    Raises:
        RuntimeError: Called on the event loop itself, which would wait for itself.
    """
    if is_on_the_event_loop():
        coroutine.close()
        raise RuntimeError("on the event loop, this would wait for itself")
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop()).result()
