"""The backend for servers that speak OpenAI's chat protocol: llama-server, vLLM, MLX and others, here or elsewhere.

This file finds a server and its models, and imports neither LlamaIndex nor httpx: it is imported to draw a list.
`openai_compatible_presets.py` knows the programs, `openai_compatible_llm.py` is the model itself.

*Limitations*

- Text in, text out: no images, no function calling.
- The protocol has no word for the window. It is asked of the server where that tells, else the person says it; what
  nobody knows is not guessed.
- Whether a thinking model thinks is the server's affair.
- Tokens are estimated before sending; see `served_llm.ServedLLM`.
- An address without https on another machine gets the questions and the passages in plain text, and no key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from docmind.backends import DEADLINES, EMBEDDING_OPTIONS, Detection, ModelInfo, Option, checked_options
from docmind.backends.openai_compatible_presets import OTHER, PRESETS, Preset
from docmind.backends.places import where_text_goes
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelNotFound
from docmind.keys import find_key, given_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM

    from docmind.config import Config

LABEL = "OpenAI-compatible server"
START = f"Start a server, or give its address as `url`. The simplest one. Run: {PRESETS[0].start}"

OPTIONS: tuple[Option, ...] = (
    Option("url", str, None, "address", "Where the server listens, as it is given to OpenAI's clients; by default what "
           "OPENAI_COMPATIBLE_URL says, else the usual addresses on this machine are tried."),
    Option("preset", str, None, "", "Which server it is; by default it is recognised by its answers.",
           choices=tuple(preset.name for preset in PRESETS)),
    Option("context_window", int, None, "tokens", "What the model can read and write in one call, where the server "
           "does not say it, or less than it says.", 256, 1 << 24),
    Option("max_tokens", int, 512, "tokens", "The longest answer, a thinking model's thoughts included.", 1, 1 << 20,
           per_call=True),
    Option("temperature", float, 0.1, "", "0 always takes the likeliest word; higher is more varied.", 0, 5,
           per_call=True),
    Option("top_p", float, None, "", "Words are taken from the likeliest that together reach this share; by default "
           "as the server says.", 0, 1, per_call=True),
    Option("top_k", int, None, "words", "Words are taken from so many of the likeliest; by default as the server says.",
           0, 1 << 20, per_call=True),
    Option("min_p", float, None, "", "Words less likely than this share of the likeliest are left out; by default as "
           "the server says.", 0, 1, per_call=True),
    Option("repeat_penalty", float, None, "", "Above 1 the model repeats itself less, and quotes less exactly; by "
           "default as the server says.", 0.1, 5, per_call=True),
    Option("seed", int, None, "", "The same number repeats an answer, but for rounding; by default a new one.", 0,
           (1 << 31) - 1, per_call=True),
    Option("grammar", str, None, "GBNF", "The answer has this form (llama.cpp's grammars/README.md); llama-server "
           "only.", per_call=True),
    Option("stop", list, None, "texts", "The answer ends in front of any of these.", per_call=True),
    *DEADLINES,
)  # fmt: skip

CALL_OPTIONS = tuple(option for option in OPTIONS if option.per_call)

CONNECT_SECONDS = 0.8  # a server that is there accepts in milliseconds, also across a house
LISTING_SECONDS = 5.0  # for everything that is asked of a server before a first call
PROBE_SECONDS = 1.0  # for looking around on this machine
_NOT_WRITING_TYPES = frozenset(
    {"embedding", "embeddings", "image", "rerank", "audio", "moderation", "transcribe", "video"}
)


# Where it is ----------------------------------------------------------------------------------------------------------


def address(given: str) -> str:
    """An address as OpenAI's clients take it: with a version in its path, which is /v1 where none is said.

    0.0.0.0 and [::] are what a server listens on; asking it means this machine.

    Raises:
        BackendError: It is no address, or holds a password (`invalid_option`).
    """
    said = given.strip()
    try:
        parts = urlsplit(said if "://" in said else f"http://{said}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, or an open bracket
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise BackendError(
            f"'{said[:200]}' is no address.", "Write it as http://127.0.0.1:8080/v1.", reason="invalid_option"
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/")
    if not re.search(r"/v\d\w*(/|$)", path):
        path += "/v1"
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


def key_for(preset: Preset, url: str) -> str | None:
    """The key for an address, if one is meant for it; None: none is.

    One that was given for this very address comes first. The variable of a service is for that service's own address;
    that of a program for this machine, or for the address in OPENAI_COMPATIBLE_URL; so is OPENAI_COMPATIBLE_KEY. Over
    plain http a key of a variable only goes to this machine.
    """
    if (given := find_key(url)) is not None:
        return given
    named = os.environ.get("OPENAI_COMPATIBLE_URL", "").strip()
    is_here = where_text_goes(url)[0] == "this device"
    if not is_here and not url.startswith("https:"):
        return None
    is_named = _origin(url) == _origin(named) if named else is_here
    is_own = _origin(url) == _origin(preset.url or "") if preset.is_remote else is_here or is_named
    for variable, is_meant in ((preset.key, is_own), ("OPENAI_COMPATIBLE_KEY", is_named)):
        key = os.environ.get(variable, "").strip() if variable and is_meant else ""
        if key and key.isascii() and key.isprintable():
            return given_out(key)
    return None


def key_header(preset: Preset, url: str) -> dict[str, str]:
    """The header with that key."""
    key = key_for(preset, url)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _origin(url: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of an address; None: it is none."""
    try:
        parts = urlsplit(address(url))
    except BackendError:
        return None
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]


def _places(options: Mapping[str, Any]) -> tuple[list[tuple[str, Preset | None]], bool]:
    """The addresses to ask, each with its preset where that is known, and whether a person named them.

    Raises:
        BackendError: What was named is no address, or a service was chosen without its address (`invalid_option`).
    """
    name = options.get("preset")
    chosen = next((preset for preset in PRESETS if preset.name == name), None)
    if said := options.get("url"):
        return [(address(said), chosen)], True
    if chosen is not None and chosen.is_remote:
        # Where text goes is read from `url` before it is sent: a service is never reached by a name alone.
        raise BackendError(
            f"{chosen.label} is on the internet, and the profile does not say so.",
            f'Add its address to the options of the profile: url = "{chosen.url}"',
            reason="invalid_option",
        )
    if named := os.environ.get("OPENAI_COMPATIBLE_URL", "").strip():
        return [(address(named), chosen)], True
    if chosen is not None and chosen.url is not None:
        return [(chosen.url, chosen)], True
    usual = [preset.url for preset in PRESETS if preset.url is not None and not preset.is_remote]
    return [(url, None) for url in dict.fromkeys(usual)], False


# What is there --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A server, and what it says about itself. A model's `context_window` is the real one, or None."""

    url: str
    preset: Preset
    version: str | None
    models: tuple[ModelInfo, ...]
    aliases: dict[str, str]  # other names of models → their names


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether a server is there, with its models. Never raises for an absence."""
    given = options or {}
    try:
        servers = find(config, given)
    except BackendError as absence:
        return Detection("openai-compatible", LABEL, False, absence.reason, absence.hint, _named(given), None, ())
    found = servers[0]
    usable = [model for model in found.models if model.reason is None]
    reason, hints = None, []
    if not usable:
        reason, hints = "no_model", [f"{found.preset.label} has no model that can answer: load one."]
    elif given.get("context_window") is None and (unknown := [m.name for m in usable if not m.context_window]):
        hints.append(f"{found.preset.label} does not say the window of {_some(unknown)}. {_SAY_WINDOW}")
    if others := [f"{other.preset.label} at {other.url}" for other in servers[1:]]:
        hints.append(f"Also there: {', '.join(others)}; choose one with the option `url`.")
    version = " ".join(part for part in (found.preset.label, found.version) if part)
    return Detection(
        "openai-compatible", LABEL, reason is None, reason, " ".join(hints) or None, found.url, version, found.models
    )


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models of the server, by name; none when it is not there."""
    return detect(config, options).models


_SAY_WINDOW = "Say it in the profile, as the server was started: context_window = 16384"


def _named(options: Mapping[str, Any]) -> str:
    """Where text would go if something were there; also what is no address."""
    try:
        return _places(options)[0][0][0]
    except BackendError:
        chosen = next((preset.url for preset in PRESETS if preset.name == options.get("preset")), None)
        return str(options.get("url") or chosen or os.environ.get("OPENAI_COMPATIBLE_URL"))


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def find(config: Config, options: Mapping[str, Any]) -> list[Found]:
    """The servers that are there, the one to be used first. Addresses that nobody named are asked beside each other.

    Raises:
        BackendError: None is, or the one that was named does not answer as such a server does.
    """
    from docmind.backends.careful_http import unreachable, wait_for

    places, is_named = _places(options)
    for url, _ in places:
        find_key(url)  # here and not on the loop: a keyring may wait for the person, and is asked once

    async def ask(url: str, preset: Preset | None) -> Found | BackendError:
        try:
            async with asyncio.timeout(LISTING_SECONDS if is_named else PROBE_SECONDS):
                return await _ask(config, url, preset, is_named=is_named)
        except TimeoutError:
            return unreachable(url)
        except BackendError as error:
            return error

    async def ask_all() -> list[Found | BackendError]:
        return await asyncio.gather(*(ask(url, preset) for url, preset in places))

    answers = wait_for(ask_all())
    if found := [answer for answer in answers if isinstance(answer, Found)]:
        return sorted(found, key=lambda server: not server.models)  # stable: of those with models the first
    failed = [answer for answer in answers if isinstance(answer, BackendError)]
    if not is_named:  # whatever else listens on a usual port is not meant
        failed = [error for error in failed if error.reason in ("key_rejected", "loading")] or [
            unreachable(places[0][0])
        ]
    if type(failed[0]) is BackendUnavailable and failed[0].reason == "unreachable":
        raise BackendUnavailable(str(failed[0]), START) from failed[0]
    raise failed[0]


async def _ask(config: Config, url: str, preset: Preset | None, *, is_named: bool = True) -> Found:
    """What the server at an address says.

    Args:
        is_named: Whether a person named the address; else whatever listens there may be something quite different.

    Raises:
        BackendError: Nothing answers there, or not as such a server does.
    """
    import httpx

    from docmind.backends.careful_http import HEADERS, client_settings, fetch_whole, json_value

    guess = preset or _by_address(url)
    headers = HEADERS | key_header(guess, url)
    settings = client_settings(config, url, CONNECT_SECONDS, carries_text=False)
    async with httpx.AsyncClient(base_url=url, headers=headers, **settings) as client:
        answer, whole = await fetch_whole(client, "GET", "/models")
        if answer.status_code >= 400:
            if not is_named:
                json_value(whole)  # a model server refuses in JSON
            raise refusal(answer.status_code, whole.decode("utf-8", "replace"), url, guess, answer.headers)
        is_mlx = answer.headers.get("server", "").startswith("BaseHTTP")
        if not whole and is_mlx and await _is_healthy(client, url):
            # mlx_lm.server fails to list while there is no cache of the hub, and serves what it was started with.
            listing = [{"id": "default_model"}]
        else:
            listing = _entries(json_value(whole))
        preset = preset or _recognised(guess, listing, is_mlx=is_mlx)
        found = [(info, entry) for entry in listing if (info := _info(entry, preset)) is not None]
        infos = [info for info, _ in found]
        told: dict[str, Any] = {}
        try:
            if preset.asks == "props":
                infos, told = await _with_props(client, url, infos, [entry for _, entry in found])
            elif preset.asks:
                infos = await _ASKS[preset.asks](client, url, infos)
            elif preset.version:
                told = await _get(client, root(url) + preset.version)
        except BackendError as error:  # what it does not tell is unknown, but for what it will tell in a moment
            if error.reason == "loading":
                raise
    aliases = {
        alias: info.name for info, entry in found for alias in _list(entry.get("aliases")) if isinstance(alias, str)
    }
    version = _short(told.get("version") or told.get("build_info"))
    return Found(url, preset, version, tuple(sorted(infos, key=lambda info: info.name)), aliases)


def root(url: str) -> str:
    """The address without the version: where a server's own paths begin."""
    return re.sub(r"/v\d\w*$", "", url)


def _by_address(url: str) -> Preset:
    """Whose address it is, as far as that alone tells."""
    own = [preset for preset in PRESETS if preset.url is not None and _origin(preset.url) == _origin(url)]
    return own[0] if own else OTHER


def _recognised(guess: Preset, listing: Sequence[Mapping[str, Any]], *, is_mlx: bool) -> Preset:
    """Which server it is, by its list of models."""
    if guess.is_remote:
        return guess
    for owner in {str(entry.get("owned_by")).lower() for entry in listing}:
        for preset in PRESETS:
            if owner in preset.owners:
                return preset
    return next(preset for preset in PRESETS if preset.name == "mlx") if is_mlx else OTHER


def _entries(value: Any) -> list[dict[str, Any]]:
    """The entries of a list of models.

    Raises:
        BackendError: It is none (`bad_response`).
    """
    from docmind.backends.careful_http import bad_response

    entries = value.get("data") if isinstance(value, dict) else value  # Together sends the bare list
    if not isinstance(entries, list):
        raise bad_response("It has no list of models.")
    return [entry for entry in entries if isinstance(entry, dict)]


def _info(entry: Mapping[str, Any], preset: Preset) -> ModelInfo | None:
    """A model as the list has it; None for a name that no model has, and for one that is switched off."""
    from docmind.backends.careful_http import clean, count

    name = clean(entry.get("id"))
    if not 0 < len(name) <= 300 or not name.isprintable() or entry.get("active") is False:
        return None
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    window: Any = entry
    for key in preset.window:
        window = window.get(key) if isinstance(window, dict) else None
    reason = "no_text_generation" if entry.get("type") in _NOT_WRITING_TYPES else None
    return ModelInfo(
        name,
        (count(window) or None) if preset.window else None,
        count(meta.get("size")) or None,
        _short(meta.get("ftype")),
        loaded=True,
        reason=reason,
    )


def _short(value: object) -> str | None:
    """A word of a server for a list, or None."""
    from docmind.backends.careful_http import clean, plain

    return plain(clean(value))[:40] or None


# How the window is asked ----------------------------------------------------------------------------------------------


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """What a server answers; {} for what it refuses to tell.

    Raises:
        BackendError: It does not answer, or is still loading (`loading`).
    """
    from docmind.backends.careful_http import fetch_whole, json_value

    answer, whole = await fetch_whole(client, "GET", url)
    if is_loading(answer.status_code, text := whole.decode("utf-8", "replace")):
        raise refusal(answer.status_code, text, url, OTHER)
    value = json_value(whole) if answer.status_code < 400 else {}
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    """A list of a server's, or an empty one."""
    return value if isinstance(value, list) else []


async def _is_healthy(client: httpx.AsyncClient, url: str) -> bool:
    """Whether a server says that it is well."""
    with contextlib.suppress(BackendError):
        return (await _get(client, root(url) + "/health")).get("status") == "ok"
    return False


async def _with_props(
    client: httpx.AsyncClient, url: str, infos: list[ModelInfo], entries: Sequence[Mapping[str, Any]]
) -> tuple[list[ModelInfo], dict[str, Any]]:
    """With the window that llama-server gives each of its slots, and what else it tells."""
    states = [entry.get("status") for entry in entries]
    if not any(isinstance(state, dict) for state in states):
        props = await _get(client, root(url) + "/props")
        return [replace(info, context_window=_slot_window(props)) for info in infos], props
    # A router: each model has a server of its own, which is asked if it runs. Asking another one would start it.
    described = []
    for info, state in zip(infos, states, strict=True):
        is_loaded = isinstance(state, dict) and state.get("value") == "loaded"
        props = await _get(client, f"{root(url)}/props?model={quote(info.name, safe='')}") if is_loaded else {}
        described.append(replace(info, context_window=_slot_window(props), loaded=is_loaded))
    return described, {}


async def _with_running(client: httpx.AsyncClient, url: str, infos: list[ModelInfo]) -> list[ModelInfo]:
    """With the windows of the servers that llama-swap runs now; asking another one would start it."""
    running = await _get(client, root(url) + "/running")
    ready = [
        entry.get("model")
        for entry in _list(running.get("running"))
        if isinstance(entry, dict) and entry.get("state") == "ready"
    ]
    described = []
    for info in infos:
        props: dict[str, Any] = {}
        if info.name in ready:
            with contextlib.suppress(BackendError):  # behind it may be another server than llama.cpp's
                props = await _get(client, f"{root(url)}/upstream/{quote(info.name)}/props")
        described.append(replace(info, context_window=_slot_window(props), loaded=info.name in ready))
    return described


async def _with_card(client: httpx.AsyncClient, url: str, infos: list[ModelInfo]) -> list[ModelInfo]:
    """With the window of the one model that TabbyAPI has loaded."""
    from docmind.backends.careful_http import count

    card = await _get(client, url + "/model")
    parameters = card.get("parameters")
    window = count(parameters.get("max_seq_len")) if isinstance(parameters, dict) else None
    return [
        replace(
            info, loaded=info.name == card.get("id"), context_window=window if info.name == card.get("id") else None
        )
        for info in infos
    ]


async def _with_rest(client: httpx.AsyncClient, url: str, infos: list[ModelInfo]) -> list[ModelInfo]:
    """With what LM Studio's own list tells. A model that is not loaded has no window yet."""
    from docmind.backends.careful_http import count

    told = {entry.get("id"): entry for entry in _entries(await _get(client, root(url) + "/api/v0/models"))}
    return [
        replace(
            info,
            context_window=count(told[info.name].get("loaded_context_length")) or None,
            quantization=_short(told[info.name].get("quantization")),
            loaded=told[info.name].get("state") == "loaded",
            reason="no_text_generation" if told[info.name].get("type") in _NOT_WRITING_TYPES else info.reason,
        )
        if info.name in told
        else info
        for info in infos
    ]


def _slot_window(props: Mapping[str, Any]) -> int | None:
    from docmind.backends.careful_http import count

    settings = props.get("default_generation_settings")
    return (count(settings.get("n_ctx")) or None) if isinstance(settings, dict) else None


_ASKS = {"running": _with_running, "card": _with_card, "rest": _with_rest}


# What a server refuses ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """An error in a server's own words."""

    message: str
    words: str  # the message and every code beside it, in small letters
    parameter: str  # the one it is about, where the server names it in a field
    refused: tuple[str, ...] = ()  # fields of the request that it does not know, by the names they were sent with


def read_error(text: str) -> Said:
    """What a server says of an error: {"error": {…}} as OpenAI, {"error": text}, {"message": …} or {"detail": …}."""
    from docmind.backends.careful_http import clean, json_value

    try:
        value = json_value(text.encode("utf-8", "replace"))
    except BackendError:
        return Said(text, text.lower(), "")
    about = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(about, str):
        return Said(about, about.lower(), "")
    about = about if isinstance(about, dict) else {}
    detail = about.get("detail")
    refused = tuple(
        str(wrong["loc"][-1])  # as FastAPI tells it: {"type": "extra_forbidden", "loc": ["body", "min_p"]}
        for wrong in _list(detail)
        if isinstance(wrong, dict) and isinstance(wrong.get("loc"), list) and wrong["loc"]
        if "extra" in str(wrong.get("type")) or "not permitted" in str(wrong.get("msg"))
    )
    message = clean(about.get("message")) or (detail if isinstance(detail, str) else text)
    words = " ".join([message, *(str(about[name]) for name in ("type", "code", "param") if about.get(name))])
    return Said(message, words.lower(), clean(about.get("param")), refused)


_UNKNOWN_FIELD = re.compile(
    r"unsupported|not supported|does not support|unknown|unrecognized|unexpected|extra_forbidden|not permitted"
)


def refused_fields(status: int, text: str, sent: Sequence[str]) -> set[str]:
    """Which fields of a request the server does not take, by its own words: it has accepted nothing, then.

    OpenAI: Unsupported parameter: 'x' is not supported with this model. Groq: property 'x' is unsupported, did you
    mean 'y'? FastAPI: {"detail": [{"type": "extra_forbidden", "loc": ["body", "x"]}]}, and the same as a Python text.
    """
    if status not in (400, 422):
        return set()
    said = read_error(text)
    if said.refused:
        return set(said.refused) & set(sent)
    message = re.split(r"did you mean|\buse '", said.words[:2000])[0]
    if not _UNKNOWN_FIELD.search(said.words):
        return set()
    if said.parameter in sent:
        return {said.parameter}
    return {name for name in sent if re.search(rf"['\"`]{name}['\"`]|supplied: {name}\b", message)}


_IS_LOADING = re.compile(r"loading model|model is loading")
_CONTEXT = re.compile(
    r"context[ _](size|length|window)|exceed_context|max(imum)?[ _](model|seq(uence)?)[ _]len|max_num_tokens"
    r"|prompt.{0,40}too long|reduce the length|max_tokens must be at least 1, got -"
)
_MEMORY = re.compile(r"out of memory|insufficient memory|not enough memory|unable to alloc|failed to alloc|cudamalloc")
_NO_MODEL = re.compile(
    r"model_not_found|no models? (is |are )?(currently )?loaded|could not find.{0,40}model|repository not found"
    r"|model.{0,200}(not found|not exist|decommissioned)"
)


def is_loading(status: int, text: str) -> bool:
    """Whether the server is there and still loads its model, as llama-server says it."""
    return status == 503 and _IS_LOADING.search(text.lower()) is not None


def refusal(status: int, text: str, url: str, preset: Preset, headers: Mapping[str, str] | None = None) -> BackendError:
    """The error for what the server refused, by its status and its own words.

    Args:
        status: Of the answer; 200 for an error in the middle of a stream.
        text: The answer's.
        headers: The answer's, for `Retry-After`.
    """
    from docmind.backends.careful_http import plain

    told = read_error(text)
    said, words, label = plain(told.message) or f"HTTP {status}", told.words[:4000], preset.label
    if is_loading(status, text):
        return BackendUnavailable(
            f"{label} is still loading its model.", "Wait a moment, then ask again.", reason="loading"
        )
    if words.lstrip().startswith("<"):
        return BackendError(
            f"{url} does not answer as a model server does (HTTP {status}): {said}",
            "Check the address; a proxy in between may have answered.",
            reason="bad_response",
        )
    if status in (401, 403):
        variable = preset.key or "OPENAI_COMPATIBLE_KEY"
        return BackendError(
            f"{url} refuses us (HTTP {status}).",
            f"Set {variable} in the environment to a valid key. To another machine it is sent over https only, and "
            + ("to the service's own address." if preset.is_remote else "if OPENAI_COMPATIBLE_URL names it."),
            reason="key_rejected",
        )
    if status == 429 or "rate_limit" in words:
        after = plain((headers or {}).get("retry-after", ""))[:40]
        wait = f"Ask again in {after} seconds." if after.isdigit() else f"Ask again after {after}." if after else ""
        return BackendError(f"{label} is asked too often: {said}", wait or "Wait a moment.", reason="rate_limited")
    if "grammar" in words and "parse" in words:
        return BackendError(f"{label} cannot read the grammar: {said}", "Mend the GBNF.", reason="invalid_grammar")
    if _MEMORY.search(words):
        return BackendError(
            f"The model does not fit the server's memory: {said}", "Choose a smaller model, or a smaller window.",
            reason="out_of_memory",
        )  # fmt: skip
    if _CONTEXT.search(words):
        larger = f", or {preset.raise_window}" if preset.raise_window else ""
        return ContextTooLong(f"The question and its evidence do not fit: {said}", f"Ask with less text{larger}.")
    if _NO_MODEL.search(words):
        return ModelNotFound(f"{label} does not have the model: {said}", "`docmind backends` lists its models.")
    if status in (404, 405):
        return BackendError(
            f"{url} does not answer as a model server does (HTTP {status}): {said}",
            "Check the address: it is the one that is given to OpenAI's clients, often ending in /v1.",
            reason="bad_response",
        )
    if status == 501 or "not support" in words or "unsupported" in words:
        return BackendError(f"{label} cannot do that: {said}", "Leave it out of the profile.", reason="unsupported")
    if status >= 500:
        return BackendError(f"{label} failed: {said}", "Ask again; its log says more.", reason="server_failed")
    return BackendError(f"{label} refused: {said}", "See its log.")


# Building -------------------------------------------------------------------------------------------------------------


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for one of the server's models. Nothing is loaded before `start`, `warm_up` or the first call.

    Args:
        config: Where the person's decisions are kept; the models are the server's.
        model: A name from `models`, or another name that the server has for it.
        options: Values for names in `OPTIONS`; those of a call become its defaults.

    Raises:
        BackendUnavailable: No server is there, or it is still loading.
        ModelNotFound: The server has no such model.
        BackendError: An option is unknown or out of range, the model cannot answer, or nobody knows its window
            (`window_unknown`).
    """
    given = checked_options(OPTIONS, options or {})
    found = find(config, given)[0]
    name = found.aliases.get(model, model)
    info = next((info for info in found.models if info.name == name), None)
    if info is None:
        raise not_found(model, found)
    if info.reason is not None:
        raise BackendError(f"{info.name} makes no text.", "Choose another model.", reason=info.reason)
    wanted, real = given.get("context_window"), info.context_window
    if wanted is None and real is None:
        raise BackendError(
            f"{found.preset.label} does not say how much {info.name} can read in one call.", _SAY_WINDOW,
            reason="window_unknown",
        )  # fmt: skip
    window = min(size for size in (wanted, real) if size is not None)
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.openai_compatible_llm import OpenAICompatibleLLM

    return OpenAICompatibleLLM(
        name=info.name,
        context_window=window,
        defaults={option.name: given.get(option.name, option.default) for option in CALL_OPTIONS},
        config=config,
        url=found.url,
        preset=found.preset,
        is_narrowed=wanted is not None and wanted > window,
    ).knowing(is_loaded=info.loaded)


def embedding(config: Config, model: str, options: Mapping[str, Any] | None = None) -> BaseEmbedding:
    """A LlamaIndex model that makes vectors. Few servers say which of their models do, so any can be named.

    Raises:
        BackendUnavailable: No server is there, or it is still loading.
        ModelNotFound: The server has no such model.
        BackendError: An option is unknown, or nobody said where the server is (`invalid_option`).
    """
    given = checked_options(EMBEDDING_OPTIONS, options or {})
    if not _places(given)[1]:
        # Every document is sent there: not to whatever happens to listen on a usual port.
        raise BackendError(
            "Nobody said where the server that makes the vectors is.",
            "Add its address as `url`: --set url=http://127.0.0.1:8080/v1",
            reason="invalid_option",
        )
    found = find(config, given)[0]
    name = found.aliases.get(model, model)
    if name not in [info.name for info in found.models]:
        there = ", ".join(info.name for info in found.models) or "none"
        raise ModelNotFound(f"{found.preset.label} has no model '{model}'.", f"There are: {there}.")
    from docmind.backends.openai_compatible_embedding import OpenAICompatibleEmbedding

    return OpenAICompatibleEmbedding(
        model_name=name,
        config=config,
        url=found.url,
        query_prefix=given.get("query_prefix", ""),
        passage_prefix=given.get("passage_prefix", ""),
        preset=found.preset,
        start=f"Start the server at {found.url}.",
    )


def not_found(model: str, found: Found) -> ModelNotFound:
    """The error that names the models there are."""
    there = ", ".join(info.name for info in found.models if info.reason is None) or "none"
    return ModelNotFound(f"{found.preset.label} has no model '{model}'.", f"There are: {there}.")


async def ask_not_found(config: Config, url: str, preset: Preset, model: str) -> ModelNotFound:
    """The same, for a model that has vanished since."""
    with contextlib.suppress(BackendError, TimeoutError):
        async with asyncio.timeout(LISTING_SECONDS):
            return not_found(model, await _ask(config, url, preset))
    return not_found(model, Found(url, preset, None, (), {}))
