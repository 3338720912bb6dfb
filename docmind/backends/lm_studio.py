"""The LM Studio backend: models that LM Studio runs, on this machine or another.

This file finds the server and its models, loads and unloads them, and imports neither LlamaIndex nor LM Studio's
Python package at the top: it is imported to draw a list. `lm_studio_socket.py` is the connection, `lm_studio_llm.py`
the model itself.

*Limitations*

- Text in, text out: no images, no function calling; messages of a tool are given to the model as the person's.
- A server on another machine gets the questions and the passages in plain text unless the address begins with https.
- A model that is loaded already is used as it is, with the window it was loaded with.
- Models are downloaded with LM Studio itself (`lms get`); the package can only search for them by name.
- A seed belongs to loading in LM Studio, not to a call; thinking is switched on and off in LM Studio.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from docmind.backends import DEADLINES, Detection, ModelInfo, Option, Progress, checked_options
from docmind.backends.places import checked_place, origin, server_address, where_text_goes
from docmind.errors import BackendError, BackendUnavailable, ModelNotFound
from docmind.keys import find_key

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, Callable, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends.lm_studio_socket import Connection
    from docmind.config import Config

LABEL = "LM Studio"
INSTALL = 'pip install "lmstudio>=1.5,<1.6"'
# Small, answers in many languages, and does not think.
GET = "lms get qwen/qwen3-4b-2507"
START = "Start LM Studio (https://lmstudio.ai/download). Run: lms server start"

OPTIONS: tuple[Option, ...] = (
    Option("url", str, None, "address", "Where LM Studio listens; by default what LMSTUDIO_HOST says, else "
           "http://127.0.0.1:1234, else where the app itself listens."),
    Option("context_window", int, None, "tokens", "What the model can read and write in one call; by default what it "
           "was trained for, at most 8,192. A model that is loaded already keeps the window it has.", 256, 1 << 20),
    Option("keep_alive_seconds", int, 3600, "seconds", "How long LM Studio keeps a model that DocMind loaded in memory "
           "after an answer.", 1, 1 << 30),
    Option("allow_linked", bool, False, "", "Also use models that LM Studio runs on another machine (LM Link): "
           "questions and passages then leave the server's machine."),
    Option("max_tokens", int, 512, "tokens", "The longest answer, a thinking model's thoughts included.", 1, 1 << 20,
           per_call=True),
    Option("temperature", float, 0.1, "", "0 always takes the likeliest word; higher is more varied.", 0, 5,
           per_call=True),
    Option("top_p", float, None, "", "Words are taken from the likeliest that together reach this share; by default "
           "as LM Studio has it for the model.", 0, 1, per_call=True),
    Option("top_k", int, None, "words", "Words are taken from so many of the likeliest; by default as LM Studio has it "
           "for the model.", 0, 1 << 20, per_call=True),
    Option("min_p", float, None, "", "Words less likely than this share of the likeliest are left out; by default as "
           "LM Studio has it for the model.", 0, 1, per_call=True),
    Option("repeat_penalty", float, 1.0, "", "Above 1 the model repeats itself less, and quotes less exactly.", 0.1, 5,
           per_call=True),
    Option("stop", list, None, "texts", "The answer ends in front of any of these.", per_call=True),
    *DEADLINES,
)  # fmt: skip

CALL_OPTIONS = tuple(option for option in OPTIONS if option.per_call)

DEFAULT_WINDOW = 8192  # tokens; more is a choice, for its memory
UNKNOWN_WINDOW = 4096  # tokens, for a model that does not say
CONNECT_SECONDS = 0.8  # a server that is there accepts in milliseconds, also across a house
LISTING_SECONDS = 5.0  # for everything that is asked before a first call
UNLOAD_SECONDS = 30.0
TOKEN_VARIABLES = ("LM_API_TOKEN", "LMSTUDIO_API_TOKEN")  # what its clients for JavaScript and for Python read
USUAL_PORT = 1234  # of the server that people switch on
# Where the app listens on this machine also while that server is off, the first of these that was free.
# Source: packages/lms-common/src/apiServerPorts.ts in https://github.com/lmstudio-ai/lmstudio-js
APP_PORTS = (41343, 52993, 16141, 39414, 22931)
_NAME_CHARACTERS = 200
# In a path such as "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf", for servers that do not say it.
_QUANTIZATION = re.compile(r"(?<![a-z0-9])(i?q\d(?:_[a-z0-9]+)*|bf16|f16|f32|mxfp4|\d{1,2}bit)(?![a-z0-9])", re.I)


# Where it is ----------------------------------------------------------------------------------------------------------


def address(given: str) -> str:
    """The server's address from a host, host:port or URL.

    Raises:
        BackendError: It is no address (`invalid_option`).
    """
    return server_address(given, USUAL_PORT)


def token_for(url: str) -> str | None:
    """The API token for an address, if one is meant for it; None: none is.

    One that was given for this very address comes first. That of the environment is for this machine, or for the
    address in LMSTUDIO_HOST when it is reached by https.
    """
    is_meant = where_text_goes(url)[0] == "this device"
    with contextlib.suppress(BackendError, KeyError, ValueError):
        is_meant = is_meant or origin(url) == origin(address(os.environ["LMSTUDIO_HOST"]))
    return find_key(url, TOKEN_VARIABLES if is_meant else ())


def _said(options: Mapping[str, Any] | None) -> str | None:
    """The address that somebody gave, as it was written; None: look for it."""
    return (options or {}).get("url") or os.environ.get("LMSTUDIO_HOST") or None


def _found(config: Config, options: Mapping[str, Any] | None) -> str:
    """The server's address: what was given, else the first of the usual ones where LM Studio answers.

    Raises:
        BackendUnavailable: It answers at none of them.
        BackendError: What was given is no address.
    """
    if (said := _said(options)) is not None:
        return address(said)
    from docmind.backends.careful_http import unreachable, wait_for

    addresses = [f"http://127.0.0.1:{port}" for port in (USUAL_PORT, *APP_PORTS)]

    async def first() -> str | None:
        greeted = await asyncio.gather(*(_greets(config, url) for url in addresses))
        return next((url for url, is_there in zip(addresses, greeted, strict=True) if is_there), None)

    url = wait_for(first())
    if url is None:
        raise BackendUnavailable(str(unreachable(addresses[0])), START)
    return url


async def _greets(config: Config, url: str) -> bool:
    """Whether LM Studio answers at an address, as its own clients find out."""
    import httpx

    from docmind.backends.careful_http import HEADERS, client_settings, fetch

    settings = client_settings(config, url, CONNECT_SECONDS, carries_text=False)
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, **settings) as client:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                status, answer = await fetch(client, "GET", "/lmstudio-greeting")
        except (BackendError, TimeoutError):
            return False
    return status == 200 and answer.get("lmstudio") is True


# What is there --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Instance:
    """A model in memory; there may be several of one model."""

    identifier: str
    reference: str  # of this very instance, not of another that is loaded under its name later
    model: str
    window: int | None  # tokens it was loaded with


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says about itself."""

    version: str | None
    models: tuple[ModelInfo, ...]
    instances: tuple[Instance, ...]
    trained: dict[str, int | None]  # tokens each model was trained to read, whatever it was loaded with


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether the server is there, with its models. Never raises for an absence."""
    url = _said(options)  # also what is no address: people are told where text would go
    try:
        url = _found(config, options)
        listing = _listing(config, url)
    except BackendError as absence:
        return Detection("lm-studio", LABEL, False, absence.reason, absence.hint, url, None, ())
    reason, hint = None, None
    if not any(model.reason is None for model in listing.models):
        reason, hint = "no_model", f"Run: {GET}"
    return Detection("lm-studio", LABEL, reason is None, reason, hint, url, listing.version, listing.models)


def how_to_get(config: Config, model: str) -> str:
    """How to get a model that is not there."""
    return f"Run: lms get {model}"


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models of the server by name, then the instances in memory that have a name of their own; none without it.

    The window is the one that a model in memory was loaded with, else the one it was trained for. A model that cannot
    answer is listed with its `reason`: `no_text_generation`, or `cloud_model`.
    """
    return detect(config, options).models


def _listing(config: Config, url: str) -> Listing:
    """What the server says, within a few seconds.

    Raises:
        BackendUnavailable: It is not there, or the Python package is missing.
        BackendError: It does not answer as LM Studio does.
    """
    from docmind.backends.careful_http import unreachable, wait_for

    if importlib.util.find_spec("lmstudio") is None:
        raise BackendUnavailable("LM Studio's Python package is missing.", f"Run: {INSTALL}", reason="not_installed")
    # Imported here and not on the event loop, which would stand still meanwhile.
    from docmind.backends.lm_studio_socket import connected

    token_for(url)  # here and not on the loop: a keyring may wait for the person, and is asked once

    async def ask(namespace: str, *endpoints: str) -> list[Any]:
        async with connected(config, url, namespace, carries_text=False) as connection:
            return [await connection.call(endpoint) for endpoint in endpoints]

    async def ask_all() -> Listing:
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                (version, downloaded), (writing,), (embedding,) = await asyncio.gather(
                    ask("system", "version", "listDownloadedModels"), ask("llm", "listLoaded"),
                    ask("embedding", "listLoaded"),
                )  # fmt: skip
        except TimeoutError as error:
            raise BackendUnavailable(str(unreachable(url)), START) from error
        return _read_listing(version, downloaded, [*_entries(writing), *_entries(embedding)])

    return wait_for(ask_all())


def _read_listing(version: object, downloaded: object, loaded: list[dict[str, Any]]) -> Listing:
    """The listing in what the server answered."""
    from docmind.backends.careful_http import clean

    in_memory = [(found, entry) for entry in loaded if (found := instance(entry)) is not None]
    infos = {info.name: info for entry in _entries(downloaded) if (info := _info(entry, entry.get("modelKey")))}
    own = {found.identifier: info for found, entry in in_memory if (info := _info(entry, found.identifier))}
    trained = {name: info.context_window for name, info in (infos | own).items()}
    there = tuple(found for found, _ in in_memory)
    listed = []
    for name in [*sorted(infos), *sorted(own.keys() - infos.keys())]:  # one that is named as its model is that model
        info = infos.get(name) or own[name]
        found_there = chosen(name, there)
        window = found_there.window if found_there is not None else None
        listed.append(replace(info, loaded=found_there is not None, context_window=window or info.context_window))
    said = clean(version.get("version"))[:40] if isinstance(version, dict) else ""
    return Listing(said or None, tuple(listed), there, trained)


def instances(answer: object) -> tuple[Instance, ...]:
    """What listLoaded says is in memory."""
    return tuple(found for entry in _entries(answer) if (found := instance(entry)) is not None)


def instance(entry: Mapping[str, Any]) -> Instance | None:
    """A model in memory as the server describes it; None for what is no description of one."""
    from docmind.backends.careful_http import clean

    identifier, reference = clean(entry.get("identifier")), clean(entry.get("instanceReference"))
    if not _is_name(identifier) or not reference:
        return None
    return Instance(identifier, reference, clean(entry.get("modelKey")), _window(entry))


def chosen(name: str, loaded: tuple[Instance, ...]) -> Instance | None:
    """The instance that a name means: one that is called so, else one of the model that is called so."""
    return next((i for i in loaded if i.identifier == name), next((i for i in loaded if i.model == name), None))


def _window(entry: Mapping[str, Any]) -> int | None:
    from docmind.backends.careful_http import count

    return count(entry.get("contextLength")) or None


def _entries(answer: object) -> list[dict[str, Any]]:
    """The entries of a listing that are any."""
    return [entry for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []


def _is_name(name: str) -> bool:
    """People name instances as they like; one that cannot be shown in a line is left out."""
    return name.isprintable() and 0 < len(name) <= _NAME_CHARACTERS


def _info(entry: Mapping[str, Any], name: object) -> ModelInfo | None:
    """A model as the server describes it; None for a name that no model has."""
    from docmind.backends.careful_http import clean, count, plain

    name = clean(name)
    if not _is_name(name):
        return None
    said = entry.get("quantization")  # since 0.3.17; the package's own types do not have it
    quantization = plain(clean(said.get("name") if isinstance(said, dict) else said))[:20]
    if not quantization and (found := _QUANTIZATION.search(clean(entry.get("path"))[-300:])) is not None:
        quantization = found[1]
    reason, device = None, entry.get("deviceIdentifier")
    if entry.get("type") != "llm":
        reason = "no_text_generation"
    elif device is not None:  # on another machine, through LM Link
        reason = "cloud_model"
    # No address is known, only the machine: this stands for one, to be shown and allowed.
    remote_url = f"lm-link://{re.sub(r'[^A-Za-z0-9]+', '-', str(device))[:60].strip('-') or 'unknown'}"
    window = count(entry.get("maxContextLength")) or None
    return ModelInfo(
        name, window, count(entry.get("sizeBytes")), quantization or None, False, reason=reason,
        remote_url=remote_url if reason == "cloud_model" else None,
    )  # fmt: skip


# Building, loading, unloading -----------------------------------------------------------------------------------------


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for one of the server's models. Nothing is loaded before `start`, `warm_up` or the first call.

    Args:
        config: Where the person's decisions are kept; the models are the server's.
        model: A name from `models`: a model's key, or the identifier of an instance in memory.
        options: Values for names in `OPTIONS`; those of a call become its defaults.

    Raises:
        BackendUnavailable: The server is not there, or the Python package is missing.
        ModelNotFound: The server has no such model.
        BackendError: An option is unknown or out of range, or the model cannot answer.
    """
    given = checked_options(OPTIONS, options or {})
    url = _found(config, given)
    listing = _listing(config, url)
    info = _usable(config, model, listing, given)
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.lm_studio_llm import LMStudioLLM

    loaded = chosen(info.name, listing.instances)
    load_window = _load_window(listing.trained[info.name], given)
    return LMStudioLLM(
        name=info.name,
        context_window=(loaded.window if loaded is not None else None) or load_window,
        load_window=load_window,
        keep_alive_seconds=given.get("keep_alive_seconds", 3600),
        defaults={option.name: given.get(option.name, option.default) for option in CALL_OPTIONS},
        config=config,
        url=url,
    ).knowing(is_loaded=loaded is not None)


def load(
    config: Config, model: str, options: Mapping[str, Any] | None = None, *,
    progress: Callable[[Progress], None], stop: threading.Event,
) -> None:  # fmt: skip
    """Bring a model into memory; one that is there stays as it is.

    Raises:
        BackendError: It cannot be loaded.
    """
    from docmind.background import follow

    given = checked_options(OPTIONS, options or {})
    url = _found(config, given)
    listing = _listing(config, url)
    info = _usable(config, model, listing, given)
    window = _load_window(listing.trained[info.name], given)
    progress(Progress("loading", 0, 100, "%"))

    async def steps() -> AsyncGenerator[int, None]:
        return _loading_alone(config, url, info.name, window, given)

    for percent in follow(steps, stop):
        progress(Progress("loading", percent, 100, "%"))


async def _loading_alone(
    config: Config, url: str, name: str, window: int, given: Mapping[str, Any]
) -> AsyncGenerator[int, None]:
    """Load over a connection of its own; gives percent."""
    from docmind.backends.lm_studio_socket import connected
    from docmind.backends.served_llm import Deadlines

    arguments = {option.name: given.get(option.name, option.default) for option in CALL_OPTIONS}
    async with connected(config, url, "llm", carries_text=False) as connection:
        deadlines = Deadlines(arguments, LABEL)
        loaded = instances(await deadlines.keep(connection.call("listLoaded")))
        if chosen(name, loaded) is not None:
            yield 100
            return
        steps = loading(connection, name, window, given.get("keep_alive_seconds", 3600))
        async with contextlib.aclosing(steps):
            while isinstance(step := await deadlines.keep(anext(steps)), int):
                yield step
        yield 100


async def loading(
    connection: Connection, name: str, window: int, keep_alive_seconds: int
) -> AsyncGenerator[int | Instance, None]:
    """Load a model, unless it is loaded meanwhile: gives percent, at last the instance.

    Raises:
        BackendError: It cannot be loaded.
    """
    from lmstudio import LlmLoadModelConfig
    from lmstudio.json_api import GetOrLoadEndpoint, ModelTypesLlm

    from docmind.backends.careful_http import bad_response

    endpoint: Any = GetOrLoadEndpoint(
        name, keep_alive_seconds, ModelTypesLlm.REQUEST_GET_OR_LOAD, LlmLoadModelConfig,
        LlmLoadModelConfig(context_length=window), None,
    )  # fmt: skip
    async with contextlib.aclosing(connection.stream(endpoint)) as events:
        async for told in events:
            share = told.get("progress")
            if isinstance(share, int | float) and 0 <= share <= 1:
                yield int(100 * share)
            if told.get("type") in ("alreadyLoaded", "loadSuccess"):
                info = told.get("info")
                found = instance(info) if isinstance(info, dict) else None
                if found is None:
                    raise bad_response("It does not say what it has loaded.")
                yield found
                return
    raise BackendError(
        f"LM Studio ended without having loaded {name}.", "Try again; its log says more. Run: lms log stream"
    )


def unload(config: Config, model: str, options: Mapping[str, Any] | None = None) -> None:
    """Free the memory of a model: of the instance that has this name, else of all of the model's.

    Raises:
        BackendError: The server is not there, or cannot.
    """
    from docmind.backends.careful_http import wait_for

    url = _found(config, checked_options(OPTIONS, options or {}))
    listing = _listing(config, url)
    _known(model, listing)
    named = [i.identifier for i in listing.instances if i.identifier == model]
    wait_for(_unload(config, url, named or [i.identifier for i in listing.instances if i.model == model]))


async def _unload(config: Config, url: str, identifiers: list[str]) -> None:
    from docmind.backends.lm_studio_socket import connected

    try:
        async with asyncio.timeout(UNLOAD_SECONDS), connected(config, url, "llm", carries_text=False) as connection:
            for identifier in identifiers:
                await connection.call("unloadModel", {"identifier": identifier})
    except TimeoutError as error:
        raise BackendError(
            f"LM Studio did not unload the model within {UNLOAD_SECONDS:.0f} seconds.", "Unload it in LM Studio.",
            reason="stalled",
        ) from error  # fmt: skip


def _load_window(trained: int | None, given: Mapping[str, Any]) -> int:
    """The window a model is loaded with, in tokens."""
    wanted: int = given.get("context_window", UNKNOWN_WINDOW if trained is None else DEFAULT_WINDOW)
    return wanted if trained is None else max(256, min(trained, wanted))


def _known(model: str, listing: Listing) -> ModelInfo:
    """What is known of a model.

    Raises:
        ModelNotFound: There is none of that name.
    """
    info = next((info for info in listing.models if info.name == model), None)
    if info is None:
        there = ", ".join(info.name for info in listing.models if info.reason is None) or "none"
        raise ModelNotFound(f"LM Studio has no model '{model}'.", f"There are: {there}. Or run: lms get {model}")
    return info


def _usable(config: Config, model: str, listing: Listing, given: Mapping[str, Any]) -> ModelInfo:
    """What is known of a model that can answer.

    Raises:
        ModelNotFound: There is none of that name.
        BackendError: It cannot answer (`no_text_generation`), or not here (`cloud_model`).
    """
    info = _known(model, listing)
    if info.reason == "no_text_generation":
        raise BackendError(f"{info.name} makes no text.", "Choose another model.", reason=info.reason)
    if info.reason == "cloud_model" and not given.get("allow_linked"):
        raise BackendError(
            f"LM Studio runs {info.name} on another machine.",
            "Choose another model, or allow it with the option `allow_linked`.",
            reason=info.reason,
        )
    if info.remote_url is not None:
        checked_place(config, info.remote_url, carries_text=True)
    return info
