"""`ServedLLM`: what models behind a server have in common: deadlines on tokens, counts, figures, loading ahead.

A backend that talks to a server writes `_load` and `_astream` over it. Knows no backend by name.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field, PrivateAttr

from docmind.backends.stop_strings import StopStrings
from docmind.backends.streamed_llm import StreamedLLM
from docmind.background import event_loop
from docmind.config import Config  # noqa: TC001 (pydantic reads it)
from docmind.errors import BackendError, ContextTooLong

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from concurrent.futures import Future

    from docmind.backends.streamed_llm import Prompt

_T = TypeVar("_T")

LEAST_EVALUATED = 64  # tokens; over a shorter prompt the fixed costs of a call would show, not its speed
# How far our estimate of a prompt may be off: before the server has said how it counts for this model, and after.
_UNSURE, _SURE = 0.8, 0.95
# Of our estimate, what the server must have read at least; less means that it left out the front.
_LEAST_READ_UNSURE, _LEAST_READ_SURE = 0.5, 0.7

# Tokens as the server counts them ÷ our estimate, by address and model. Kept here because a model object is made anew
# for every answer.
_ratios: dict[tuple[str, str], float] = {}


class ServedLLM(StreamedLLM):
    """A model on a server. `label` is what the server is called in messages."""

    label: ClassVar[str] = "The server"
    config: Config = Field(exclude=True, description="Where the person's decisions are kept.")
    url: str = Field(description="The server's address.")
    _is_loaded: bool = PrivateAttr(default=False)
    _load_seconds: float | None = PrivateAttr(default=None)
    _prefill_speed: float | None = PrivateAttr(default=None)
    _loading: Future[dict[str, Any]] | None = PrivateAttr(default=None)

    async def _load(self) -> dict[str, Any]:
        """Load the model, or at least see that the server is there; gives what `warm_up` returns."""
        raise NotImplementedError

    # Loading and figures

    def start(self) -> None:
        """Begin to load the model and return at once; what goes wrong is raised by the next call."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.run_coroutine_threadsafe(self._load(), event_loop())

    def warm_up(self) -> dict[str, Any]:
        """Load the model if it is not loaded, wait for it, and return `load_seconds`.

        Raises:
            BackendError: It cannot be loaded.
        """
        self.start()
        assert self._loading is not None
        return self._loading.result()

    def close(self) -> None:
        """Nothing: the model is the server's, which frees its memory as it was told; others may be using it."""

    @property
    def is_loaded(self) -> bool:
        """Whether the model was in the server's memory when it was last asked."""
        return self._is_loaded

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """How fast the server reads prompts that it has not read before; None: not measured yet."""
        return self._prefill_speed

    @property
    def load_seconds(self) -> float | None:
        """How long the server took to load the model; None: not measured."""
        return self._load_seconds

    def count_tokens_many(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself: an estimate, corrected by what the server said for this model before."""
        ratio = _ratios.get((self.url, self.name), 1.0)
        return [math.ceil(ratio * estimate) for estimate in super().count_tokens_many(texts)]

    def checked_count(self, prompt: Prompt, max_tokens: int) -> int:
        """Our count of a prompt. The tokenizer is loaded on its first use, so this belongs into a thread.

        Raises:
            ContextTooLong: It does not fit the window, by more than the count may be wrong.
        """
        counted = self.count_tokens(prompt)
        room = self.context_window - min(max_tokens, self.context_window // 4)
        margin = _SURE if (self.url, self.name) in _ratios else _UNSURE
        if counted * margin > room:
            raise ContextTooLong(
                f"The prompt has about {counted:,} tokens; the window of {self.context_window:,} leaves {room:,}.",
                "Ask with less text, or raise `context_window`.",
            )
        return counted

    def measure(self, evaluated: int, seconds: float, *, is_sure: bool) -> None:
        """Take the reading speed from a call.

        Args:
            evaluated: Tokens of the prompt that were read in `seconds`.
            is_sure: Whether those kept from an earlier call are known to be left out. Where they are not the slowest
                speed seen is believed, because a kept prefix can only make reading look faster.
        """
        if evaluated < LEAST_EVALUATED or seconds <= 0:
            return
        speed = round(evaluated / seconds, 1)
        self._prefill_speed = speed if is_sure or self._prefill_speed is None else min(speed, self._prefill_speed)

    def is_cut(self, read: int, counted: int) -> bool:
        """Whether the server must have left out part of the prompt; if not, its count corrects ours.

        Args:
            read: Tokens of the whole prompt by the server's count.
            counted: The same by ours.
        """
        if counted < LEAST_EVALUATED:
            return False
        key = (self.url, self.name)
        if read < counted * (_LEAST_READ_SURE if key in _ratios else _LEAST_READ_UNSURE):
            return True
        # Near the window the count could be that of a prompt cut a little: nothing is learned from it.
        if max(read, counted) < 0.9 * self.context_window:
            _ratios[key] = min(3.0, max(0.3, _ratios.get(key, 1.0) * read / counted))
        return False


@dataclass(slots=True)
class Writing:
    """An answer in the making. Servers differ in how they heed stop strings: those in `stops` are cut at here too."""

    counted: int  # tokens of its prompt, by our count
    stops: StopStrings = field(default_factory=StopStrings)
    text: str = ""
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    last_at: float | None = None

    def token(self) -> None:
        """A piece has come."""
        self.last_at = time.monotonic()
        self.first_at = self.first_at or self.last_at

    def take(self, piece: str) -> tuple[str, bool]:
        """What a piece of the text adds to what may be shown, and whether the answer ends there, at a stop string."""
        self.token()
        delta, is_end = self.stops.feed(piece)
        self.text += delta
        return delta, is_end

    def rest(self) -> str:
        """What could have become a stop string when the text ended."""
        rest = self.stops.rest()
        self.text += rest
        return rest

    def first_token_seconds(self, loading: float = 0.0) -> float | None:
        """From the end of loading to the first piece; None: none has come."""
        return None if self.first_at is None else round(max(0.0, self.first_at - self.asked_at - loading), 4)


class Deadlines:
    """Until when the next token must come. Bytes do not count: a server can keep a connection open for ever.

    Args:
        arguments: Of the call: `first_token_seconds`, `idle_seconds`, and `total_seconds` or None.
        label: What the server is called.
        hint: How to see what it does, "See its log"; "" where there is no such way.
    """

    def __init__(self, arguments: dict[str, Any], label: str, hint: str = "") -> None:
        now = asyncio.get_running_loop().time()
        self._label, self._hint = label, hint
        self._idle = arguments["idle_seconds"]
        self._first = arguments["first_token_seconds"]
        self._total_at = math.inf if arguments["total_seconds"] is None else now + arguments["total_seconds"]
        self._next_at = now + self._first
        self._has_begun = False

    def token(self) -> None:
        """A token has come: the time for the next one begins."""
        self._has_begun = True
        self._next_at = asyncio.get_running_loop().time() + self._idle

    async def keep(self, step: Awaitable[_T]) -> _T:
        """What a step gives, if it gives it in time.

        Raises:
            BackendError: It does not (`stalled`).
        """
        try:
            async with asyncio.timeout_at(min(self._next_at, self._total_at)):
                return await step
        except TimeoutError as error:
            raise self._stalled() from error

    def _stalled(self) -> BackendError:
        if self._total_at <= self._next_at:
            return BackendError(
                "The answer was not finished in time.", "Raise `total_seconds`, or ask for less.", reason="stalled"
            )
        name, seconds = ("idle_seconds", self._idle) if self._has_begun else ("first_token_seconds", self._first)
        hint = f"choose a smaller model, or raise `{name}`."
        return BackendError(
            f"{self._label} wrote nothing for {seconds:.0f} seconds.",
            f"{self._hint}; {hint}" if self._hint else hint.capitalize(),
            reason="stalled",
        )
