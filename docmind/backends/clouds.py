"""What the clouds have in common: their options, whether one can be asked, their models, and building one.

A cloud's own file holds a `Cloud` and how its stream is read; both are imported to draw a list, so nothing here imports
LlamaIndex, an HTTP client or a cloud's package at the top. `cloud_llm.py` is the model itself. Knows no cloud by name.

*Why the packages' own clients do not send.* They send a request again on an error, follow redirects with the whole
prompt, use a proxy named in the environment, and take the end of a stream for the end of an answer. So LlamaIndex's
integration writes the request (its forms of messages, its tables of windows and of what a model refuses), the cloud's
own package reads the stream, and `cloud_transport.py` does the sending under both.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from docmind.backends import DEADLINES, Detection, ModelInfo, Option, checked_options
from docmind.errors import BackendError, BackendUnavailable, ModelNotFound
from docmind.keys import find_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from llama_index.core.llms import LLM, ChatMessage

    from docmind.backends.cloud_transport import Transport
    from docmind.config import Config

CONNECT_SECONDS = 5.0
LISTING_SECONDS = 5.0  # for everything that is asked before a first call
_NAME = re.compile(r"[\w.\-:/@+]{1,200}")

# How an answer ended: complete, at its limit, held back by the provider, with a call of a tool, or by a failure there.
End = Literal["stop", "length", "filtered", "tool", "failed"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new in a stream; what it does not say is left as it is."""

    text: str = ""
    thinking: str = ""
    finish: str | None = None  # the provider's own word for the end
    prompt_tokens: int | None = None  # of the whole prompt, what was read before included
    cached_tokens: int | None = None
    answer_tokens: int | None = None  # thoughts included


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a cloud. What it is given is checked; where it goes is the transport's affair."""

    model: str
    url: str
    messages: list[ChatMessage]  # system, assistant and user, of text
    arguments: dict[str, Any]  # by our names, without those that are None or that the model has refused
    settings: dict[str, Any]  # values of the options that are no arguments
    refused: frozenset[str]  # arguments that the model has refused before
    key: str = field(repr=False)
    transport: Transport
    left_out: list[str] = field(default_factory=list)  # arguments that are not sent, for the last response

    def named(self, names: Mapping[str, str], *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """The arguments by the provider's names; of `without` it is said that they were left out.

        Args:
            names: Ours → the provider's; `stop` is cut to four, since what is left is looked for here too.
        """
        self.left_out.extend(name for name in without if name in self.arguments and name != "stop")
        given = {names[n]: v for n, v in self.arguments.items() if n in names and n not in without}
        if "stop" in names and names["stop"] in given:
            given[names["stop"]] = given[names["stop"]][:4]  # as many as every provider takes
        return given


@dataclass(frozen=True, slots=True)
class Cloud:
    """What is particular about one."""

    name: str  # in the registry
    label: str
    requirement: str  # of the extra: "llama-index-llms-…>=1,<2"
    modules: tuple[str, ...]  # LlamaIndex's integration, and what the package imports only when it is used
    options: tuple[Option, ...]
    address: Callable[[Mapping[str, Any]], str]  # from the options; "" while it is not known
    missing: str  # a hint for who has not said yet who asks
    headers: Callable[[str], dict[str, str]]  # with which models are listed, from the key
    listing: str  # a path below the address
    read_models: Callable[[dict[str, Any], Mapping[str, Any]], list[ModelInfo]]
    window: Callable[[str], int]  # of a model by the integration's table; ValueError: it is not there
    ends: Mapping[str, End]  # the provider's words for the end of an answer
    pieces: Callable[[Call], AsyncGenerator[Piece, None]]
    variables: tuple[str, ...] = ()  # in the environment, where the key may stand
    find: Callable[[str, Mapping[str, Any]], str | None] | None = None  # the key, where it is found otherwise
    example: str = ""  # of an address, where there is no usual one
    has_listing: bool = True  # whether `listing` names the models; else it is a place that something answers at
    wire: Mapping[str, str] = field(default_factory=dict)  # our names of arguments → the provider's, where they differ

    def key(self, url: str, options: Mapping[str, Any]) -> str | None:
        """The key for an address, or what stands for one; None: there is none."""
        return self.find(url, options) if self.find else find_key(url, self.variables)

    @property
    def call_options(self) -> tuple[Option, ...]:
        """The options that may be given with a call."""
        return tuple(option for option in self.options if option.per_call)

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
        return f'pip install "{self.requirement}"'


def options(
    url: str, *, hottest: float = 2.0, top_k: bool = False, seed: bool = False, more: tuple[Option, ...] = ()
) -> tuple[Option, ...]:
    """The options of a cloud.

    Args:
        url: What its address is by default, in words.
        hottest: The highest temperature it takes.
        more: Those of its own.
    """
    usual = "by default as the model's maker says."
    sampling = [
        Option("temperature", float, 0.1, "", "0 always takes the likeliest word; higher is more varied. Left out for "
               "models that refuse it.", 0, hottest, per_call=True),
        Option("top_p", float, None, "", "Words are taken from the likeliest that together reach this share; " + usual,
               0, 1, per_call=True),
    ]  # fmt: skip
    if top_k:
        sampling.append(Option("top_k", int, None, "words", "Words are taken from so many of the likeliest; " + usual,
                               0, 500, per_call=True))  # fmt: skip
    if seed:
        sampling.append(Option("seed", int, None, "", "The same number makes answers alike; by default a new one.", 0,
                               (1 << 31) - 1, per_call=True))  # fmt: skip
    return (
        Option("url", str, None, "address", f"Where the service is; by default {url}."),
        *more,
        Option("context_window", int, None, "tokens", "What the model can read and write in one call; by default what "
               "the service or LlamaIndex's table says. Every token that is read is paid for.", 256, 1 << 24),
        Option("max_tokens", int, 2048, "tokens", "The longest answer, a reasoning model's thoughts included.", 1,
               1 << 20, per_call=True),
        *sampling,
        Option("stop", list, None, "texts", "The answer ends in front of any of these.", per_call=True),
        *DEADLINES,
    )  # fmt: skip


def address(option: str, variable: str, usual: str = "") -> Callable[[Mapping[str, Any]], str]:
    """Where a service is: what the option says, else the environment, else the usual place."""
    return lambda given: str(given.get(option) or os.environ.get(variable, "").strip() or usual).rstrip("/")


# What is there --------------------------------------------------------------------------------------------------------


def detect(cloud: Cloud, config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether a cloud can be asked, with its models. Without a key nothing is sent anywhere."""
    given = {name: value for name, value in (options or {}).items() if value is not None}
    url = cloud.address(given) or cloud.example
    try:
        key = _checked_key(cloud, url, given)
        found = _listed(cloud, config, url, key, given)
    except BackendError as absence:
        return Detection(cloud.name, cloud.label, False, absence.reason, absence.hint, url, None, ())
    if not any(model.reason is None for model in found):
        return Detection(cloud.name, cloud.label, False, "no_model", cloud.missing, url, None, tuple(found))
    return Detection(cloud.name, cloud.label, True, None, None, url, None, tuple(found))


def _checked_key(cloud: Cloud, url: str, given: Mapping[str, Any]) -> str:
    """The key.

    Raises:
        BackendUnavailable: The package or the key is missing.
    """
    try:
        importlib.metadata.distribution(cloud.requirement.partition(">")[0])
    except importlib.metadata.PackageNotFoundError as error:
        raise _not_installed(cloud) from error
    key = cloud.key(url, given) if url != cloud.example else None
    if not key:
        raise BackendUnavailable(f"{cloud.label} does not know who asks.", cloud.missing, reason="key_missing")
    return key


def _not_installed(cloud: Cloud) -> BackendUnavailable:
    return BackendUnavailable(
        f"The Python packages for {cloud.label} are missing.", f"Run: {cloud.install}", reason="not_installed"
    )


def _listed(cloud: Cloud, config: Config, url: str, key: str, given: Mapping[str, Any]) -> list[ModelInfo]:
    """The models, within a few seconds. A listing carries no text.

    Raises:
        BackendError: The service is not there, or refuses.
    """
    from docmind.backends.careful_http import wait_for
    from docmind.backends.cloud_transport import not_there

    async def ask() -> list[ModelInfo]:
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                return await ask_models(cloud, config, url, key, given)
        except (BackendUnavailable, TimeoutError) as error:
            raise not_there(url, cloud.label) from error

    return wait_for(ask())


async def ask_models(cloud: Cloud, config: Config, url: str, key: str, given: Mapping[str, Any]) -> list[ModelInfo]:
    """What the service lists, by name.

    Raises:
        BackendError: It is not there, or refuses.
    """
    import httpx

    from docmind.backends.careful_http import HEADERS, bad_response, client_settings, fetch
    from docmind.backends.cloud_transport import refusal

    settings = client_settings(config, url, CONNECT_SECONDS, carries_text=False)
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, **settings) as client:
        client.headers.update(cloud.headers(key))
        try:
            status, answer = await fetch(client, "GET", cloud.listing)
        except BackendError as error:
            if cloud.has_listing or error.reason != "bad_response":
                raise
            status, answer = 200, {}  # something is there, and that is all that was asked
    if status == 404 and cloud.has_listing:
        raise bad_response("It has no list of models there.")
    if status >= 400 and (cloud.has_listing or status in (401, 429) or status >= 500):
        said = {"message": str(answer).replace(key, "…")}
        raise refusal(status, said, {}, label=cloud.label, url=url)
    found = [model for model in cloud.read_models(answer, given) if _NAME.fullmatch(model.name)]
    return sorted(found, key=lambda model: model.name)


def listed(name: str, window: int | None = None, *, writes: bool = True) -> ModelInfo:
    """A model as a cloud lists it."""
    return ModelInfo(name, window, None, None, True, reason=None if writes else "no_text_generation")


def entries(answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The entries of a listing that are any."""
    found = answer.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


# Building -------------------------------------------------------------------------------------------------------------


def build(cloud: Cloud, config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model of a cloud. The key is looked up for each call and never part of the model.

    Raises:
        BackendUnavailable: The package or the key is missing, or the service is not there.
        ModelNotFound: It has no such model.
        BackendError: An option is unknown or out of range, the model cannot answer, nobody knows its window
            (`window_unknown`), or the service refuses.
    """
    given = checked_options(cloud.options, options or {})
    url = cloud.address(given) or cloud.example
    key = _checked_key(cloud, url, given)
    try:
        for name in cloud.modules:  # now and not with the first question, when it would hold up the event loop
            importlib.import_module(name)
    except ImportError as error:
        raise _not_installed(cloud) from error
    there = _listed(cloud, config, url, key, given)
    info = next((info for info in there if info.name == model), None)
    if info is None:
        usable = ", ".join(info.name for info in there if info.reason is None) or "none"
        others = "" if cloud.has_listing else " Others are named in the option `models`."
        raise ModelNotFound(f"{cloud.label} has no model '{model}'.", f"There are: {usable}.{others}")
    if info.reason is not None:
        raise BackendError(f"{model} makes no text.", "Choose another model.", reason=info.reason)
    from docmind.backends.cloud_llm import CloudLLM

    return CloudLLM(
        name=model,
        context_window=_window(cloud, model, info.context_window, given),
        defaults={option.name: given.get(option.name, option.default) for option in cloud.call_options},
        config=config,
        url=url,
        cloud=cloud.name,
        settings={
            option.name: given.get(option.name, option.default)
            for option in cloud.options
            if not option.per_call and option.name not in ("url", "context_window")
        },
    )


def _window(cloud: Cloud, model: str, told: int | None, given: Mapping[str, Any]) -> int:
    """Tokens of the window: the smaller of what the person and the service say.

    Raises:
        BackendError: Nobody says it (`window_unknown`).
    """
    if told is None:
        try:
            told = cloud.window(model)
        except ValueError:
            told = None
    wanted = given.get("context_window")
    if told is None and wanted is None:
        raise BackendError(
            f"Nobody knows how much {model} can read in one call.",
            "Look it up at the provider, and say it in the profile: context_window = 128000",
            reason="window_unknown",
        )
    return min(size for size in (told, wanted) if size is not None)
