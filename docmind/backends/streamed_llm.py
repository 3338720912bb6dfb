"""`StreamedLLM`: what every model of DocMind has in common. A backend writes one stream and inherits all.

LlamaIndex wants eight ways to call a model; all of them are made here from `_astream`, the synchronous ones over the
one event loop (`docmind.background`). So are stopping, the proof that an answer is complete, and what `answer.py` uses
beside LlamaIndex. docs/add-a-backend.md shows the smallest backend.

*What `raw` says.* Every response carries a dictionary:

- `phase`: "waiting" (with `ahead`, the questions before this one), "loading" and "reading" (with `done` and `total`
  where they are known: percent and tokens), "thinking" or "writing".
- A thinking model's thoughts come as responses with phase "thinking", `delta` "" and the new piece in
  `additional_kwargs["thinking_delta"]`. They never become part of the content.
- Only the last response has a `finish_reason`: "stop", "length", or "stopped" by `stop`. With it come the figures, as
  far as they are known (a missing one is unknown, as is None):

  | name | meaning |
  |---|---|
  | `prompt_tokens` | of the prompt, as the model counted them |
  | `counted_tokens` | of the prompt, by our own count before sending |
  | `cached_tokens` | of the prompt, read by an earlier call |
  | `answer_tokens` | written, thoughts included |
  | `prefill_seconds` | reading the prompt |
  | `first_token_seconds` | from the end of loading to the first piece |
  | `tokens_per_second` | of writing |
  | `context_window` | tokens the model was given for prompt and answer |
  | `settings_left_out` | arguments of the call that the server refused, so that it was asked without them |
  | `context_cut` | True when the server must have left out part of the prompt; otherwise absent |

- A stream that ends without a `finish_reason` was not completed: the call raises `BackendError` with the reason
  `no_end_marker`, whatever was written before.

*Limitations*: text in, text out; no function calling. LlamaIndex's callback events are not sent: they copy all messages
at every token.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from llama_index.core.base.llms.types import TextBlock
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from pydantic import Field, PrivateAttr

from docmind.backends import checked_options
from docmind.background import follow, is_on_the_event_loop
from docmind.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

    from docmind.backends import Option

_T = TypeVar("_T")
_R = TypeVar("_R", ChatResponse, CompletionResponse)

_CLOSE_SECONDS = 0.5  # given to a stopped stream to close its connection; a stop takes less than a second in all
# LlamaIndex's roles in the three words every chat template knows; the others are the person's.
_ROLES = {
    "system": "system", "developer": "system", "assistant": "assistant", "chatbot": "assistant", "model": "assistant",
}  # fmt: skip


class StreamedLLM(LLM):
    """A model that streams.

    A backend gives `call_options` and `_astream`, and overrides what it can do better than the defaults.
    `complete` and its siblings ask the prompt as one message of the person; with `formatted=True` the model gets it as
    it stands, where the backend can do that.
    """

    name: str = Field(description="The model's name, as `models` of its backend lists it.")
    context_window: int = Field(description="Tokens the model can read and write in one call.")
    defaults: dict[str, Any] = Field(default_factory=dict, description="Values for arguments a call does not give.")
    _running: set[_Running] = PrivateAttr(default_factory=set)
    _load_percent: int | None = PrivateAttr(default=None)  # set by `warm_up` where the software behind it says so

    # What a backend writes

    call_options: ClassVar[Sequence[Option]] = ()  # those of its OPTIONS that may be given with a call

    def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """One call: responses as `response` makes them, the last with a `finish_reason`.

        It runs in one task. A stop cancels it, so whatever it opened is closed in `finally` or `async with`.

        Args:
            prompt: Messages, or a text that the model is to continue as it stands.
            arguments: Those of the call, checked, over `defaults`.
        """
        raise NotImplementedError

    # Loading, stopping, figures: what a backend may do better

    def start(self) -> None:
        """Begin to load the model and return at once; what goes wrong is raised by the next call."""

    def warm_up(self) -> dict[str, Any]:
        """Load the model if it is not loaded, wait for it, and return what is known of it (`load_seconds`, …)."""
        return {}

    def stop(self) -> None:
        """End every call made through this object within a second; each ends with finish_reason "stopped"."""
        for running in list(self._running):
            running.stop()

    def release(self) -> None:
        """Say that this object is done with: the model stays for the next one, and goes when another is wanted.

        Objects of LlamaIndex stand in cycles of references, so that Python may free them long after their last use.
        """

    def close(self) -> None:
        """Give back what the model holds; a later call takes it again."""

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory and ready, as far as is known."""
        return True

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """How fast the model reads prompts; None: not measured yet."""
        return None

    @property
    def load_percent(self) -> int | None:
        """How far loading is, from 0 to 100; None: not known."""
        return self._load_percent

    @property
    def load_seconds(self) -> float | None:
        """How long loading took; None: not known."""
        return None

    def count_tokens(self, text: Sequence[ChatMessage] | str) -> int:
        """Tokens of messages as they are sent, or of a text by itself; an estimate unless the backend knows better."""
        if isinstance(text, str):
            return self.count_tokens_many([text])[0]
        return sum(self.count_tokens_many([m["content"] for m in plain_messages(text)])) + 4 * len(text) + 3

    def count_tokens_many(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        return [estimated_tokens(text) for text in texts]

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=min(self.defaults.get("max_tokens") or 512, self.context_window),
            is_chat_model=True,
            model_name=self.name,
        )

    # LlamaIndex's eight ways to call a model

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """The answer as it is written, without blocking the event loop. Cancelling or closing it stops the model."""
        return self._responses(list(messages), self._arguments(kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """The answer as it is written. Closing the generator stops the model."""
        arguments = self._arguments(kwargs)
        return _followed(lambda: _opened(self._responses(list(messages), arguments)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The whole answer, without blocking the event loop."""
        return [response async for response in await self.astream_chat(messages, **kwargs)][-1]

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The whole answer."""
        return list(self.stream_chat(messages, **kwargs))[-1]

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncGenerator[CompletionResponse, None]:
        """The continuation as it is written, without blocking the event loop."""
        return _completions(self._responses(_as_prompt(prompt, formatted), self._arguments(kwargs)))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        """The continuation as it is written."""
        arguments = self._arguments(kwargs)
        asked = _as_prompt(prompt, formatted)
        return _followed(lambda: _opened(_completions(self._responses(asked, arguments))))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The whole continuation, without blocking the event loop."""
        return [response async for response in await self.astream_complete(prompt, formatted, **kwargs)][-1]

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The whole continuation."""
        return list(self.stream_complete(prompt, formatted, **kwargs))[-1]

    # The one loop

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call, checked, over the defaults."""
        return {**self.defaults, **checked_options(self.call_options, given)}

    async def _responses(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """The responses of one call, which can be stopped at any moment and must prove its end."""
        running = _Running(self._astream(prompt, arguments))
        self._running.add(running)
        content, phase = "", "waiting"
        try:
            while (answered := await running.next()) is not None:
                raw = answered.raw or {}
                content, phase = answered.message.content or "", raw.get("phase", phase)
                yield answered
                if "finish_reason" in raw:
                    return
        finally:
            self._running.discard(running)
            await running.close()
        if not running.is_stopped:
            raise BackendError("The answer broke off before its end.", "Ask again.", reason="no_end_marker")
        yield response(content, phase=phase, finish_reason="stopped", context_window=self.context_window)


class _Running:
    """One call: a task that moves what the model's stream yields into a queue, and can be cancelled from any thread."""

    def __init__(self, stream: AsyncGenerator[ChatResponse, None]) -> None:
        self.is_stopped = False
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[ChatResponse | None] = asyncio.Queue()
        self._task = self._loop.create_task(self._pump())
        self._task.add_done_callback(lambda _task: self._inbox.put_nowait(None))

    async def _pump(self) -> None:
        async with contextlib.aclosing(self._stream) as stream:
            async for answered in stream:
                self._inbox.put_nowait(answered)

    async def next(self) -> ChatResponse | None:
        """The next response, or None at the end; raises what the stream raised, unless it was stopped."""
        answered = await self._inbox.get()
        if answered is None and not self.is_stopped and not self._task.cancelled():
            self._task.result()
        return answered

    def stop(self) -> None:
        """End it soon. From any thread."""
        self.is_stopped = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._task.cancel()  # now, also when nobody reads on
        self._inbox.put_nowait(None)

    async def close(self) -> None:
        """Cancel the task and wait for what it has to clean up; what it raised has been raised already."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # looked at: asyncio need not report it


Prompt = list[ChatMessage] | str


def response(content: str, delta: str = "", *, phase: str, thinking: str = "", **figures: Any) -> ChatResponse:
    """One response: the content so far, what is new in it, and what `raw` says (see the module's docstring)."""
    return ChatResponse(
        message=ChatMessage(role="assistant", content=content),
        delta=delta,
        raw={"phase": phase, **figures},
        additional_kwargs={"thinking_delta": thinking} if thinking else {},
    )


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages as role ("system", "assistant" or "user") and content.

    Raises:
        BackendError: A message holds something that is not text.
    """
    for message in messages:
        if not all(isinstance(block, TextBlock) for block in message.blocks):
            raise BackendError("This model reads text only.", "Leave out pictures and files.", reason="unsupported")
    return [{"role": _ROLES.get(m.role.value, "user"), "content": m.content or ""} for m in messages]


def estimated_tokens(text: str) -> int:
    """Tokens of a text, roughly: by the tokenizer that LlamaIndex carries (GPT-2's), which needs no network.

    Outside English that one counts two and three times what today's models do, so there its count is bounded by what
    they need at most: 0.75 tokens for a Chinese, Japanese or Korean character, 0.45 for a Cyrillic or Arabic one.
    """
    from llama_index.core.utils import get_tokenizer

    encode = get_tokenizer()
    # In pieces: its time grows with the square of the length of a word, and a document may hold one endless word.
    counted = sum(len(encode(text[start : start + 2000])) for start in range(0, len(text), 2000))
    if text.isascii():
        return counted
    east_asian = sum(character >= "\u2e80" for character in text)
    ascii_characters = sum(character.isascii() for character in text)
    others = len(text) - east_asian - ascii_characters
    return min(counted, round(0.75 * (ascii_characters + east_asian) + 0.45 * others) + 1)


def _as_prompt(prompt: str, formatted: bool) -> Prompt:
    return prompt if formatted else [ChatMessage(role="user", content=prompt)]


async def _opened(stream: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    return stream


async def _completions(responses: AsyncGenerator[ChatResponse, None]) -> AsyncGenerator[CompletionResponse, None]:
    """The same as completions; closes the responses when it is closed itself."""
    async with contextlib.aclosing(responses):
        async for answered in responses:
            yield CompletionResponse(
                text=answered.message.content or "",
                delta=answered.delta,
                raw=answered.raw,
                additional_kwargs=answered.additional_kwargs,
            )


def _followed(open_stream: Callable[[], Awaitable[AsyncGenerator[_R, None]]]) -> Generator[_R, None, None]:
    """A stream for synchronous code.

    Raises:
        RuntimeError: Called on the event loop itself, which would wait for itself.
    """
    if is_on_the_event_loop():
        raise RuntimeError("on the event loop, use the asynchronous calls")
    return follow(open_stream)
