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
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar

import ollama
from pydantic import Field

from docmind.backends.careful_http import (
    HEADERS,
    bad_response,
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
from docmind.backends.served_llm import Deadlines, ServedLLM, Writing
from docmind.backends.streamed_llm import Prompt, plain_messages, response
from docmind.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import ChatResponse

    from docmind.config import Config

_SEE = "See `ollama ps`"
# Our names for Ollama's own, where they differ.
_OLLAMA_NAMES = {"max_tokens": "num_predict"}
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop")
_THINKING: dict[str, bool | str] = {"on": True, "off": False}  # the other words go as they are

# These versions count only what was not read before: ollama #16414, mended by #16428.
_COUNTS_ONLY_NEW = re.compile(r"0\.30\.")


class OllamaLLM(ServedLLM):
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
    label: ClassVar[str] = "Ollama"
    keep_alive: str = Field(description="How long the model stays in memory after an answer.")
    gpu_layers: int | None = Field(default=None, description="Layers kept on the GPU; None: Ollama decides.")
    version: str | None = Field(default=None, description="The server's version.")

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_ollama"

    def knowing(self, loaded: Mapping[str, int | None]) -> OllamaLLM:
        """The same object, which knows what is in the server's memory: a model with another window is loaded anew."""
        self._is_loaded = self.name in loaded and loaded[self.name] in (None, self.context_window)
        return self

    # One call

    async def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """What the server writes, until its done marker. Leaving it closes the connection, which stops the model."""
        if isinstance(prompt, str):
            raise BackendError(
                "Ollama puts every prompt through the model's chat template.", "Ask with messages.",
                reason="unsupported",
            )  # fmt: skip
        counted = await asyncio.to_thread(self.checked_count, prompt, arguments["max_tokens"])
        async with _Client(self.config, self.url) as client:
            self._is_loaded = await self._look(client)
            yield response("", phase="reading" if self._is_loaded else "loading")
            answer = Writing(counted)
            deadlines = Deadlines(arguments, self.label, _SEE)
            events = client.events(**self._request(arguments), messages=plain_messages(prompt))
            async with contextlib.aclosing(events):
                while (event := await deadlines.keep(anext(events, None))) is not None:
                    self._is_loaded = True
                    message = event.get("message")
                    message = message if isinstance(message, dict) else {}
                    if thought := clean(message.get("thinking")):
                        deadlines.token()
                        answer.token()
                        yield response(answer.text, phase="thinking", thinking=thought)
                    if not isinstance(content := message.get("content") or "", str):
                        raise bad_response("It sent an answer that is no text.")
                    if delta := clean(content):
                        deadlines.token()
                        answer.token()
                        answer.text += delta
                        yield response(answer.text, delta, phase="writing")
                    if event.get("done") is True:
                        yield self._last(answer, event)
                        return

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

    def _last(self, answer: Writing, event: dict[str, Any]) -> ChatResponse:
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
            self.measure(read - (cached or 0), prefill, is_sure=cached is not None)
        figures: dict[str, Any] = {
            "finish_reason": done_reason,
            "prompt_tokens": read,
            "counted_tokens": answer.counted,
            "cached_tokens": cached,
            "answer_tokens": written,
            "prefill_seconds": prefill,
            "first_token_seconds": answer.first_token_seconds(loading or 0.0),
            "tokens_per_second": round(written / writing, 2) if written and writing else None,
            "context_window": self.context_window,
        }
        is_told = _COUNTS_ONLY_NEW.match(self.version or "") is None
        if read is not None and is_told and self.is_cut(read, answer.counted):
            figures["context_cut"] = True
        return response(answer.text, phase="writing", **figures)

    async def _load(self) -> dict[str, Any]:
        """Load the model: Ollama's documented way is a request without messages."""
        request = self._request({})
        if request["keep_alive"] == 0:  # that would be the documented way to unload it
            return {}
        started = time.monotonic()
        async with _Client(self.config, self.url) as client:
            was_loaded = await self._look(client)
            events = client.events(**request, messages=[])
            async with contextlib.aclosing(events):
                deadlines = Deadlines(self.defaults, self.label, _SEE)
                while (event := await deadlines.keep(anext(events, None))) is not None:
                    if event.get("done") is True:
                        break
        self._is_loaded = True
        if not was_loaded:
            self._load_seconds = round(time.monotonic() - started, 3)
        return {"load_seconds": self._load_seconds}


class _Client(ollama.AsyncClient):
    """The official client, careful about where it sends things and what comes back (see the module's docstring)."""

    def __init__(self, config: Config, url: str) -> None:
        super().__init__(url, headers=HEADERS, **client_settings(config, url, CONNECT_SECONDS))
        self._config, self._url = config, url
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
                        await self._refuse(200, str(event["error"]).encode("utf-8", "replace"), request["model"])
                    yield event

    async def _refuse(self, status: int, body: bytes, model: str) -> None:
        """Raise the error for a refusal."""
        text = body.decode("utf-8", "replace")
        if (found := re.search(r'"error"\s*:\s*"(.*)"', text, re.DOTALL)) is not None:
            text = found[1]
        if "not found" in text.lower() and "model" in text.lower():
            raise await ask_not_found(self._config, self._url, model)
        raise refusal(status, text, self._url)


def _seconds(nanoseconds: object) -> float | None:
    """Ollama's durations in seconds."""
    value = count(nanoseconds)
    return None if value is None else round(value / 1e9, 4)
