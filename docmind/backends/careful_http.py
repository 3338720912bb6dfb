"""Talking to a model server without trusting it: bytes are counted, nothing is followed, every failure has a remedy.

What a backend's HTTP client is made with (`client_settings`), and how its answers are read: a listing whole
(`fetch`), a stream line by line (`read_lines`) or event by event (`read_events`), each up to a limit. Foreign
exceptions become `BackendError` here and nowhere else. Knows no backend by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore
import httpx

from docmind.backends.places import PLACES, Place, checked_place, place_of, real_address
from docmind.background import event_loop, is_on_the_event_loop
from docmind.errors import BackendError, BackendUnavailable
from docmind.keys import without_keys

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator

    from docmind.config import Config

_T = TypeVar("_T")

LISTING_BYTES = 8 << 20  # of one answer that is read whole
LINE_BYTES = 1 << 20  # of one line of a stream; a line carries a few words
STREAM_BYTES = 64 << 20  # of a whole stream: far more than any window of tokens
WRITE_SECONDS = 30.0
HEADERS = {"Accept-Encoding": "identity"}
_EVENT_FIELDS = (b"", b"event", b"id", b"retry")  # "" is that of an empty line and of a comment
_SHOWN_CHARACTERS = 300  # of a server's own words in a message


def client_settings(
    config: Config, url: str, connect_seconds: float, *, carries_text: bool = True
) -> dict[str, Any]:
    """Arguments for an `httpx.AsyncClient` that speaks to one server only. Make a client for each call.

    No redirects: a 307 would send the whole prompt to another host. Nothing from the environment: with HTTP_PROXY set
    the prompt would go to the proxy, also for a server on this machine. No compression: a few bytes could become
    gigabytes. No hidden retries. No timeout for reading: the callers have deadlines, on tokens and not on bytes.
    Connections lead where the person allowed and no farther, whatever a name resolves to (`_Network`).

    Args:
        config: Where the person's decisions are kept.
        url: With scheme and host, "http://127.0.0.1:8080".
        connect_seconds: The longest wait for a connection.
        carries_text: Whether questions or passages are sent; False for a listing of models.

    Raises:
        BackendError: The address is none (`invalid_option`).
        ConsentMissing: The person has not allowed it.
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
    place = checked_place(config, url, carries_text=carries_text)
    return {
        "follow_redirects": False,
        "trust_env": False,
        "timeout": httpx.Timeout(None, connect=connect_seconds, write=WRITE_SECONDS),
        # For plain http no TLS is set up, which would take longer than the request.
        "transport": _Transport(
            place,
            _tls() if parts.scheme == "https" else None,
            lambda: checked_place(config, url, carries_text=carries_text),
        ),
    }


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own transport over a pool whose connections are looked at. httpx has no argument for that (0.28).

    Args:
        check: Asked before each request: what the person decided may have changed since the client was made.
    """

    def __init__(self, place: Place, tls: ssl.SSLContext | None, check: Callable[[], object]) -> None:
        super().__init__(verify=False, trust_env=False)  # a pool without connections; it is replaced
        self._check = check
        self._pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=_Network(place))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, if that is allowed now."""
        self._check()
        return await super().handle_async_request(request)


class _Network(httpcore.AsyncNetworkBackend):
    """Opens connections to addresses no farther away than `place`.

    The name is resolved here and the address that was looked at is the one connected to: a name that resolves
    differently the next time leads nowhere else. TLS still proves the name.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of a host that answers."""
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} was not resolved") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in dict.fromkeys(str(entry[4][0]) for entry in found):
            refuse_far(host, address, self._place)
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """For retries, which we do not make."""
        await self._backend.sleep(seconds)


def refuse_far(host: str, address: str, place: Place) -> None:
    """Refuse an address that is farther away than its host's name says, or that no model is behind.

    Link-local addresses are those of a cloud's own services, which give away the machine's keys.

    Raises:
        BackendError: It is refused (`address_refused`).
    """
    ip = real_address(address)
    is_nobody = ip.is_link_local or ip.is_multicast or ip.is_unspecified
    if is_nobody or PLACES.index(place_of(str(ip))) > PLACES.index(place):
        raise BackendError(
            f"{host} leads to {ip}, which is not on {place}; nothing was sent there.",
            "Give the address of the server itself as `url`.",
            reason="address_refused",
        )


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
    answer, whole = await fetch_whole(client, method, path, body)
    if answer.status_code < 400:
        return answer.status_code, json_object(whole)
    with contextlib.suppress(BackendError):
        return answer.status_code, json_object(whole)
    return answer.status_code, {"error": whole.decode("utf-8", "replace")}


async def fetch_whole(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[httpx.Response, bytes]:
    """An answer, for its status and headers, and its body, which `json_value` reads.

    Raises:
        BackendError: It is a redirect or too long (`bad_response`).
        BackendUnavailable: The server is not there, or the connection broke.
    """
    with converted(client):
        async with client.stream(method, path, json=body) as answer:
            refuse_redirect(answer)
            return answer, await read_whole(answer)


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
    async for line, is_ended in _lines(answer, most_bytes):
        if line.strip():
            yield json_object(line) if is_ended else _last_object(line)


async def read_events(answer: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON object of each server-sent event, until `[DONE]` or the end of the stream, whichever is first.

    Neither of the two says that anything was completed. Comments, which only keep a connection open, and all fields
    but `data` are left out. An error that a server sends instead of a stream is its only event.
    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

    Raises:
        BackendError: An event is too long or no JSON object, or a line is none of an event stream (`bad_response`), or
            the stream ends within an event (`no_end_marker`).
    """
    if answer.headers.get("content-type", "").startswith("application/json"):
        yield json_object(await read_whole(answer))
        return
    data = bytearray()
    async for line, is_ended in _lines(answer):
        line = line.removesuffix(b"\r")
        name, _, value = line.partition(b":")
        if name == b"data":
            data += value.removeprefix(b" ") + b"\n"
            if len(data) > LINE_BYTES:
                raise bad_response("An event of the answer does not end.")
        elif line.lstrip().startswith(b"{"):
            yield json_object(line) if is_ended else _last_object(line)
        elif name not in _EVENT_FIELDS:
            if is_ended or line.lstrip().startswith(b"<"):
                raise bad_response(f"It said: {plain(line.decode('utf-8', 'replace'))}")
            raise broken_off()
        if not line and (text := bytes(data).strip()):
            data.clear()
            if text == b"[DONE]":
                return
            yield json_object(text)
    if (text := bytes(data).strip()) not in (b"", b"[DONE]"):  # the empty line after the last event is often forgotten
        yield _last_object(text)


async def _lines(
    answer: httpx.Response, most_bytes: int = STREAM_BYTES
) -> AsyncGenerator[tuple[bytes, bool], None]:
    """Each line, and whether its newline has come: not after the last one.

    Raises:
        BackendError: A line or the whole is too long (`bad_response`), or the connection breaks (`no_end_marker`).
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
            yield line, True
        rest += piece[begin:]
        if len(rest) > LINE_BYTES or total > most_bytes:
            raise bad_response("A line of the answer does not end.")
    if rest:
        yield bytes(rest), False


async def _pieces(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The bytes as they come, until the server is done or gone."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TransportError as error:
        raise broken_off() from error


def _last_object(text: bytes) -> dict[str, Any]:
    """What stands after the last newline: whole, or cut short."""
    try:
        return json_object(text)
    except BackendError as error:
        if text.lstrip().startswith(b"{"):
            raise broken_off() from error
        raise


def broken_off() -> BackendError:
    """The error for an answer whose connection ended before it did."""
    return BackendError(
        "The connection broke in the middle of the answer.", "See whether the server still runs, then ask again.",
        reason="no_end_marker",
    )  # fmt: skip


def json_value(text: bytes) -> Any:
    """The JSON that a text is.

    Raises:
        BackendError: It is none (`bad_response`).
    """
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: ten thousand brackets in each other
        raise bad_response(f"It said: {plain(text.decode('utf-8', 'replace'))}") from error


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object that a text is."""
    value = json_value(text)
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
    """A server's words for a message: one line, printable, not endless, and without the key it was sent."""
    line = " ".join(without_keys(text)[: 4 * _SHOWN_CHARACTERS].split())
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
