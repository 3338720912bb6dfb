"""`OpenAICompatibleLLM`: the LlamaIndex face of a model on a server that speaks OpenAI's chat protocol.

Made by `openai_compatible.build`. *Why not OpenAI's client, or LlamaIndex's over it*: it takes the end of a stream for
the end of an answer, swallows a proxy's page in the middle of one, sends a request three times on an error, follows
redirects with the whole prompt, uses a proxy named in the environment for a server on this machine, reads a line of any
length, and lets comments keep a dead connection open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import Field

from docmind.backends.careful_http import (
    HEADERS,
    bad_response,
    clean,
    client_settings,
    converted,
    count,
    fetch_whole,
    plain,
    read_events,
    read_whole,
    refuse_redirect,
    unreachable,
)
from docmind.backends.openai_compatible import (
    CALL_OPTIONS,
    CONNECT_SECONDS,
    LISTING_SECONDS,
    START,
    ask_not_found,
    is_loading,
    key_header,
    refusal,
    refused_fields,
    root,
)
from docmind.backends.openai_compatible_presets import Preset  # noqa: TC001 (pydantic reads it)
from docmind.backends.served_llm import Deadlines, ServedLLM, Writing
from docmind.backends.stop_strings import StopStrings
from docmind.backends.streamed_llm import Prompt, plain_messages, response
from docmind.errors import BackendError, BackendUnavailable, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from llama_index.core.llms import ChatResponse

# Our names of arguments that every server knows → the protocol's own.
_COMMON = {name: name for name in ("max_tokens", "temperature", "top_p", "seed", "stop")}
_SAMPLING = (*_COMMON, "top_k", "min_p", "repeat_penalty", "grammar")
# What an answer cannot do without: the person would get something else than was asked for.
_NEEDED = frozenset({"model", "messages", "stream"})
_FINISHED = {"stop": "stop", "eos": "stop", "length": "length"}
_USAGE_SECONDS = 2.0  # for the figures after an answer's end; they come at once or not at all
_LOADING_SECONDS = 0.5  # between two looks at a server that is loading
_LOADING: dict[str, Any] = {}  # stands for "the server is loading" among the events

# Fields that a server has refused, by address and model. Kept here because a model object is made anew for every
# answer.
_refused: dict[tuple[str, str], set[str]] = {}


class OpenAICompatibleLLM(ServedLLM):
    """A model behind /chat/completions. What its responses carry is told in `streamed_llm`.

    *The end.* An answer is complete when a choice says its `finish_reason`, and by nothing else: neither `[DONE]` nor
    the end of the stream prove anything. The figures come after it, where the server sends them. An answer is also cut
    at the texts of `stop` here, for servers that refuse them or pass over them, and then has no figures of theirs.

    *Arguments.* What the server does not know is not sent, and what it refuses is left out: the request is sent once
    more, because nothing of the first was accepted. Both are named in `settings_left_out` of the last response. So is
    `context_window`, where the person gave more than the server has.

    Arguments of a call: the names in `openai_compatible.OPTIONS` marked `per_call`.

    Raises, from every call:
        BackendUnavailable: The server is not there.
        ModelNotFound: It has no such model any more.
        ContextTooLong: The prompt does not fit the window.
        BackendError: `stalled` (a deadline passed), `no_end_marker`, `filtered`, `bad_response`, `key_rejected`,
            `rate_limited`, `out_of_memory`, `unsupported`, `server_failed`, or an argument is unknown or out of range.
    """

    call_options = CALL_OPTIONS
    preset: Preset = Field(description="What kind of server it is.")
    is_narrowed: bool = Field(default=False, description="Whether the person gave a larger window than there is.")

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_openai_compatible"

    def knowing(self, *, is_loaded: bool) -> OpenAICompatibleLLM:
        """The same object, which knows whether the model is in the server's memory."""
        self._is_loaded = is_loaded
        return self

    # One call

    async def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """What the server writes, until its finish reason. Leaving it closes the connection, which stops the model."""
        if isinstance(prompt, str):
            raise BackendError(
                "The server puts every prompt through the model's chat template.", "Ask with messages.",
                reason="unsupported",
            )  # fmt: skip
        counted = await asyncio.to_thread(self.checked_count, prompt, arguments["max_tokens"])
        yield response("", phase="reading" if self._is_loaded else "loading")
        answer = Writing(counted, StopStrings(arguments["stop"] or ()))
        deadlines = Deadlines(arguments, self.preset.label)
        finish, figures = "", dict[str, Any]()
        usage_at = 0.0
        async with contextlib.aclosing(self._events(plain_messages(prompt), arguments)) as events:
            while not (finish and figures):
                try:
                    if finish:
                        async with asyncio.timeout_at(usage_at):
                            event = await anext(events, None)
                    else:
                        event = await deadlines.keep(anext(events, None))
                except (BackendError, TimeoutError):
                    if finish:
                        break  # the answer is complete; only its figures are not
                    raise
                if event is None:
                    break
                if event is _LOADING:
                    yield response("", phase="loading")
                    continue
                self._is_loaded = True
                if event.get("error") is not None and not finish:
                    raise self._failure(event)
                figures |= _figures(event)
                # What comes after the end of an answer is no part of it.
                delta, thought, ended = ("", "", "") if finish else _choice(event)
                if thought:
                    deadlines.token()
                    answer.token()
                    yield response(answer.text, phase="thinking", thinking=thought)
                if delta:
                    deadlines.token()
                    shown, is_at_stop = answer.take(delta)
                    if shown:
                        yield response(answer.text, shown, phase="writing")
                    if is_at_stop:
                        finish = "stop"
                        break
                if ended:
                    finish = _finish(ended)
                    usage_at = asyncio.get_running_loop().time() + _USAGE_SECONDS
                    if rest := answer.rest():
                        yield response(answer.text, rest, phase="writing")
        if finish:
            yield self._last(answer, finish, figures, arguments)

    async def _events(
        self, messages: list[dict[str, str]], arguments: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a chat; `_LOADING` while the server loads.

        Raises:
            BackendError: The server refuses, or sends something that is no event.
        """
        async with self._client() as client:
            with _hinted(client):
                while True:
                    request = {**self._request(arguments), "messages": messages}
                    async with client.stream("POST", "/chat/completions", json=request) as answer:
                        refuse_redirect(answer)
                        if answer.status_code < 400:
                            async for event in read_events(answer):
                                yield event
                            return
                        text = (await read_whole(answer)).decode("utf-8", "replace")
                    if is_loading(answer.status_code, text):
                        yield _LOADING
                        await self._loaded(client)
                        # A proxy may say so of a model behind it, and be healthy itself.
                        await asyncio.sleep(_LOADING_SECONDS)
                        continue
                    sent = [name for name in request if name not in _NEEDED]
                    if more := refused_fields(answer.status_code, text, sent):
                        _refused.setdefault((self.url, self.name), set()).update(more)
                        continue
                    error = refusal(answer.status_code, text, self.url, self.preset, answer.headers)
                    if isinstance(error, ModelNotFound):
                        raise await ask_not_found(self.config, self.url, self.preset, self.name) from error
                    raise error

    def _request(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What every request says, but for the messages."""
        names, refused = self._names(), _refused.get((self.url, self.name), set())
        request: dict[str, Any] = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}}
        for name in _SAMPLING:
            if arguments.get(name) is not None and name in names:
                request[names[name]] = arguments[name]
        if "max_tokens" in refused:  # newer models of OpenAI's know it by another name
            request["max_completion_tokens"] = request["max_tokens"]
        return {name: value for name, value in request.items() if name not in refused}

    def _names(self) -> dict[str, str]:
        """Our names of the arguments that the server is sent → its own."""
        names = _COMMON | self.preset.sampling
        return names if self.preset.heeds_stop else {ours: theirs for ours, theirs in names.items() if ours != "stop"}

    def _left_out(self, arguments: dict[str, Any]) -> list[str]:
        """The arguments that the server was not told, by our names."""
        names = self._names()
        sent = self._request(arguments)
        # `stop` is heeded here.
        ours = [name for name in _SAMPLING if name != "stop" and arguments.get(name) is not None]
        left_out = [name for name in ours if names.get(name, "") not in sent]
        if "max_completion_tokens" in sent:
            left_out.remove("max_tokens")
        return left_out + (["context_window"] if self.is_narrowed else [])

    def _failure(self, event: dict[str, Any]) -> BackendError:
        """The error for an error in the middle of a stream."""
        error = event["error"]
        status = count(error.get("code")) if isinstance(error, dict) else None
        text = clean(error) if isinstance(error, str) else json.dumps(event)  # in ASCII, also half a surrogate pair
        return refusal(status if status is not None and 400 <= status < 600 else 200, text, self.url, self.preset)

    def _last(self, answer: Writing, finish: str, figures: dict[str, Any], arguments: dict[str, Any]) -> ChatResponse:
        """The last response, with its figures: the server's own clock where it has one, else ours."""
        written, read = figures.get("answer_tokens"), figures.get("prompt_tokens")
        speed = figures.get("tokens_per_second")
        if speed is None and written and answer.first_at and answer.last_at and answer.last_at > answer.first_at:
            speed = round((written - 1) / (answer.last_at - answer.first_at), 2)
        if (evaluated := figures.pop("evaluated", None)) and figures.get("prefill_seconds"):
            self.measure(evaluated, figures["prefill_seconds"], is_sure=True)
        figures = {
            "finish_reason": finish,
            "prompt_tokens": None,
            "cached_tokens": None,
            "answer_tokens": None,
            "prefill_seconds": None,
            **figures,
            "counted_tokens": answer.counted,
            "first_token_seconds": answer.first_token_seconds(),
            "tokens_per_second": speed,
            "context_window": self.context_window,
        }
        if read is not None and self.is_cut(read, answer.counted):
            figures["context_cut"] = True
        if left_out := self._left_out(arguments):
            figures["settings_left_out"] = left_out
        return response(answer.text, phase="writing", **figures)

    # Loading

    async def _load(self) -> dict[str, Any]:
        """Wait until the server has loaded its model; one that loads when it is asked is asked for a word."""
        started = time.monotonic()
        was_loaded = self._is_loaded
        deadlines = Deadlines(self.defaults, self.preset.label)
        async with self._client() as client:
            with _hinted(client):
                was_loaded &= await deadlines.keep(self._loaded(client))
        if not self._is_loaded and not self.preset.is_remote:
            arguments = {**self.defaults, "max_tokens": 1}
            async with contextlib.aclosing(self._events([{"role": "user", "content": "Hi"}], arguments)) as events:
                while await deadlines.keep(anext(events, None)) is not None:
                    pass
        self._is_loaded = True
        if not was_loaded:
            self._load_seconds = round(time.monotonic() - started, 3)
        return {"load_seconds": self._load_seconds}

    async def _loaded(self, client: httpx.AsyncClient) -> bool:
        """Wait while the server says that it is loading; gives whether it did not.

        Raises:
            BackendError: It is not there, or refuses us.
        """
        was_loaded = True
        # llama-server lists its model while it loads it; its health is what tells.
        while not self.preset.is_remote and is_loading(*await self._get(client, root(self.url) + "/health")):
            was_loaded = False
            await asyncio.sleep(_LOADING_SECONDS)
        status, text = await self._get(client, "/models")
        if status >= 400:
            raise refusal(status, text, self.url, self.preset)
        return was_loaded

    async def _get(self, client: httpx.AsyncClient, path: str) -> tuple[int, str]:
        """Status and text of an answer."""
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                answer, whole = await fetch_whole(client, "GET", path)
        except TimeoutError as error:
            raise unreachable(self.url) from error
        return answer.status_code, whole.decode("utf-8", "replace")

    def _client(self) -> httpx.AsyncClient:
        """Made anew for each call: a call runs on its caller's loop."""
        headers = HEADERS | key_header(self.preset, self.url)
        settings = client_settings(self.config, self.url, CONNECT_SECONDS)
        return httpx.AsyncClient(base_url=self.url, headers=headers, **settings)


@contextlib.contextmanager
def _hinted(client: httpx.AsyncClient) -> Iterator[None]:
    """What the client raises, with how to start a server."""
    try:
        with converted(client):
            yield
    except BackendUnavailable as absence:
        if absence.reason != "unreachable":
            raise
        raise BackendUnavailable(str(absence), START) from absence


# What an event says ---------------------------------------------------------------------------------------------------


def _choice(event: dict[str, Any]) -> tuple[str, str, str]:
    """What an event adds to the answer, to the thoughts, and the reason why the answer ends with it."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("index"):  # one of several, where we asked for one
        return "", "", ""
    delta = _part(choice, "delta") or _part(choice, "message")  # a server that does not stream sends a message
    thought = clean(delta.get("reasoning_content")) or clean(delta.get("reasoning"))
    return _text(delta.get("content")), thought, clean(choice.get("finish_reason"))


def _text(content: object) -> str:
    """A content, which may come in parts: [{"type": "text", "text": …}], of which only texts belong to the answer.

    Raises:
        BackendError: It is something else: leaving it out would pass a piece of an answer for the whole.
    """
    if content is None or isinstance(content, str):
        return clean(content)
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise bad_response("It sent an answer that is no text.")
    return "".join(clean(part.get("text")) for part in content if part.get("type") == "text")


def _finish(reason: str) -> str:
    """ "stop" or "length".

    Raises:
        BackendError: The answer ended without being complete.
    """
    if reason in _FINISHED:
        return _FINISHED[reason]
    if reason == "content_filter":
        raise BackendError(
            "The server's own filter ended the answer.", "Ask in other words, or choose another model.",
            reason="filtered",
        )  # fmt: skip
    if reason in ("tool_calls", "function_call"):
        raise BackendError(
            "The model wanted to call a tool of its own instead of answering.", "Choose another model.",
            reason="unsupported",
        )  # fmt: skip
    raise BackendError(
        f"The server ended the answer without completing it ({plain(reason)}).", "Ask again.", reason="no_end_marker"
    )


def _figures(event: dict[str, Any]) -> dict[str, Any]:
    """The figures that an event brings, by our names; {} for most events.

    `usage` is the protocol's; `timings` are llama-server's, in milliseconds; Groq's `x_groq` holds a usage of its own.
    """
    usage, timings, groq = (_part(event, name) for name in ("usage", "timings", "x_groq"))
    usage = usage or _part(groq, "usage")
    if not usage:
        return {}
    prefill, speed = _positive(timings.get("prompt_ms")), _positive(timings.get("predicted_per_second"))
    cached, details = count(timings.get("cache_n")), _part(usage, "prompt_tokens_details")
    return {
        "prompt_tokens": count(usage.get("prompt_tokens")),
        "answer_tokens": count(usage.get("completion_tokens")),
        "cached_tokens": count(details.get("cached_tokens")) if cached is None else cached,
        "prefill_seconds": None if prefill is None else round(prefill / 1000, 4),
        "tokens_per_second": None if speed is None else round(speed, 2),
        "evaluated": count(timings.get("prompt_n")),
    }


def _part(value: dict[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _positive(value: object) -> float | None:
    """A server's number, if it can be reckoned with."""
    return float(value) if isinstance(value, int | float) and 0 < value < 1e12 else None
