"""Which model makes the vectors: the one of `embed.py`, unless the person chose one of a backend. Knows no document.

The choice stands in the settings (`docmind settings embedding BACKEND:MODEL`); a folder in ``DOCMIND_EMBEDDING`` wins
over it. Only the vectors change: how passages are cut, and how the thirty nearest are scored anew, stays with the model
of `embed.py`. A server may change its model behind its name, so it is asked for the canary's vector with every question
and every file, and the library compares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from docmind import embed
from docmind.backends import EMBEDDING_OPTIONS, REGISTRY, backend, checked_options
from docmind.backends.places import where_text_goes
from docmind.background import event_loop
from docmind.embed import EmbeddingIdentity
from docmind.errors import BackendError, EmbeddingChanged, EmbeddingFailed
from docmind.settings import change_settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence

    from llama_index.core.base.embeddings.base import BaseEmbedding

    from docmind.backends.places import Place
    from docmind.config import Config

_T = TypeVar("_T")

_STOP_POLL_SECONDS: Final = 0.05
_WAY_BACK: Final = (
    "Go back to the search model that comes with DocMind by `docmind settings embedding default` and `docmind reindex`,"
    " or mend this one."
)
# About as long as a passage; eight of them, each its own, say how long one takes.
_PROBE: Final = [f"Passage {number}. " + 12 * f"{embed.CANARY} " for number in range(8)]

_loading = threading.Lock()
_loaded: dict[tuple[object, ...], BaseEmbedding] = {}


@dataclass(frozen=True, slots=True)
class Choice:
    """A model of a backend that the person chose to make the vectors."""

    backend: str
    model: str
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """As it stands in the settings and beside the vectors."""
        return f"{self.backend}:{self.model}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What a trial of a choice found; `url` is where texts are sent, None where they stay in this program."""

    choice: Choice
    identity: EmbeddingIdentity
    seconds_per_passage: float
    url: str | None


def chosen(config: Config) -> Choice | None:
    """The person's choice; None: the model of `embed.py`.

    Raises:
        SettingsError: The settings cannot be read. Nothing is assumed then: text could go where it must not.
    """
    if os.environ.get("DOCMIND_EMBEDDING"):
        return None
    settings = read_settings(config)
    return _read(settings.embedding, settings.embedding_options) if settings.embedding else None


def destination(config: Config, choice: Choice) -> tuple[Place, str]:
    """Whose machine reads the passages and questions, and its name. Asks no server where the address is known."""
    url = choice.options.get("url") or getattr(_loaded.get(_key(config, choice)), "url", None)
    if url is None and choice.backend in REGISTRY:
        url = backend(choice.backend).detect(config).url
    return where_text_goes(url)


def identity(config: Config, choice: Choice | None) -> EmbeddingIdentity:
    """What is stored with the vectors to notice another model; of a choice it is asked anew each time.

    Raises:
        EmbeddingFailed: The chosen model makes no vectors.
    """
    if choice is None:
        return embed.identity()
    with failing(choice):
        return _identity(choice, load(config, choice).get_text_embedding(embed.CANARY))


def embed_question(
    config: Config, choice: Choice | None, text: str, stop: threading.Event | None = None
) -> tuple[EmbeddingIdentity, np.ndarray]:
    """The model's identity, and the question's vector, (dimension,) float32, unit length.

    Raises:
        EmbeddingFailed: The chosen model makes no vectors, or `stop` was set while it was asked (`stopped`).
    """
    if choice is None:
        return embed.identity(), embed.embed_query(text)

    async def ask() -> tuple[list[float], list[float]]:
        return await model.aget_text_embedding(embed.CANARY), await model.aget_query_embedding(text)

    with failing(choice):
        model = load(config, choice)
        canary, vector = _asked(ask(), stop)
    return _identity(choice, canary), _row(vector)


def load(config: Config, choice: Choice | None) -> BaseEmbedding:
    """The LlamaIndex model; one of a backend is asked for once per process, and must be used within `failing`.

    Raises:
        BackendError: There is no such backend or model, or the backend makes no vectors (`no_vectors`).
    """
    if choice is None:
        packaged: BaseEmbedding = embed.load_embedding()  # llama_index.embeddings has no annotations
        return packaged
    key = _key(config, choice)
    with _loading:
        if key not in _loaded:
            make: Any = getattr(backend(choice.backend), "embedding", None)
            if make is None:
                raise BackendError(
                    f"{backend(choice.backend).LABEL} makes no vectors for DocMind.",
                    f"These do: {', '.join(_backends())}.",
                    reason="no_vectors",
                )
            _loaded[key] = make(config, choice.model, choice.options)
        return _loaded[key]


def _key(config: Config, choice: Choice) -> tuple[object, ...]:
    return config, choice.name, *sorted(choice.options.items())


@contextlib.contextmanager
def failing(choice: Choice | None) -> Iterator[None]:
    """Turns what a chosen model raises into an `EmbeddingFailed` that says what this stops and how to go on."""
    try:
        yield
    except BackendError as error:
        if choice is None:
            raise
        raise EmbeddingFailed(
            f"The search model {choice.name} does not work: {error}", f"{_WAY_BACK} {error.hint}", reason=error.reason
        ) from error


def check_unchanged(
    config: Config, choice: Choice | None, before: EmbeddingIdentity, vectors: Sequence[np.ndarray]
) -> None:
    """Look at vectors of a choice before they are kept: all made by the model that was there `before`.

    Raises:
        EmbeddingChanged: The server changed its model meanwhile.
    """
    if choice is None:
        return
    is_same = embed.same_model(before, identity(config, choice))
    if not is_same or any(vector.shape != before.canary.shape for vector in vectors):
        raise EmbeddingChanged(
            f"The model behind {choice.name} changed while it made vectors; none of them were kept.", "Do it again."
        )


# Choosing ---------------------------------------------------------------------------------------------------------


def choose(config: Config, name: str, options: Mapping[str, str]) -> Probe | None:
    """Try a model and keep it as the choice, with the address it was found at; "default" goes back, giving None.

    Raises:
        BackendError: It makes no vectors, or an option is unknown; nothing is changed then.
        SettingsError: It cannot be kept.
    """
    if name == "default":
        change_settings(config, lambda before: replace(before, embedding="", embedding_options={}))
        return None
    given = checked_options(EMBEDDING_OPTIONS, options)
    choice = _read(name, {option: text for option, text in given.items() if text})
    model = load(config, choice)
    found = _identity(choice, model.get_text_embedding(embed.CANARY))  # loads it
    started = time.monotonic()
    model.get_text_embedding_batch(_PROBE)
    seconds = (time.monotonic() - started) / len(_PROBE)
    url: str | None = getattr(model, "url", None)
    if url is not None:
        choice = replace(choice, options={**choice.options, "url": url})
    change_settings(
        config, lambda before: replace(before, embedding=choice.name, embedding_options=dict(choice.options))
    )
    return Probe(choice, found, seconds, url)


def _read(name: str, options: Mapping[str, str]) -> Choice:
    """A choice as it is written, "backend:model"; names of backends have no colon."""
    owner, _, model = name.strip().partition(":")
    return Choice(owner, model, options)


def _backends() -> list[str]:
    """The backends that have models for vectors."""
    return [name for name in REGISTRY if hasattr(backend(name), "embedding")]


# Vectors ----------------------------------------------------------------------------------------------------------


def _identity(choice: Choice, canary: Sequence[float]) -> EmbeddingIdentity:
    return EmbeddingIdentity(choice.name, len(canary), _row(canary))


def _row(vector: Sequence[float]) -> np.ndarray:
    return embed.unit(np.asarray(vector, dtype=np.float32))


def _asked(question: Coroutine[Any, Any, _T], stop: threading.Event | None) -> _T:
    """What a question to a server gives; a stop ends the waiting, and the question."""
    future = asyncio.run_coroutine_threadsafe(question, event_loop())
    while True:
        try:
            return future.result(_STOP_POLL_SECONDS)
        except TimeoutError:
            if future.done():
                raise
            if stop is not None and stop.is_set():
                future.cancel()
                raise EmbeddingFailed("Stopped.", reason="stopped") from None
