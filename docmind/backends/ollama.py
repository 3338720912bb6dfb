"""The Ollama backend: models that an Ollama server runs, on this machine or another.

This file finds the server and its models and speaks neither LlamaIndex nor Ollama's Python client: it is imported to
draw a list. `ollama_llm.py` is the model itself.

*Limitations*

- Text in, text out: no images, no function calling; messages of a tool are given to the model as the person's.
- The address comes from the option `url` or from OLLAMA_HOST; a server on another machine gets the questions and the
  passages in plain text unless the address begins with https.
- Models that Ollama itself passes on to ollama.com ("cloud" models) are refused unless the option `allow_cloud` is set.
- No grammars: Ollama has none for its callers.
- Tokens are estimated before sending, Ollama has no call that counts; see `ollama_llm.OllamaLLM`.
- Another model or another `context_window` makes Ollama load anew; how many stay in memory is the server's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from docmind.backends import (
    DEADLINES,
    EMBEDDING_OPTIONS,
    NOT_WRITING,
    Detection,
    ModelInfo,
    Option,
    checked_options,
)
from docmind.backends.places import checked_place, origin, server_address, where_text_goes
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelNotFound
from docmind.keys import find_key

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    import httpx
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM

    from docmind.backends import Progress
    from docmind.config import Config

LABEL = "Ollama"
INSTALL = 'pip install "ollama>=0.6.3,<0.7"'
# Small, answers in many languages, and does not think: plain qwen3:4b does whatever one says (ollama #12438).
PULL = "ollama pull qwen3:4b-instruct"
START = f"Start Ollama, or install it from https://ollama.com/download, then run: {PULL}"

OPTIONS: tuple[Option, ...] = (
    Option("url", str, None, "address", "Where Ollama listens; by default what OLLAMA_HOST says, else "
           "http://127.0.0.1:11434."),
    Option("context_window", int, None, "tokens", "What the model can read and write in one call; by default what it "
           "was trained for, at most 8,192. More takes more memory.", 256, 1 << 20),
    Option("keep_alive", str, "5m", "duration", "How long Ollama keeps the model in memory after an answer: 30s, 5m, "
           "2h, 0 for not at all, -1 for ever."),
    Option("gpu_layers", int, None, "layers", "Layers kept on the GPU; by default as many as Ollama finds room for.",
           0, 1000),
    Option("allow_cloud", bool, False, "", "Also use models that Ollama passes on to ollama.com: questions and "
           "passages then leave this machine."),
    Option("max_tokens", int, 512, "tokens", "The longest answer, a thinking model's thoughts included.", 1, 1 << 20,
           per_call=True),
    Option("thinking", str, "off", "", "Whether a thinking model thinks before it answers, or how much; its thoughts "
           "use up `max_tokens`. Some models think whatever one says.", per_call=True,
           choices=("off", "on", "low", "medium", "high")),
    Option("temperature", float, 0.1, "", "0 always takes the likeliest word; higher is more varied.", 0, 5,
           per_call=True),
    Option("top_p", float, None, "", "Words are taken from the likeliest that together reach this share; by default "
           "as the model's maker says.", 0, 1, per_call=True),
    Option("top_k", int, None, "words", "Words are taken from so many of the likeliest; by default as the model's "
           "maker says.", 0, 1 << 20, per_call=True),
    Option("min_p", float, None, "", "Words less likely than this share of the likeliest are left out; by default as "
           "the model's maker says.", 0, 1, per_call=True),
    Option("repeat_penalty", float, 1.0, "", "Above 1 the model repeats itself less, and quotes less exactly.", 0.1, 5,
           per_call=True),
    Option("seed", int, None, "", "The same number repeats an answer, but for rounding; by default a new one.", 0,
           (1 << 31) - 1, per_call=True),
    Option("stop", list, None, "texts", "The answer ends in front of any of these.", per_call=True),
    *DEADLINES,
)  # fmt: skip

CALL_OPTIONS = tuple(option for option in OPTIONS if option.per_call)

USUAL_PORT = 11434
CLOUD = "https://ollama.com"  # where models run that Ollama passes on
DEFAULT_WINDOW = 8192  # tokens; more is a choice, for its memory
UNKNOWN_WINDOW = 4096  # tokens, for a model that does not say
CONNECT_SECONDS = 0.8  # a server that is there accepts in milliseconds, also across a house
LISTING_SECONDS = 5.0  # for everything that is asked before a first call
# Older ones give away what is in their memory to anyone who can reach them (CVE-2026-7482).
OLDEST_VERSION = (0, 17, 1)
_SHOWN_AT_ONCE = 16  # requests about single models beside each other
_NAME = re.compile(r"[\w.\-:/@+]{1,200}")
_DURATION = re.compile(r"-?\d+(\.\d+)?(ns|us|ms|s|m|h)?([\d.]+(ns|us|ms|s|m|h))*")


# Where it is ----------------------------------------------------------------------------------------------------------


def address(given: str | None = None) -> str:
    """The server's address: what was given, else OLLAMA_HOST as Ollama reads it, else the usual one.

    Source: envconfig.Host in https://github.com/ollama/ollama/blob/main/envconfig/config.go

    Raises:
        BackendError: It is no address (`invalid_option`).
    """
    return server_address(given or os.environ.get("OLLAMA_HOST") or "", USUAL_PORT)


# What is there --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says about itself."""

    version: str | None
    models: tuple[ModelInfo, ...]
    loaded_windows: dict[str, int | None]  # of the models in memory, in tokens


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether the server is there, with its models. Loads no client library; never raises for an absence."""
    url = (options or {}).get("url")
    try:
        url = address(url)
        listing = _listing(config, url)
    except BackendError as absence:
        where = url or os.environ.get("OLLAMA_HOST")  # also what is no address: people are told where text would go
        return Detection("ollama", LABEL, False, absence.reason, absence.hint, where, None, ())
    warnings = [_outdated(listing.version), _exposed(url)]
    reason, hint = None, " ".join(filter(None, warnings)) or None
    if importlib.util.find_spec("ollama") is None:
        reason, hint = "not_installed", f"Run: {INSTALL}"
    elif not any(model.reason is None for model in listing.models):
        reason, hint = "no_model", f"Run: {PULL}"
    return Detection("ollama", LABEL, reason is None, reason, hint, url, listing.version, listing.models)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models of the server, by name; none when it is not there.

    One that cannot answer is listed with its `reason`: `no_text_generation`, or `cloud_model`.
    """
    return detect(config, options).models


def how_to_get(config: Config, model: str) -> str:
    """How to get a model that is not there."""
    return f"Run: ollama pull {model}"


def _outdated(version: str | None) -> str | None:
    """A warning about a server that is too old, or None."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    if found is None or tuple(map(int, found.groups())) >= OLDEST_VERSION:
        return None
    oldest = ".".join(map(str, OLDEST_VERSION))
    return f"Ollama {version} has a known security fault: update it to {oldest} or newer, https://ollama.com/download"


def _exposed(url: str) -> str | None:
    """A warning about a server on this machine that others can reach, or None."""
    from docmind.backends.ollama_models import reachable_at

    address = reachable_at(url)
    if address is None:
        return None
    return (
        f"Others in your network can use this Ollama too (at {address}), it has no password: unless you want that, "
        "remove OLLAMA_HOST where Ollama is started, or set it to 127.0.0.1, and start Ollama again."
    )


def _listing(config: Config, url: str, only: str | None = None) -> Listing:
    """What the server says, within a few seconds.

    Args:
        only: The one model that is asked about in detail; None: all of them.

    Raises:
        BackendError: It is not there, or does not answer as Ollama does.
    """
    from docmind.backends.careful_http import unreachable, wait_for

    key_header(url)  # here and not on the loop: a keyring may wait for the person, and is asked once

    async def ask() -> Listing:
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                return await _ask_listing(config, url, only)
        except TimeoutError as error:
            raise unreachable(url) from error

    try:
        return wait_for(ask())
    except BackendUnavailable as absence:
        raise BackendUnavailable(str(absence), START) from absence


async def _ask_listing(config: Config, url: str, only: str | None) -> Listing:
    """Version, models and what is in memory, beside each other; then each model's window."""
    import httpx

    from docmind.backends.careful_http import HEADERS, clean, client_settings

    settings = client_settings(config, url, CONNECT_SECONDS, carries_text=False)
    async with httpx.AsyncClient(base_url=url, headers=HEADERS | key_header(url), **settings) as client:
        told, tags, running = await asyncio.gather(
            _get(client, "/api/version"), _get(client, "/api/tags"), _get(client, "/api/ps")
        )
        loaded = loaded_windows(running)
        memory = _memory(running)
        found = [info for entry in _entries(tags) if (info := _info(entry, loaded, memory)) is not None]
        at_once = asyncio.Semaphore(_SHOWN_AT_ONCE)
        detailed = await asyncio.gather(
            *(_detailed(client, at_once, info) if only in (None, *names(info.name)) else _same(info) for info in found)
        )
    version = clean(told.get("version"))[:40]
    return Listing(version or None, tuple(sorted(detailed, key=lambda info: info.name)), loaded)


def loaded_windows(running: dict[str, Any]) -> dict[str, int | None]:
    """The models that /api/ps lists, with the window each was loaded with."""
    from docmind.backends.careful_http import clean, count

    return {
        clean(entry.get("model") or entry.get("name")): count(entry.get("context_length"))
        for entry in _entries(running)
    }


def _memory(running: dict[str, Any]) -> dict[str, tuple[int | None, int | None]]:
    """What each of the models that /api/ps lists takes, in bytes: in all, and of it on graphics cards."""
    from docmind.backends.careful_http import clean, count

    return {
        clean(entry.get("model") or entry.get("name")): (count(entry.get("size")), count(entry.get("size_vram")))
        for entry in _entries(running)
    }


def _entries(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a listing that are any."""
    entries = answer.get("models")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _info(
    entry: dict[str, Any], loaded: Mapping[str, int | None], memory: Mapping[str, tuple[int | None, int | None]]
) -> ModelInfo | None:
    """A model as /api/tags lists it; None for a name that no model has."""
    from docmind.backends.careful_http import clean, count, plain

    name = clean(entry.get("model") or entry.get("name"))
    if not _NAME.fullmatch(name):
        return None
    details = entry.get("details")
    quantization = plain(clean(details.get("quantization_level")))[:20] if isinstance(details, dict) else ""
    is_remote = bool(entry.get("remote_host") or entry.get("remote_model"))
    remote_url = (clean(entry.get("remote_host")) or CLOUD)[:200] if is_remote else None
    in_all, on_gpu = memory.get(name, (None, None))
    return ModelInfo(
        name, None, count(entry.get("size")), quantization or None, name in loaded, memory_bytes=in_all,
        gpu_bytes=on_gpu, reason="cloud_model" if is_remote else None, remote_url=remote_url,
    )  # fmt: skip


async def _detailed(client: httpx.AsyncClient, at_once: asyncio.Semaphore, info: ModelInfo) -> ModelInfo:
    """The same with its window, and whether it writes; as it was where the server does not say."""
    from docmind.backends.careful_http import clean, count

    shown: dict[str, Any] = {}
    with contextlib.suppress(BackendError):  # of one odd model; the others are still listed
        async with at_once:
            shown = await _get(client, "/api/show", {"model": info.name})
    about = shown.get("model_info")
    about = about if isinstance(about, dict) else {}
    architecture = clean(about.get("general.architecture"))
    abilities = shown.get("capabilities")
    is_writing = "completion" in abilities if isinstance(abilities, list) else architecture not in NOT_WRITING
    return replace(
        info,
        context_window=count(about.get(f"{architecture}.context_length")) or None,
        reason=info.reason if is_writing else "no_text_generation",
    )


async def _same(info: ModelInfo) -> ModelInfo:
    return info


async def _get(client: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the server answers; a body makes it a POST.

    Raises:
        BackendError: It does not answer, or not as Ollama does.
    """
    from docmind.backends.careful_http import fetch

    status, answer = await fetch(client, "GET" if body is None else "POST", path, body)
    if status >= 400:
        raise refusal(status, str(answer.get("error")), str(client.base_url))
    return answer


def is_name(text: str) -> bool:
    """Whether a model can be called so."""
    return _NAME.fullmatch(text) is not None


def names(name: str) -> tuple[str, str]:
    """The names one model goes by: "qwen3" is "qwen3:latest"."""
    return name, name.removesuffix(":latest")


def key_header(url: str) -> dict[str, str]:
    """The key that was given for this address, else OLLAMA_API_KEY for ollama.com and the address in OLLAMA_HOST.

    Ollama's own client sends it to any address; over http it could be read on the way, a server on this machine needs
    none, and the address in a profile may be somebody else's.
    """
    is_meant = False
    if where_text_goes(url)[0] != "this device":
        with contextlib.suppress(BackendError, ValueError):
            is_meant = origin(url) in (origin(CLOUD), origin(address()))
    key = find_key(url, ("OLLAMA_API_KEY",) if is_meant else ())
    return {"Authorization": f"Bearer {key}"} if key else {}


def refusal(status: int, text: str, url: str) -> BackendError:
    """The error for what the server refused, by its status and its own words."""
    from docmind.backends.careful_http import plain

    said, words = plain(text), text.lower()
    if status in (401, 403):
        return BackendError(
            f"{url} refuses us (HTTP {status}).",
            f"Give the right key: set OLLAMA_API_KEY (sent over https only), or run: docmind keys keep {url}",
            reason="key_rejected",
        )
    if status == 429:
        return BackendError("Ollama is asked too often (HTTP 429).", "Wait a moment.", reason="rate_limited")
    if "exceed" in words and "context" in words:
        return ContextTooLong(
            f"The question and its evidence do not fit: {said}", "Ask with less text, or raise `context_window`."
        )
    if any(sign in words for sign in ("out of memory", "requires more system memory", "cudamalloc", "unable to alloc")):
        return BackendError(
            f"The model does not fit the memory: {said}", "Choose a smaller model, or lower `context_window`.",
            reason="out_of_memory",
        )  # fmt: skip
    if "does not support thinking" in words:
        return BackendError(said, "Leave out the option `thinking`, or set it to off.", reason="unsupported")
    if words.lstrip().startswith("<") or (status == 404 and "model" not in words):
        return BackendError(
            f"{url} does not answer as Ollama does (HTTP {status}): {said}",
            "Check the address in OLLAMA_HOST or `url`; a proxy may have answered.",
            reason="bad_response",
        )
    return BackendError(f"Ollama failed: {said}", "Try again; `ollama ps` and Ollama's log say more.")


# What it does with its models -----------------------------------------------------------------------------------------


def pull(
    config: Config,
    model: str,
    options: Mapping[str, Any] | None = None,
    *,
    progress: Callable[[Progress], None],
    stop: threading.Event,
) -> None:
    """Fetch a model from Ollama's library. A stop ends it within a second; the next pull goes on where it ended.

    Args:
        progress: Called with the bytes of all layers that are known by then together; more may become known.

    Raises:
        ModelNotFound: Ollama's library has none of that name.
        BackendUnavailable: The server is not there, or cannot reach the library.
        BackendError: `disk_full`, `wrong_checksum`, `no_end_marker` (it never said that the model is there), …
    """
    from docmind.backends import ollama_models

    ollama_models.pull(config, address((options or {}).get("url")), model, progress, stop)


def delete(config: Config, model: str, options: Mapping[str, Any] | None = None) -> None:
    """Remove a model from the server's disk.

    Raises:
        BackendUnavailable: The server is not there.
        ModelNotFound: It has no such model.
    """
    from docmind.backends import ollama_models

    ollama_models.delete(config, address((options or {}).get("url")), model)


def load(
    config: Config,
    model: str,
    options: Mapping[str, Any] | None = None,
    *,
    progress: Callable[[Progress], None],
    stop: threading.Event,
) -> None:
    """Bring a model into the server's memory, with the window that a call would have.

    After a stop the server goes on loading: it has no way to be told otherwise.

    Raises:
        BackendError: As from `build`, or the server cannot load it (`out_of_memory`).
    """
    from docmind.backends import ollama_models

    ollama_models.load(build(config, model, options), progress, stop)  # type: ignore[arg-type]  # it is an OllamaLLM


def unload(config: Config, model: str, options: Mapping[str, Any] | None = None) -> None:
    """Free the memory a model takes; one that is answering goes when it has finished.

    Raises:
        BackendUnavailable: The server is not there.
        ModelNotFound: It has no such model.
    """
    from docmind.backends import ollama_models

    ollama_models.unload(config, address((options or {}).get("url")), model)


# Building -------------------------------------------------------------------------------------------------------------


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for one of the server's models. Nothing is loaded before `start`, `warm_up` or the first call.

    Args:
        config: Where the person's decisions are kept; the models are the server's.
        model: A name from `models`, ":latest" may be left out.
        options: Values for names in `OPTIONS`; those of a call become its defaults.

    Raises:
        BackendUnavailable: The server is not there, or the Python package is missing.
        ModelNotFound: The server has no such model.
        BackendError: An option is unknown or out of range, or the model cannot answer.
    """
    given = checked_options(OPTIONS, options or {})
    keep_alive = str(given.get("keep_alive", "5m"))
    if not _DURATION.fullmatch(keep_alive):
        raise BackendError(
            f"'{keep_alive[:40]}' is no value for 'keep_alive'.", "It takes 30s, 5m, 2h, 0 or -1.",
            reason="invalid_option",
        )  # fmt: skip
    url = address(given.get("url"))
    if importlib.util.find_spec("ollama") is None:
        raise BackendUnavailable("Ollama's Python package is missing.", f"Run: {INSTALL}", reason="not_installed")
    listing = _listing(config, url, model)
    info = next((info for info in listing.models if model in names(info.name)), None)
    if info is None:
        raise not_found(model, listing)
    if info.reason == "no_text_generation":
        raise BackendError(f"{info.name} makes no text.", "Choose another model.", reason=info.reason)
    if info.reason == "cloud_model" and not given.get("allow_cloud"):
        raise BackendError(
            f"{info.name} runs on ollama.com, not on this machine.",
            "Choose another model, or allow it with the option `allow_cloud`.",
            reason=info.reason,
        )
    if info.remote_url is not None:
        checked_place(config, info.remote_url, carries_text=True)
    trained = info.context_window or given.get("context_window", UNKNOWN_WINDOW)
    window = max(256, min(trained, given.get("context_window", DEFAULT_WINDOW)))
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.ollama_llm import OllamaLLM

    return OllamaLLM(
        name=info.name,
        context_window=window,
        defaults={option.name: given.get(option.name, option.default) for option in CALL_OPTIONS},
        config=config,
        url=url,
        keep_alive=keep_alive,
        gpu_layers=given.get("gpu_layers"),
        version=listing.version,
    ).knowing(listing.loaded_windows)


def embedding(config: Config, model: str, options: Mapping[str, Any] | None = None) -> BaseEmbedding:
    """A LlamaIndex model that makes vectors, for one of those that the server has for that.

    Raises:
        BackendUnavailable: The server is not there.
        ModelNotFound: The server has no such model.
        BackendError: An option is unknown, or the model writes text (`no_vectors`) or runs elsewhere (`cloud_model`).
    """
    given = checked_options(EMBEDDING_OPTIONS, options or {})
    url = address(given.get("url"))
    start = f"Start Ollama, then run: ollama pull {model}"
    try:
        listing = _listing(config, url, model)
    except BackendUnavailable as absence:
        raise BackendUnavailable(str(absence), start) from absence
    info = next((info for info in listing.models if model in names(info.name)), None)
    if info is None:
        raise ModelNotFound(f"Ollama has no model '{model}'.", f"Run: ollama pull {model}")
    if info.reason == "cloud_model":
        raise BackendError(
            f"{info.name} runs on ollama.com, not on this machine.", "Choose another model.", reason=info.reason
        )
    if info.reason is None and info.context_window is not None:  # of one without a window the server said nothing
        raise no_vectors(info.name)
    from docmind.backends.ollama_embedding import OllamaEmbedding

    return OllamaEmbedding(
        model_name=info.name,
        config=config,
        url=url,
        query_prefix=given.get("query_prefix", ""),
        passage_prefix=given.get("passage_prefix", ""),
        start=start,
    )


def no_vectors(model: str) -> BackendError:
    """The error for a model that was not made for vectors."""
    return BackendError(
        f"{model} writes text; it was not made for the vectors of a search.",
        "Choose an embedding model. Run: ollama pull nomic-embed-text",
        reason="no_vectors",
    )


def not_found(model: str, listing: Listing) -> ModelNotFound:
    """The error that names the models there are."""
    there = ", ".join(info.name for info in listing.models if info.reason is None) or "none"
    return ModelNotFound(f"Ollama has no model '{model}'.", f"There are: {there}. Or run: ollama pull {model}")


async def ask_not_found(config: Config, url: str, model: str) -> ModelNotFound:
    """The same, for a model that has vanished since."""
    with contextlib.suppress(BackendError, TimeoutError):
        async with asyncio.timeout(LISTING_SECONDS):
            return not_found(model, await _ask_listing(config, url, model))
    return not_found(model, Listing(None, (), {}))
