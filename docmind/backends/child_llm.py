"""`ChildLLM`: the LlamaIndex face of a model in a child process.

It turns messages into requests, and events into responses; everything else is in `child.py`. It is a file of its
own because importing LlamaIndex takes a second, which listing models need not wait for. Knows no backend.
"""

from __future__ import annotations

import asyncio
import queue
import weakref
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from docmind.backends.child import Call, Child
from docmind.backends.streamed_llm import Prompt, StreamedLLM, plain_messages, response
from docmind.errors import DocMindError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from llama_index.core.llms import ChatMessage, ChatResponse


class ChildLLM(StreamedLLM):
    """A model in a child process. What its responses carry is told in `streamed_llm`.

    A backend's own subclass gives `call_options` and the name LlamaIndex stores.

    Raises, from every call:
        BackendBusy: One call runs and one waits already.
        ContextTooLong: The prompt does not fit the window; nothing was computed.
        ModelDamaged: The file cannot be loaded.
        ModelCrashed: The child died; the next call starts another.
        BackendError: An argument is unknown or out of range, or memory ran out.
    """

    _child: Child = PrivateAttr()
    _calls: set[Call] = PrivateAttr(default_factory=set)

    @classmethod
    def of_child(cls, child: Child, name: str, context_window: int, defaults: dict[str, Any]) -> Self:
        """A model over a child, which lives as long as one such object names it."""
        llm = cls(name=name, context_window=context_window, defaults=defaults)
        llm._child = child
        child.users.add(id(llm))
        weakref.finalize(llm, child.users.discard, id(llm))
        return llm

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
            self._load_percent = event.get("done")

    def stop(self) -> None:
        """Stop every call made through this object, within a second; the child says how far each had come."""
        for call in list(self._calls):
            self._child.stop(call)

    def release(self) -> None:
        """The child stays for the next object that names it, and ends when another backend or model is built."""
        self._child.users.discard(id(self))

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
        return self._child.count({"messages": plain_messages(text)})[0]

    def count_tokens_many(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without the template, in one exchange with the child."""
        return self._child.count({"texts": list(texts)}) if texts else []

    # One call

    async def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """The events of one call: the reader thread hands them over, nobody here waits for a pipe."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[dict[str, Any] | DocMindError] = asyncio.Queue()

        def put(event: dict[str, Any] | DocMindError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        what = {"prompt": prompt} if isinstance(prompt, str) else {"messages": plain_messages(prompt)}
        call = Call({"do": "answer", **arguments, **what}, put)
        text, phase = "", "waiting"
        self._child.users.add(id(self))  # also after `close`
        self._child.submit(call)
        self._calls.add(call)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._child.patience(phase)):
                        event = await inbox.get()
                except TimeoutError:
                    self._child.give_up(call)  # its error comes through the inbox
                    phase = "waiting"
                    continue
                if isinstance(event, DocMindError):
                    raise event
                phase = event["phase"]
                raw = {key: value for key, value in event.items() if key != "text"}
                if "prompt_tokens" in raw:  # the child counts with the model's own tokenizer
                    raw |= {"counted_tokens": raw["prompt_tokens"], "context_window": self.context_window}
                delta = event.get("text", "")
                text += delta
                yield response(text, delta, **raw)
        finally:
            self._calls.discard(call)
            self._child.stop(call)
