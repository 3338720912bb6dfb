"""What Ollama does with its models: fetch, remove, bring into memory, free that again; and who can reach it.

Called by the functions of the same names in `ollama.py`, which know the address. Fetching is Ollama's own affair: it
checks the digests, keeps what a cancelled pull has fetched, until it is started anew at least, and goes on there.

Source: docs/api.md and server/images.go of github.com/ollama/ollama: `/api/pull` writes a line for each step, with
`digest`, `total` and `completed` while a layer comes; only `"status": "success"` says that a model is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx

from docmind.backends import Progress
from docmind.backends.careful_http import (
    HEADERS,
    clean,
    client_settings,
    converted,
    count,
    fetch,
    plain,
    read_lines,
    read_whole,
    refuse_redirect,
    wait_for,
)
from docmind.backends.ollama import (
    CONNECT_SECONDS,
    LISTING_SECONDS,
    START,
    ask_not_found,
    is_name,
    key_header,
    loaded_windows,
    names,
    refusal,
)
from docmind.background import follow
from docmind.errors import BackendError, BackendUnavailable, ModelNotFound

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from docmind.backends.ollama_llm import OllamaLLM
    from docmind.config import Config

_IDLE_SECONDS: Final = 900.0  # between two lines; a digest of forty gigabytes takes minutes to verify
_PULL_BYTES: Final = 1 << 32  # of all lines of a pull: sixteen a second for each layer, for as long as it takes
_UNLOAD_SECONDS: Final = 3.0  # in which a model that nobody uses is gone
_AGAIN: Final = "Pull it again: it goes on where it ended."
_STEPS: Final = {"pulling manifest": "looking it up", "verifying sha256 digest": "checking"}


# Fetching and removing ------------------------------------------------------------------------------------------------


def pull(config: Config, url: str, model: str, progress: Callable[[Progress], None], stop: threading.Event) -> None:
    """Fetch a model from Ollama's library; a stop closes the connection, which ends the fetching."""
    _refuse_odd_name(model)

    async def opened() -> AsyncIterator[dict[str, Any]]:
        return _pulled(config, url, model)

    _asked(_seen(config, url), url)
    layers: dict[str, tuple[int, int]] = {}  # completed and total bytes, by digest
    for event in follow(opened, stop):
        status = clean(event.get("status"))
        if status == "success":
            return
        digest, total = clean(event.get("digest")), count(event.get("total"))
        if digest and total:
            layers[digest] = (min(count(event.get("completed")) or 0, total), total)
            done, expected = (sum(figures) for figures in zip(*layers.values(), strict=True))
            progress(Progress("downloading", done, expected))
        else:
            progress(Progress(_STEPS.get(status, "finishing" if layers else plain(status) or "looking it up")))
    if not stop.is_set():
        raise BackendError(f"The pull of {model} ended before its end.", _AGAIN, reason="no_end_marker")


async def _seen(config: Config, url: str) -> None:
    """See that the server is there: what says how to start it must not be said of Ollama's library."""
    async with _client(config, url) as client, asyncio.timeout(LISTING_SECONDS):
        await fetch(client, "GET", "/api/version")


async def _pulled(config: Config, url: str, model: str) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a pull.

    Raises:
        BackendError: It fails, by the server's own words.
    """
    async with _client(config, url) as client:
        with converted(client):
            async with client.stream("POST", "/api/pull", json={"model": model, "stream": True}) as answer:
                refuse_redirect(answer)
                if answer.status_code >= 400:
                    whole = await read_whole(answer)
                    raise _failure(model, answer.status_code, whole.decode("utf-8", "replace"), url)
                events = read_lines(answer, _PULL_BYTES)
                while True:
                    try:
                        async with asyncio.timeout(_IDLE_SECONDS):
                            event = await anext(events, None)
                    except TimeoutError as error:
                        raise BackendError(f"Ollama said nothing for {_IDLE_SECONDS:.0f} seconds.", _AGAIN,
                                           reason="stalled") from error  # fmt: skip
                    if event is None:
                        return
                    if "error" in event:
                        raise _failure(model, 200, clean(event["error"]), url)
                    yield event


def _failure(model: str, status: int, text: str, url: str) -> BackendError:
    """The error for a pull that failed, by the server's words."""
    words = text.lower()

    def says(*signs: str) -> bool:
        return any(sign in words for sign in signs)

    if says("newer version of ollama"):
        return BackendError(
            f"{model} needs a newer Ollama.", "Update Ollama: https://ollama.com/download", reason="unsupported"
        )
    if says("file does not exist", "not found", "manifest unknown", "invalid model name"):
        return ModelNotFound(f"Ollama's library has no model '{model}'.", "Its names are on https://ollama.com/library")
    if says("no space left", "not enough space", "disk quota"):
        return BackendError(
            "The disk Ollama keeps its models on is full.", f"Free some space there. {_AGAIN}", reason="disk_full"
        )
    if says("digest mismatch"):
        return BackendError(
            f"What Ollama fetched of {model} is damaged: {plain(text)}", _AGAIN, reason="wrong_checksum"
        )
    if says(
        "no such host", "dial tcp", "connection re", "i/o timeout", "tls handshake", "max retries", "unexpected eof"
    ):
        return BackendUnavailable(
            f"Ollama cannot reach its library: {plain(text)}",
            f"Check the connection of the machine Ollama runs on. {_AGAIN}",
        )
    return refusal(status, text, url)


def delete(config: Config, url: str, model: str) -> None:
    """Remove a model from the server's disk."""
    _refuse_odd_name(model)

    async def ask() -> None:
        async with _client(config, url) as client, asyncio.timeout(4 * LISTING_SECONDS):
            with converted(client):
                async with client.stream("DELETE", "/api/delete", json={"model": model}) as answer:
                    refuse_redirect(answer)
                    whole = await read_whole(answer)  # nothing, where it went well
        if answer.status_code == 404 and b"not found" in whole:
            raise await ask_not_found(config, url, model)
        if answer.status_code >= 400:
            raise refusal(answer.status_code, whole.decode("utf-8", "replace"), url)

    _asked(ask(), url)


# Memory ---------------------------------------------------------------------------------------------------------------


def load(llm: OllamaLLM, progress: Callable[[Progress], None], stop: threading.Event) -> None:
    """Bring a model into the server's memory; the server goes on with that when it is stopped."""
    if llm.keep_alive.lstrip("-").rstrip("smh") == "0":
        raise BackendError(
            "With a `keep_alive` of 0 no model stays in memory.", "Set `keep_alive` to 5m, for example.",
            reason="invalid_option",
        )  # fmt: skip

    async def opened() -> AsyncIterator[dict[str, Any]]:
        async def loaded() -> AsyncGenerator[dict[str, Any], None]:
            yield await llm._load()

        return loaded()

    progress(Progress("loading"))
    for _ in follow(opened, stop):
        pass


def unload(config: Config, url: str, model: str) -> None:
    """Free the memory a model takes; one that is answering goes when it has finished."""
    _refuse_odd_name(model)

    async def ask() -> None:
        async with _client(config, url) as client, asyncio.timeout(_UNLOAD_SECONDS + 4 * LISTING_SECONDS):
            body = {"model": model, "messages": [], "keep_alive": 0, "stream": False}
            status, answer = await fetch(client, "POST", "/api/chat", body)
            if status == 404:
                raise await ask_not_found(config, url, model)
            if status >= 400:
                raise refusal(status, str(answer.get("error")), url)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNLOAD_SECONDS):
                    while any(
                        model in names(name) for name in loaded_windows((await fetch(client, "GET", "/api/ps"))[1])
                    ):
                        await asyncio.sleep(0.1)

    _asked(ask(), url)


# Who can reach it -----------------------------------------------------------------------------------------------------


def reachable_at(url: str) -> str | None:
    """An address of this machine, not the loopback one, at which a server on this machine also listens; None: none.

    Nothing is sent anywhere: a port on which somebody listens cannot be taken once more, and letting go of it again
    takes a microsecond. A server on another machine is not looked at.
    """
    import psutil

    parts = urlsplit(url)
    own = [
        (found.family, found.address)
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family in (socket.AF_INET, socket.AF_INET6) and "%" not in found.address
    ]
    shared = [(family, address) for family, address in own if not ipaddress.ip_address(address).is_loopback]
    host = parts.hostname or ""
    if host != "localhost":
        try:
            if not ipaddress.ip_address(host).is_loopback:  # where we ask it is where others can
                return host if any(address == host for _, address in shared) else None
        except ValueError:
            return None
    return next((address for family, address in shared if _is_taken(family, address, parts.port or 80)), None)


def _is_taken(family: int, address: str, port: int) -> bool:
    """Whether somebody listens on a port of this address."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # without it Windows shares a port between programs
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            probe.bind((address, port))
    except OSError as error:
        # On Windows a port that is taken by a listener on all addresses is refused as forbidden.
        return error.errno in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE)) or (
            hasattr(socket, "SO_EXCLUSIVEADDRUSE") and error.errno in (errno.EACCES, getattr(errno, "WSAEACCES", None))
        )
    return False


# Asking ---------------------------------------------------------------------------------------------------------------


def _client(config: Config, url: str) -> httpx.AsyncClient:
    settings = client_settings(config, url, CONNECT_SECONDS, carries_text=False)
    return httpx.AsyncClient(base_url=url, headers=HEADERS | key_header(url), **settings)


def _asked(question: Coroutine[Any, Any, None], url: str) -> None:
    """Wait for the answer to a question that has a deadline."""
    try:
        wait_for(question)
    except (BackendUnavailable, TimeoutError) as absence:
        raise BackendUnavailable(str(absence) or f"{url} does not answer.", START) from absence


def _refuse_odd_name(model: str) -> None:
    if not is_name(model):
        raise BackendError(
            f"'{plain(model)}' is no name of a model.",
            "Its names look like qwen3:4b-instruct.",
            reason="invalid_option",
        )
