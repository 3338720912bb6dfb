"""`LMStudioLLM`: the LlamaIndex face of a model in LM Studio. Made by `lm_studio.build`.

*Why not LlamaIndex's `LMStudio`*: it speaks HTTP with a timeout of 30 seconds, which loading a model exceeds, has no
asynchronous stream, and knows nothing of loading, of the window a model really has, or of how far the prompt is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, ClassVar

from lmstudio import Chat, ChatHistoryData, LlmPredictionConfig
from lmstudio.json_api import ChatResponseEndpoint
from pydantic import Field

from docmind.backends.careful_http import clean, count, plain
from docmind.backends.lm_studio import CALL_OPTIONS, LISTING_SECONDS, Instance, chosen, instances, loading
from docmind.backends.lm_studio_socket import connected
from docmind.backends.places import checked_place
from docmind.backends.served_llm import Deadlines, ServedLLM, Writing
from docmind.backends.streamed_llm import Prompt, plain_messages, response
from docmind.errors import BackendError, ContextTooLong

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import ChatResponse

    from docmind.backends.lm_studio_socket import Connection

_SEE = "See `lms log stream`"
# Our names for LM Studio's own.
_NAMES = {
    "max_tokens": "maxTokens", "temperature": "temperature", "top_p": "topPSampling", "top_k": "topKSampling",
    "min_p": "minPSampling", "repeat_penalty": "repeatPenalty", "stop": "stopStrings",
}  # fmt: skip
# Why LM Studio ended, in our words; anything else completes no answer.
_FINISHED = {
    "eosFound": "stop", "stopStringFound": "stop", "maxPredictedTokensReached": "length",
    "contextLengthReached": "length", "userStopped": "stopped",
}  # fmt: skip
_TAGS = ("reasoningStartTag", "reasoningEndTag")  # "<think>" and its like: no part of a thought
# Of the window; from here on the server is asked how many tokens a prompt has, before it is sent: a GGUF model answers
# one that is too long with nothing at all (lmstudio-bug-tracker #2339).
_COUNTED_FROM = 0.5


class LMStudioLLM(ServedLLM):
    """A model in LM Studio, over its websocket. What its responses carry is told in `streamed_llm`.

    *The window.* A model that is in memory is used as it is, with the window it was loaded with: `context_window` is
    that window, and follows when the model is loaded anew. Otherwise the model is loaded with `load_window`. Every call
    asks LM Studio to stop at the limit of the window; its other policies cut the prompt in silence.

    *Counting.* Tokens are estimated, corrected by what LM Studio counted before for the same model; a prompt that comes
    near the window is counted by LM Studio itself before it is sent.

    Arguments of a call: the names in `lm_studio.OPTIONS` marked `per_call`.

    Raises, from every call:
        BackendUnavailable: The server is not there.
        ModelNotFound: It has no such model any more.
        ContextTooLong: The prompt does not fit the window.
        ModelCrashed: The model died.
        BackendError: `stalled` (a deadline passed), `no_end_marker`, `bad_response`, `key_rejected`, `out_of_memory`,
            `closed` (unloaded meanwhile), `unsupported`, or an argument is unknown or out of range.
    """

    call_options = CALL_OPTIONS
    label: ClassVar[str] = "LM Studio"
    load_window: int = Field(description="Tokens of the window the model is loaded with, where it is not loaded.")
    keep_alive_seconds: int = Field(description="How long the model stays in memory after an answer.")

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_lm_studio"

    def knowing(self, *, is_loaded: bool) -> LMStudioLLM:
        """The same object, which knows whether its model is in the server's memory."""
        self._is_loaded = is_loaded
        return self

    # One call

    async def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """What the server writes, until it says that the answer is complete. Leaving it cancels the answer there."""
        if isinstance(prompt, str):
            raise BackendError(
                "LM Studio puts every prompt through the model's chat template.", "Ask with messages.",
                reason="unsupported",
            )  # fmt: skip
        history = _history(prompt)
        async with connected(self.config, self.url, "llm") as connection:
            deadlines = Deadlines(arguments, self.label, _SEE)
            instance = await deadlines.keep(self._look(connection))
            # The tokenizer is loaded on its first use: in a thread. And before a model is loaded for nothing.
            answer = Writing(await asyncio.to_thread(self.checked_count, prompt, arguments["max_tokens"]))
            yield response("", phase="loading" if instance is None else "reading")
            if instance is None:
                async with contextlib.aclosing(self._load_over(connection)) as steps:
                    while isinstance(step := await deadlines.keep(anext(steps)), int):
                        yield response("", phase="loading", done=step, total=100)
                instance = step
                yield response("", phase="reading")
            checked_place(self.config, self.url, carries_text=True)  # loading took a while: it may be forbidden by now
            exact = await self._exact(connection, instance, history, answer.counted, arguments["max_tokens"])
            answer.asked_at = time.monotonic()
            # A dictionary: the package has the class for it in a private module only.
            reference = {"type": "instanceReference", "instanceReference": instance.reference}
            endpoint = ChatResponseEndpoint(reference, Chat.from_history(history), None, _settings(arguments))
            cached = None
            async with contextlib.aclosing(connection.stream(endpoint)) as events:
                while (event := await deadlines.keep(anext(events, None))) is not None:
                    match event:
                        case {"type": "promptProcessingProgress"} if answer.first_at is None:
                            done, total, cached = _reading(event, exact or answer.counted)
                            yield response("", phase="reading", done=done, total=total)
                        case {"type": "fragment", "fragment": {"content": str() as content, **about}} if content:
                            deadlines.token()
                            answer.token()
                            kind = about.get("reasoningType", "none")
                            if kind == "none":
                                delta = clean(content)
                                answer.text += delta
                                yield response(answer.text, delta, phase="writing")
                            elif kind not in _TAGS:
                                yield response(answer.text, phase="thinking", thinking=clean(content))
                        case {"type": "success"}:
                            yield self._last(answer, event.get("stats"), exact, cached)
                            return

    async def _look(self, connection: Connection) -> Instance | None:
        """The instance in memory that this model means, if there is one; its window is ours from now on."""
        found = chosen(self.name, instances(await connection.call("listLoaded")))
        self._take(found)
        return found

    def _take(self, instance: Instance | None) -> None:
        self._is_loaded = instance is not None
        self.context_window = (instance.window if instance is not None else None) or self.load_window

    async def _load_over(self, connection: Connection) -> AsyncGenerator[int | Instance, None]:
        """Load the model: gives percent, at last the instance."""
        started = time.monotonic()
        steps = loading(connection, self.name, self.load_window, self.keep_alive_seconds)
        async with contextlib.aclosing(steps):
            async for step in steps:
                if not isinstance(step, int):
                    self._load_seconds = round(time.monotonic() - started, 3)
                    self._take(step)
                yield step

    async def _exact(
        self, connection: Connection, instance: Instance, history: ChatHistoryData, counted: int, max_tokens: int
    ) -> int | None:
        """The server's count of a prompt that comes near the window; None: far from it, or it would not count.

        Raises:
            ContextTooLong: It does not fit.
        """
        if counted < _COUNTED_FROM * self.context_window:
            return None
        specifier = {"type": "instanceReference", "instanceReference": instance.reference}
        asked = {"history": history.to_dict(), "predictionConfigStack": {"layers": []}, "opts": {}}
        exact = None
        with contextlib.suppress(BackendError, TimeoutError):  # what matters comes with the next call
            async with asyncio.timeout(LISTING_SECONDS):
                told = await connection.call("applyPromptTemplate", {"specifier": specifier, **asked})
                text = told.get("formatted") if isinstance(told, dict) else None
                told = await connection.call("countTokens", {"specifier": specifier, "inputString": text})
                exact = count(told.get("tokenCount") if isinstance(told, dict) else None)
        room = self.context_window - min(max_tokens, self.context_window // 4)
        if exact is not None and exact > room:
            raise ContextTooLong(
                f"The prompt has {exact:,} tokens; the window of {self.context_window:,} leaves {room:,}.",
                "Ask with less text, or unload the model and raise `context_window`.",
            )
        return exact

    def _last(self, answer: Writing, stats: object, exact: int | None, cached: int | None) -> ChatResponse:
        """The last response, with its figures.

        Raises:
            BackendError: The server does not say that an answer was completed.
        """
        told: Mapping[str, Any] = stats if isinstance(stats, dict) else {}
        why = clean(told.get("stopReason"))
        if why not in _FINISHED:
            raise BackendError(
                f"LM Studio ended the answer without completing it ({plain(why) or 'it does not say why'}).",
                "Ask again; its log says more. Run: lms log stream",
                reason="no_end_marker",
            )
        read, written = count(told.get("promptTokensCount")), count(told.get("predictedTokensCount"))
        if why == "contextLengthReached" and answer.first_at is None:
            raise ContextTooLong(
                f"The prompt fills the window of {self.context_window:,} tokens; nothing was written.",
                "Ask with less text, or raise `context_window`.",
            )
        prefill = _positive(told.get("timeToFirstTokenSec"))
        if read is not None and prefill is not None:
            self.measure(read - (cached or 0), prefill, is_sure=cached is not None)
        speed = _positive(told.get("tokensPerSecond"))
        figures: dict[str, Any] = {
            "finish_reason": _FINISHED[why],
            "prompt_tokens": read,
            "counted_tokens": exact if exact is not None else answer.counted,
            "cached_tokens": cached,
            "answer_tokens": written,
            "prefill_seconds": prefill,
            "first_token_seconds": answer.first_token_seconds(),
            "tokens_per_second": speed,
            "context_window": self.context_window,
        }
        if read is not None and self.is_cut(read, answer.counted) and (exact is None or read < 0.9 * exact):
            figures["context_cut"] = True
        return response(answer.text, phase="writing", **figures)

    async def _load(self) -> dict[str, Any]:
        """Load the model, unless it is in memory."""
        async with connected(self.config, self.url, "llm") as connection:
            deadlines = Deadlines(self.defaults, self.label, _SEE)
            if await deadlines.keep(self._look(connection)) is None:
                async with contextlib.aclosing(self._load_over(connection)) as steps:
                    while isinstance(await deadlines.keep(anext(steps)), int):
                        pass
        return {"load_seconds": self._load_seconds}


def _history(prompt: Prompt) -> ChatHistoryData:
    """Messages as LM Studio takes them. Its `Chat` would refuse two system messages in a row."""
    assert not isinstance(prompt, str)
    messages = [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
        for message in plain_messages(prompt)
    ]
    return ChatHistoryData.from_dict({"messages": messages})  # type: ignore[typeddict-item]


def _settings(arguments: dict[str, Any]) -> LlmPredictionConfig:
    """The arguments of a call as LM Studio has them; what is not given is left to what LM Studio has for the model."""
    given = {theirs: arguments[ours] for ours, theirs in _NAMES.items() if arguments.get(ours) is not None}
    return LlmPredictionConfig.from_dict({**given, "contextOverflowPolicy": "stopAtLimit"})  # type: ignore[typeddict-item]


def _reading(event: Mapping[str, Any], counted: int) -> tuple[int, int, int | None]:
    """Tokens of the prompt that are read, all of them, and those kept from an earlier call (newer servers say it)."""
    details = event.get("details")
    details = details if isinstance(details, dict) else {}
    total, cached = count(details.get("totalPromptTokenCount")), count(details.get("cachedTokenCount"))
    processed = count(details.get("processedPromptTokenCount"))
    if total is not None and cached is not None and processed is not None:
        return min(total, cached + processed), total, cached
    share = _positive(event.get("progress")) or 0.0
    return round(min(1.0, share) * counted), counted, None


def _positive(value: object) -> float | None:
    """A number from a server, if it can measure something."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        return None
    return round(float(value), 4)
