"""The registry of backends: software that runs a model, one file each.

A backend is a module with the few names of `Backend`; adding one is two files and one line in `REGISTRY`, as
docs/add-a-backend.md tells.
Importing this package loads none of them: a backend's file is imported when it is asked for, and what it needs
(LlamaIndex, a client library) when `build` is called. Nothing here knows documents or pages of the app.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from docmind.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llama_index.core.llms import LLM

    from docmind.config import Config

REGISTRY: dict[str, str] = {
    "llama.cpp": "docmind.backends.llama_cpp",
    "ollama": "docmind.backends.ollama",
    "lm-studio": "docmind.backends.lm_studio",
    "openai-compatible": "docmind.backends.openai_compatible",
    "transformers": "docmind.backends.transformers",
    "openai": "docmind.backends.openai",
    "azure-openai": "docmind.backends.azure_openai",
    "anthropic": "docmind.backends.anthropic",
    "mistral": "docmind.backends.mistral",
    "cohere": "docmind.backends.cohere",
    "bedrock": "docmind.backends.bedrock",
    "gemini": "docmind.backends.google_gemini",
    "vertex": "docmind.backends.google_vertex",
}
GGUF_BACKEND: Final = "llama.cpp"  # which a GGUF file from a hub is for

# Architectures of models that turn text into vectors, or pictures into tokens; they cannot answer.
NOT_WRITING = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "modern-bert", "clip", "gemma-embedding"}
)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a backend can run, as far as is known without loading it."""

    name: str
    context_window: int | None  # tokens it was trained to read, or is bound to in memory as it is; None: unknown
    size_bytes: int | None
    quantization: str | None  # as the backend names it, "Q4_K_M"
    loaded: bool  # in memory now
    path: Path | None = None  # of its file, where it has one
    reason: str | None = None  # why it cannot be used; None: it can, as far as is known
    memory_bytes: int | None = None  # that it holds now, of GPU and RAM together; None: none, or not known
    gpu_bytes: int | None = None  # the part of it that is on GPUs
    remote_url: str | None = None  # of the machine that really runs it, where the server passes it on


@dataclass(frozen=True, slots=True)
class Detection:
    """Whether a backend is there, and if not what to do."""

    backend: str
    label: str
    available: bool
    reason: str | None
    hint: str | None
    url: str | None
    version: str | None
    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """A setting of a backend: enough to draw a form field, to check a value and to document it."""

    name: str
    kind: type  # int, float, str, bool, list (of str), or dict, which no backend's option is
    default: Any  # None: left to the backend, as `description` says
    unit: str  # "" where it has none
    description: str
    minimum: float | None = None
    maximum: float | None = None
    per_call: bool = False  # may also be given with a single call; the others shape how the model is loaded
    choices: tuple[str, ...] = ()  # of a text, the only ones there are


# Of a model that makes vectors, the same for every backend that has some.
EMBEDDING_OPTIONS: tuple[Option, ...] = (
    Option("url", str, None, "address", "Where the server listens; by default as for the backend's chat models."),
    Option("query_prefix", str, "", "text", "Put in front of every question, where the model was trained with it."),
    Option("passage_prefix", str, "", "text", "Put in front of every passage; another one asks for a new index."),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something is that takes a while: a download, a load."""

    doing: str  # "downloading", "checking", "loading", … as it is shown
    done: int = 0
    total: int | None = None  # None: nobody knows
    unit: str = "bytes"  # or "%", or "tokens"


# Until when words of a server must come, among the options of every backend that has one (`served_llm.Deadlines`).
DEADLINES: tuple[Option, ...] = (
    Option("first_token_seconds", float, 300.0, "seconds", "The longest wait for the first word; loading a large model "
           "takes minutes.", 1, 86_400, per_call=True),
    Option("idle_seconds", float, 60.0, "seconds", "The longest wait between two words.", 1, 86_400, per_call=True),
    Option("total_seconds", float, None, "seconds", "The longest answer in time; by default without limit.", 1, 86_400,
           per_call=True),
)  # fmt: skip


class Backend(Protocol):
    """The names a backend module has.

    One that can do more has some of these functions too; the Models page has a button for each that is there:

    - `pull(config, model, options=None, *, progress, stop)`: fetch a model; partly fetched ones go on where they ended.
    - `delete(config, model, options=None)`: remove a model from the disk.
    - `load(config, model, options=None, *, progress, stop)`: bring a model into memory.
    - `unload(config, model, options=None)`: free its memory.
    - `fit(config, model, options=None)`: whether a model fits this machine now, a `docmind.backends.fits.Fit`; it only
      looks.

    They are synchronous, report each step by `progress(Progress(…))`, end within a second once `stop` (a
    `threading.Event`) is set, and raise a `BackendError` for what goes wrong.

    `embedding(config, model, options=None)`, where a backend has models that make vectors (`models` lists them as
    `no_text_generation`), gives a LlamaIndex `BaseEmbedding` for one of them, with `url`, the address that texts are
    sent to. Its options are `EMBEDDING_OPTIONS`. It may ask the server whether the model is there;
    `docmind.backends.served_embedding` has the rest.

    `close_unused(above_bytes)`, where models live in processes of ours, ends those that nobody uses and that hold more.

    `how_to_get(config, model)`, where it is there, says in a sentence how to get a model that is not: a command comes
    last, after "Run: ".
    """

    LABEL: str
    OPTIONS: tuple[Option, ...]

    def detect(self, config: Config, options: Mapping[str, Any] | None = None) -> Detection:
        """Whether the backend is there, with its models; never raises for an absence.

        Args:
            options: As for `build`; one that says where the backend is (`url`) is heeded, the others do not matter.
        """
        ...

    def models(self, config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
        """The models it can run; none where it is not there."""
        ...

    def build(self, config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
        """A LlamaIndex model; `options` are values for names in `OPTIONS`."""
        ...


def backend(name: str) -> Backend:
    """The module of a backend.

    Raises:
        BackendUnavailable: No backend has that name.
    """
    if name not in REGISTRY:
        raise BackendUnavailable(
            f"There is no backend '{name}'.", f"{_nearest(name, list(REGISTRY))}", reason="backend_unknown"
        )
    return cast("Backend", importlib.import_module(REGISTRY[name]))


def checked_options(options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values after a check of name, type and range; None stands for the default.

    Raises:
        BackendError: A name is unknown (`unknown_option`) or a value does not fit (`invalid_option`).
    """
    known = {option.name: option for option in options}
    checked: dict[str, Any] = {}
    for name, value in given.items():
        option = known.get(name)
        if option is None:
            raise BackendError(f"There is no option '{name}'.", _nearest(name, list(known)), reason="unknown_option")
        if value is None:
            continue
        checked[name] = _checked_value(option, value)
    return checked


def _checked_value(option: Option, value: Any) -> Any:
    """The value in the option's type; a whole number may stand for a float."""
    if option.kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int: True must not pass for a number.
    fits = type(value) is option.kind or (isinstance(value, option.kind) and not isinstance(value, bool))
    if fits and option.kind is list:
        fits = all(isinstance(part, str) and part for part in value)
    if fits and option.choices:
        fits = value in option.choices
    if fits and option.kind in (int, float):
        # Written so that NaN, which compares false with everything, does not pass.
        fits = (option.minimum is None or value >= option.minimum) and (
            option.maximum is None or value <= option.maximum
        )
        fits = fits and value == value
    if not fits:
        raise BackendError(
            f"{value!r} is no value for '{option.name}'.", f"It takes {_accepted(option)}.", reason="invalid_option"
        )
    if option.unit == "address" and any(mark in value for mark in "@?#"):  # it is shown and kept, and a key must not be
        raise BackendError(
            f"The address in '{option.name}' holds more than scheme, host, port and path.",
            "Leave out names, passwords and keys, and whatever follows ? or #. A key is kept with "
            "`docmind keys keep ADDRESS`, or on the Models page.",
            reason="invalid_option",
        )
    return value


def _accepted(option: Option) -> str:
    """What an option accepts, in words."""
    if option.choices:
        return "one of " + ", ".join(choice or '""' for choice in option.choices)
    words = {
        int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list of texts",
        dict: "a table",
    }  # fmt: skip
    text = words.get(option.kind, option.kind.__name__)
    if option.minimum is not None and option.maximum is not None:
        return f"{text} from {option.minimum:g} to {option.maximum:g}"
    return f"{text} of at least {option.minimum:g}" if option.minimum is not None else text


def _nearest(name: str, known: list[str]) -> str:
    """A hint that names what was probably meant, and all there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return (f"Did you mean '{close[0]}'? " if close else "") + f"There are: {', '.join(sorted(known))}."
