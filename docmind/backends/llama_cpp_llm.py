"""`LlamaCppLLM`: the LlamaIndex face of a llama.cpp child process. Made by `llama_cpp.build`.

It turns messages into requests, and events into responses; everything else is in `llama_cpp.py`. It is a file of its
own because importing LlamaIndex takes a second, which listing models need not wait for.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import TextBlock
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from pydantic import Field, PrivateAttr

from docmind.backends import checked_options
from docmind.backends.llama_cpp import CALL_OPTIONS, Call, Child
from docmind.errors import BackendError, DocMindError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

_R = TypeVar("_R")

# LlamaIndex's roles in the three words every chat template knows; the others are the person's.
_ROLES = {
    "system": "system", "developer": "system", "assistant": "assistant", "chatbot": "assistant", "model": "assistant",
}  # fmt: skip


class LlamaCppLLM(LLM):
    """A model in a llama.cpp child process.

    Every response carries in `raw` a dictionary with the `phase` ("waiting" with `ahead`, "loading" and "reading" with
    `done` and `total`, "writing"). Only the last one has a `finish_reason` ("stop", "length" or "stopped"), with
    `prompt_tokens`, `cached_tokens` (of a prefix read before), `answer_tokens`, `prefill_seconds`,
    `first_token_seconds` and `tokens_per_second`. A stream without it was not completed: it raises instead.

    Arguments of a call: the names in `llama_cpp.OPTIONS` marked `per_call` (stop, grammar, max_tokens, …).
    `complete` and its siblings put the prompt through the chat template as one message of the person, and with
    `formatted=True` give it to the model as it stands.

    Raises, from every call:
        BackendBusy: One call runs and one waits already.
        ContextTooLong: The prompt does not fit the window; nothing was computed.
        ModelDamaged: The file cannot be loaded.
        ModelCrashed: The child died; the next call starts another.
        BackendError: An argument is unknown or out of range, the grammar is broken, or memory ran out.
    """

    name: str = Field(description="The model's name, as `models` lists it.")
    context_window: int = Field(description="Tokens the model can read and write in one call.")
    defaults: dict[str, Any] = Field(description="Values for the arguments a call does not give.")
    _child: Child = PrivateAttr()
    _calls: set[Call] = PrivateAttr(default_factory=set)

    @classmethod
    def of_child(cls, child: Child, name: str, context_window: int, defaults: dict[str, Any]) -> LlamaCppLLM:
        """A model over a child, which lives as long as one such object names it."""
        llm = cls(name=name, context_window=context_window, defaults=defaults)
        llm._child = child
        child.users.add(id(llm))
        weakref.finalize(llm, child.users.discard, id(llm))
        return llm

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_llama_cpp"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=min(self.defaults["max_tokens"], self.context_window),
            is_chat_model=True,
            model_name=self.name,
        )

    # Loading, stopping, figures

    def start(self) -> None:
        """Begin to load the model and return at once; what goes wrong is raised by the next call."""
        self._child.start(Call({"do": "start"}, lambda _event: None))

    def warm_up(self) -> dict[str, Any]:
        """Load the model if it is not loaded, wait for it, and return what is known of it (`load_seconds`, …)."""
        inbox: queue.SimpleQueue[dict[str, Any] | DocMindError] = queue.SimpleQueue()
        self._child.start(Call({"do": "start"}, inbox.put))
        while True:
            event = inbox.get()
            if isinstance(event, DocMindError):
                raise event
            if "finish_reason" in event:
                return event

    def stop(self) -> None:
        """Stop every call made through this object, within a second; each ends with finish_reason "stopped"."""
        for call in list(self._calls):
            self._child.stop(call)

    def close(self) -> None:
        """Unload the model if no other object names it; a later call loads it again."""
        self._child.users.discard(id(self))
        if not self._child.users:
            self._child.close()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory and ready."""
        return self._child.is_loaded

    @property
    def process_id(self) -> int | None:
        """Of the child, for readings of memory and processor; None when it does not run."""
        return self._child.pid

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """How fast the model read the last long prompt (or its warm-up); None before it was loaded."""
        return self._child.prefill_tokens_per_second

    @property
    def load_seconds(self) -> float | None:
        """How long loading took, warm-up included; None before it was loaded."""
        return self._child.load_seconds

    def count_tokens(self, text: Sequence[ChatMessage] | str) -> int:
        """Tokens of messages, with the chat template, or of a text by itself; also during an answer."""
        if isinstance(text, str):
            return self.count_tokens_many([text])[0]
        return self._child.count({"messages": _plain(text)})[0]

    def count_tokens_many(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without the template, in one exchange with the child."""
        return self._child.count({"texts": list(texts)}) if texts else []

    # LlamaIndex's eight ways to call a model

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The whole answer."""
        return _last(list(self.stream_chat(messages, **kwargs)))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """The answer as it is written. Closing the generator stops the model."""
        return self._stream(self._request({"messages": _plain(messages)}, kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The whole answer, without blocking the event loop."""
        return _last([response async for response in await self.astream_chat(messages, **kwargs)])

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """The answer as it is written, without blocking the event loop. Cancelling or closing it stops the model."""
        return self._astream(self._request({"messages": _plain(messages)}, kwargs))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The whole continuation."""
        return _last(list(self.stream_complete(prompt, formatted, **kwargs)))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        """The continuation as it is written."""
        responses = self._stream(self._request(_prompt(prompt, formatted), kwargs))
        return (_as_completion(response) for response in _closing(responses))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The whole continuation, without blocking the event loop."""
        return _last([response async for response in await self.astream_complete(prompt, formatted, **kwargs)])

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncGenerator[CompletionResponse, None]:
        """The continuation as it is written, without blocking the event loop."""
        return self._astream_completion(self._request(_prompt(prompt, formatted), kwargs))

    # Requests and events

    def _request(self, what: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A request to the child: the arguments of this call over the defaults."""
        given = checked_options(CALL_OPTIONS, kwargs)
        return {"do": "answer", **self.defaults, **given, **what}

    def _stream(self, request: dict[str, Any]) -> Generator[ChatResponse, None, None]:
        """Responses until the last event; leaving early stops the call."""
        inbox: queue.SimpleQueue[dict[str, Any] | DocMindError] = queue.SimpleQueue()
        call = Call(request, inbox.put)
        text = ""
        self._submit(call)
        try:
            while True:
                event = inbox.get()
                text, response = _response(text, event)
                yield response
                if not isinstance(event, DocMindError) and "finish_reason" in event:
                    return
        finally:
            self._calls.discard(call)
            self._child.stop(call)

    async def _astream(self, request: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """The same over an event loop: the reader thread hands the events over, nobody here waits for a pipe."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[dict[str, Any] | DocMindError] = asyncio.Queue()

        def put(event: dict[str, Any] | DocMindError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        call = Call(request, put)
        text = ""
        self._submit(call)
        try:
            while True:
                event = await inbox.get()
                text, response = _response(text, event)
                yield response
                if not isinstance(event, DocMindError) and "finish_reason" in event:
                    return
        finally:
            self._calls.discard(call)
            if not call.is_ended:
                # In a thread: the pipe could be full.
                threading.Thread(target=self._child.stop, args=(call,), daemon=True).start()

    async def _astream_completion(self, request: dict[str, Any]) -> AsyncGenerator[CompletionResponse, None]:
        responses = self._astream(request)
        try:
            async for response in responses:
                yield _as_completion(response)
        finally:
            await responses.aclose()

    def _submit(self, call: Call) -> None:
        """Give a call to the child, and remember it for `stop`."""
        self._child.users.add(id(self))  # also after `close`
        self._child.submit(call)
        self._calls.add(call)


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages as role and text.

    Raises:
        BackendError: A message holds something that is not text.
    """
    for message in messages:
        if not all(isinstance(block, TextBlock) for block in message.blocks):
            raise BackendError("This model reads text only.", "Leave out pictures and files.", reason="unsupported")
    return [{"role": _ROLES.get(m.role.value, "user"), "content": m.content or ""} for m in messages]


def _prompt(prompt: str, formatted: bool) -> dict[str, Any]:
    """A completion as part of a request."""
    return {"prompt": prompt} if formatted else {"messages": [{"role": "user", "content": prompt}]}


def _response(text: str, event: dict[str, Any] | DocMindError) -> tuple[str, ChatResponse]:
    """The text so far, and the response for an event."""
    if isinstance(event, DocMindError):
        raise event
    delta = event.get("text", "")
    raw = {key: value for key, value in event.items() if key != "text"}
    text += delta
    return text, ChatResponse(message=ChatMessage(role="assistant", content=text), delta=delta, raw=raw)


def _as_completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(text=response.message.content or "", delta=response.delta, raw=response.raw)


def _closing(responses: Generator[ChatResponse, None, None]) -> Generator[ChatResponse, None, None]:
    """The same responses; closes them when it is closed itself."""
    try:
        yield from responses
    finally:
        responses.close()


def _last(responses: list[_R]) -> _R:
    """The response that has it all; a stream always has one, or raises."""
    return responses[-1]
