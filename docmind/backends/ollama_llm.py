"""`OllamaLLM`: the LlamaIndex face of a model on an Ollama server. Made by `ollama.build`.

*Why not LlamaIndex's `Ollama`*: its stream does not show the done marker, so an answer that broke off looks like a
finished one; it drops chunks without content, and its arguments for a single call. *Why the official client is
subclassed*: it follows redirects with the whole prompt, uses a proxy named in the environment for a server on this
machine, sends OLLAMA_API_KEY to any host, stumbles over empty lines, reads a line of any length, and drops
`prompt_eval_cached_count`. Its methods and request types are used as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import ollama
from pydantic import Field, PrivateAttr

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
)
from docmind.backends.ollama import (
    CALL_OPTIONS,
    CONNECT_SECONDS,
    LISTING_SECONDS,
    START,
    ask_not_found,
    key_header,
    loaded_windows,
    refusal,
)
from docmind.backends.streamed_llm import Prompt, StreamedLLM, plain_messages, response
from docmind.background import event_loop
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
    from concurrent.futures import Future

    from llama_index.core.llms import ChatResponse

_T = TypeVar("_T")

# Our names for Ollama's own, where they differ.
_OLLAMA_NAMES = {"max_tokens": "num_predict"}
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop")
_THINKING: dict[str, bool | str] = {"on": True, "off": False}  # the other words go as they are

_LEAST_EVALUATED = 64  # tokens; over a shorter prompt the fixed costs of a call would show, not its speed
# How far our estimate of a prompt may be off: before the server has said how it counts for this model, and after.
_UNSURE, _SURE = 0.8, 0.95
# Of our estimate, what the server must have read at least; less means that it left out the front.
_LEAST_READ_UNSURE, _LEAST_READ_SURE = 0.5, 0.7
# These versions count only what was not read before: ollama #16414, mended by #16428.
_COUNTS_ONLY_NEW = re.compile(r"0\.30\.")

# Tokens as the server counts them ÷ our estimate, by address and model. Kept here because a model object is made anew
# for every answer.
_ratios: dict[tuple[str, str], float] = {}


class OllamaLLM(StreamedLLM):
    """A model on an Ollama server, over its native /api/chat. What its responses carry is told in `streamed_llm`.

    *The window.* Every request says `num_ctx`, because the server's default is smaller than what models were trained
    for, and `truncate` and `shift` false: otherwise Ollama leaves out the front of what does not fit, the instructions
    first, and answers all the same (ollama #4967, #3839; the switches: #17944, #16800). Servers before October 2025 do
    not know them, so a prompt that is too long by our own estimate is refused before it is sent; and where the server's
    count is far below ours, the last response carries `context_cut`.

    *The server's count.* `prompt_eval_count` is that of the whole prompt, with what was read before and kept (ollama
    pull request #5371; 0.30.0 to the mending in #16428 counted only what was new, so nothing is concluded from those).
    Newer servers say in `prompt_eval_cached_count` how much of it was kept; without it the slowest reading speed seen
    is believed, because a kept prefix can only make reading look faster.

    Arguments of a call: the names in `ollama.OPTIONS` marked `per_call`.

    Raises, from every call:
        BackendUnavailable: The server is not there.
        ModelNotFound: It has no such model any more.
        ContextTooLong: The prompt does not fit the window.
        BackendError: `stalled` (a deadline passed), `no_end_marker`, `bad_response`, `key_rejected`, `rate_limited`,
            `out_of_memory`, `unsupported`, or an argument is unknown or out of range.
    """

    call_options = CALL_OPTIONS
    url: str = Field(description="The server's address.")
    keep_alive: str = Field(description="How long the model stays in memory after an answer.")
    gpu_layers: int | None = Field(default=None, description="Layers kept on the GPU; None: Ollama decides.")
    version: str | None = Field(default=None, description="The server's version.")
    _is_loaded: bool = PrivateAttr(default=False)
    _load_seconds: float | None = PrivateAttr(default=None)
    _prefill_speed: float | None = PrivateAttr(default=None)
    _loading: Future[dict[str, Any]] | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_ollama"

    def knowing(self, loaded: Mapping[str, int | None]) -> OllamaLLM:
        """The same object, which knows what is in the server's memory: a model with another window is loaded anew."""
        self._is_loaded = self.name in loaded and loaded[self.name] in (None, self.context_window)
        return self

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
        """Nothing: the model is the server's, which frees its memory as `keep_alive` says; others may be using it."""

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

    # One call

    async def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """What the server writes, until its done marker. Leaving it closes the connection, which stops the model."""
        if isinstance(prompt, str):
            raise BackendError(
                "Ollama puts every prompt through the model's chat template.", "Ask with messages.",
                reason="unsupported",
            )  # fmt: skip
        # In a thread: the tokenizer is loaded on its first use, and a long prompt takes a while.
        counted = await asyncio.to_thread(self._checked_count, prompt, arguments["max_tokens"])
        async with _Client(self.url) as client:
            self._is_loaded = await self._look(client)
            yield response("", phase="reading" if self._is_loaded else "loading")
            answer = _Answer(counted)
            deadlines = _Deadlines(arguments)
            events = client.events(**self._request(arguments), messages=plain_messages(prompt))
            async with contextlib.aclosing(events):
                while (event := await deadlines.keep(anext(events, None))) is not None:
                    self._is_loaded = True
                    message = event.get("message")
                    message = message if isinstance(message, dict) else {}
                    if thought := clean(message.get("thinking")):
                        deadlines.token()
                        answer.first()
                        yield response(answer.text, phase="thinking", thinking=thought)
                    if delta := clean(message.get("content")):
                        deadlines.token()
                        answer.first()
                        answer.text += delta
                        yield response(answer.text, delta, phase="writing")
                    if event.get("done") is True:
                        yield self._last(answer, event)
                        return

    def _checked_count(self, prompt: Prompt, max_tokens: int) -> int:
        """Our count of a prompt.

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

    async def _look(self, client: _Client) -> bool:
        """Whether the model is in memory with our window; a server that does not tell counts as yes."""
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                loaded = loaded_windows(await client.running())
        except BackendUnavailable as absence:
            raise BackendUnavailable(str(absence), START) from absence
        except (BackendError, TimeoutError):
            return True
        return self.name in loaded and loaded[self.name] in (None, self.context_window)

    def _request(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What every request says."""
        options = {"num_ctx": self.context_window}
        if self.gpu_layers is not None:
            options["num_gpu"] = self.gpu_layers
        for name in _SAMPLING:
            if arguments.get(name) is not None:
                options[_OLLAMA_NAMES.get(name, name)] = arguments[name]
        thinking = arguments.get("thinking")
        return {
            "model": self.name,
            "options": options,
            # A number without a unit is seconds, and must be sent as a number.
            "keep_alive": int(self.keep_alive) if self.keep_alive.lstrip("-").isdigit() else self.keep_alive,
            "think": _THINKING.get(thinking, thinking) if thinking is not None else None,
        }

    def _last(self, answer: _Answer, event: dict[str, Any]) -> ChatResponse:
        """The last response, with its figures.

        Raises:
            BackendError: The event does not say that an answer was completed.
        """
        done_reason = event.get("done_reason", "stop")  # old servers say none
        if done_reason not in ("stop", "length"):  # "load" and "unload" answer a request without messages
            raise BackendError(
                f"Ollama ended the answer without completing it ({plain(clean(done_reason))}).", "Ask again.",
                reason="no_end_marker",
            )  # fmt: skip
        read, cached = count(event.get("prompt_eval_count")), count(event.get("prompt_eval_cached_count"))
        prefill, loading = _seconds(event.get("prompt_eval_duration")), _seconds(event.get("load_duration"))
        written, writing = count(event.get("eval_count")), _seconds(event.get("eval_duration"))
        if read is not None and prefill:
            self._measure(read - (cached or 0), prefill, is_sure=cached is not None)
        first = None if answer.first_at is None else max(0.0, answer.first_at - answer.asked_at - (loading or 0.0))
        figures: dict[str, Any] = {
            "finish_reason": done_reason,
            "prompt_tokens": read,
            "counted_tokens": answer.counted,
            "cached_tokens": cached,
            "answer_tokens": written,
            "prefill_seconds": prefill,
            "first_token_seconds": None if first is None else round(first, 4),
            "tokens_per_second": round(written / writing, 2) if written and writing else None,
            "context_window": self.context_window,
        }
        if read is not None and self._is_cut(read, answer.counted):
            figures["context_cut"] = True
        return response(answer.text, phase="writing", **figures)

    def _measure(self, evaluated: int, seconds: float, *, is_sure: bool) -> None:
        """Take the reading speed from a call; see the class about `is_sure`."""
        if evaluated < _LEAST_EVALUATED:
            return
        speed = round(evaluated / seconds, 1)
        self._prefill_speed = speed if is_sure or self._prefill_speed is None else min(speed, self._prefill_speed)

    def _is_cut(self, read: int, counted: int) -> bool:
        """Whether the server must have left out part of the prompt; if not, its count corrects ours."""
        if counted < _LEAST_EVALUATED or _COUNTS_ONLY_NEW.match(self.version or ""):
            return False
        key = (self.url, self.name)
        if read < counted * (_LEAST_READ_SURE if key in _ratios else _LEAST_READ_UNSURE):
            return True
        # Near the window the count could be that of a prompt cut a little: nothing is learned from it.
        if max(read, counted) < 0.9 * self.context_window:
            _ratios[key] = min(3.0, max(0.3, _ratios.get(key, 1.0) * read / counted))
        return False

    async def _load(self) -> dict[str, Any]:
        """Load the model: Ollama's documented way is a request without messages."""
        request = self._request({})
        if request["keep_alive"] == 0:  # that would be the documented way to unload it
            return {}
        started = time.monotonic()
        async with _Client(self.url) as client:
            was_loaded = await self._look(client)
            events = client.events(**request, messages=[])
            async with contextlib.aclosing(events):
                deadlines = _Deadlines(self.defaults)
                while (event := await deadlines.keep(anext(events, None))) is not None:
                    if event.get("done") is True:
                        break
        self._is_loaded = True
        if not was_loaded:
            self._load_seconds = round(time.monotonic() - started, 3)
        return {"load_seconds": self._load_seconds}


class _Client(ollama.AsyncClient):
    """The official client, careful about where it sends things and what comes back (see the module's docstring)."""

    def __init__(self, url: str) -> None:
        super().__init__(url, headers=HEADERS, **client_settings(url, CONNECT_SECONDS))
        self._url = url
        self._client.headers.pop("authorization", None)
        self._client.headers.update(key_header(url))

    async def running(self) -> dict[str, Any]:
        """What /api/ps says."""
        status, answer = await fetch(self._client, "GET", "/api/ps")
        if status >= 400:
            raise refusal(status, str(answer.get("error")), self._url)
        return answer

    async def events(self, **request: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a chat.

        Raises:
            BackendError: The server refuses, or sends something that is no event.
        """
        events: Any = await self.chat(stream=True, **request)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def _request(self, cls: Any, method: str, path: str, *, json: Any, stream: bool) -> Any:  # type: ignore[override]
        """Called by `chat` with the finished request; gives its events."""
        return self._read(method, path, {**json, "truncate": False, "shift": False})

    async def _read(self, method: str, path: str, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        with converted(self._client):
            async with self._client.stream(method, path, json=request) as answer:
                refuse_redirect(answer)
                if answer.status_code >= 400:
                    await self._refuse(answer.status_code, await read_whole(answer), request["model"])
                async for event in read_lines(answer):
                    if "error" in event:
                        await self._refuse(200, str(event["error"]).encode(), request["model"])
                    yield event

    async def _refuse(self, status: int, body: bytes, model: str) -> None:
        """Raise the error for a refusal."""
        text = body.decode("utf-8", "replace")
        if (found := re.search(r'"error"\s*:\s*"(.*)"', text, re.DOTALL)) is not None:
            text = found[1]
        if "not found" in text.lower() and "model" in text.lower():
            raise await ask_not_found(self._url, model)
        raise refusal(status, text, self._url)


@dataclass(slots=True)
class _Answer:
    """An answer in the making."""

    counted: int
    text: str = ""
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None

    def first(self) -> None:
        """A piece has come."""
        self.first_at = self.first_at or time.monotonic()


class _Deadlines:
    """Until when the next token must come. Bytes do not count: a server can keep a connection open for ever."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        now = asyncio.get_running_loop().time()
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
        return BackendError(
            f"Ollama wrote nothing for {seconds:.0f} seconds.",
            f"See `ollama ps`; choose a smaller model, or raise `{name}`.",
            reason="stalled",
        )


def _seconds(nanoseconds: object) -> float | None:
    """Ollama's durations in seconds."""
    value = count(nanoseconds)
    return None if value is None else round(value / 1e9, 4)
