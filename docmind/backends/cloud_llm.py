"""`CloudLLM`: the LlamaIndex face of a model in a cloud. Made by `clouds.build`; knows no cloud by name."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from llama_index.core.llms import ChatMessage
from pydantic import Field

from docmind.backends import backend, checked_options
from docmind.backends.careful_http import clean, count, plain
from docmind.backends.cloud_transport import ArgumentsRefused, Transport, not_there, refusal
from docmind.backends.clouds import LISTING_SECONDS, Call, Cloud, Piece, ask_models
from docmind.backends.served_llm import Deadlines, ServedLLM, Writing
from docmind.backends.stop_strings import StopStrings
from docmind.backends.streamed_llm import Prompt, plain_messages, response
from docmind.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from llama_index.core.llms import ChatResponse

_USAGE_SECONDS = 2.0  # for the figures after an answer's end; they come at once or not at all
# What a cloud's package may raise over bytes that are not what it expects, beside its own errors.
_STUMBLES = (ValueError, TypeError, LookupError, AttributeError, RecursionError, AssertionError)

# Arguments that a model has refused, by address and model. Kept here because a model object is made anew for every
# answer.
_refused: dict[tuple[str, str], frozenset[str]] = {}


class CloudLLM(ServedLLM):
    """A model in a cloud. What its responses carry is told in `streamed_llm`.

    *The end.* An answer is complete when the provider says its finish reason, and by nothing else. One that was held
    back (`filtered`), or ended otherwise, is none, and says why.

    *Arguments* that the model is known to refuse are not sent. Where it refuses another one the request is sent once
    more without it, because nothing of the first was accepted. Both are named in `settings_left_out` of the last
    response. An answer is cut at the texts of `stop` here too, whatever the provider makes of them.

    *Sent once.* Everything else goes wrong once and is told: a question that may have been accepted is paid for.

    Raises, from every call:
        BackendUnavailable: The service is not there, or there is no key (`key_missing`).
        ConsentMissing: The person has not allowed its address.
        ModelNotFound: It has no such model.
        ContextTooLong: The prompt does not fit the window.
        BackendError: `stalled`, `no_end_marker`, `filtered`, `key_rejected`, `rate_limited`, `quota_exceeded`,
            `server_failed`, `bad_response`, or an argument is unknown or out of range.
    """

    cloud: str = Field(description="The name of its backend.")
    settings: dict[str, Any] = Field(default_factory=dict, description="What else says where and how it is asked.")

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_cloud"

    @property
    def is_loaded(self) -> bool:
        """Always: a cloud keeps its models in memory."""
        return True

    @property
    def _cloud(self) -> Cloud:
        found: Cloud = backend(self.cloud).CLOUD  # type: ignore[attr-defined]
        return found

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return {**self.defaults, **checked_options(self._cloud.call_options, given)}

    async def _astream(self, prompt: Prompt, arguments: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        """What the cloud writes, until its finish reason. Leaving it closes the connection, which stops the model."""
        cloud = self._cloud
        if isinstance(prompt, str):
            raise BackendError(f"{cloud.label} takes messages only.", "Ask with messages.", reason="unsupported")
        messages = [ChatMessage(role=m["role"], content=m["content"]) for m in plain_messages(prompt)]
        counted = await asyncio.to_thread(self.checked_count, prompt, arguments["max_tokens"])
        yield response("", phase="reading")
        answer, deadlines = Writing(counted, StopStrings(arguments["stop"] or ())), Deadlines(arguments, cloud.label)
        told: dict[str, int | None] = {}
        left_out: list[str] = []
        finish, usage_at = "", 0.0
        async with contextlib.aclosing(self._pieces(messages, arguments, left_out)) as pieces:
            while finish != "stop string":
                try:
                    if finish:
                        async with asyncio.timeout_at(usage_at):
                            piece = await anext(pieces, None)
                    else:
                        piece = await deadlines.keep(anext(pieces, None))
                except (BackendError, TimeoutError):
                    if finish:
                        break  # the answer is complete; only its figures are not
                    raise
                if piece is None:
                    break
                told |= {name: n for name in _FIGURES if (n := count(getattr(piece, name))) is not None}
                if (thought := clean(piece.thinking)) and not finish:
                    deadlines.token()
                    answer.token()
                    yield response(answer.text, phase="thinking", thinking=thought)
                if (text := clean(piece.text)) and not finish:
                    deadlines.token()
                    delta, is_end = answer.take(text)
                    if delta:
                        yield response(answer.text, delta, phase="writing")
                    if is_end:
                        finish = "stop string"
                if piece.finish and not finish:
                    finish = piece.finish
                    usage_at = asyncio.get_running_loop().time() + _USAGE_SECONDS
        if not finish:
            return  # which becomes `no_end_marker`
        end = "stop" if finish == "stop string" else self._checked_end(finish)
        if finish != "stop string" and (rest := answer.rest()):
            yield response(answer.text, rest, phase="writing")
        yield self._last(answer, end, told, left_out)

    async def _pieces(
        self, messages: list[ChatMessage], arguments: dict[str, Any], left_out: list[str]
    ) -> AsyncGenerator[Piece, None]:
        """What the cloud's own file reads from the stream, once the model takes the request.

        Args:
            left_out: Is filled with the arguments that were not sent.

        Raises:
            BackendError: Whatever goes wrong.
        """
        cloud, known = self._cloud, (self.url, self.name)
        given = {name: value for name, value in arguments.items() if value is not None}
        while True:
            refused = _refused.get(known, frozenset())
            key = await asyncio.to_thread(cloud.key, self.url, self.settings)
            if not key:
                raise BackendUnavailable(f"{cloud.label} does not know who asks.", cloud.missing, reason="key_missing")
            sent = {name: value for name, value in given.items() if name not in refused or name == "max_tokens"}
            wire = {name: cloud.wire.get(name, name) for name in sent}
            transport = Transport(self.config, self.url, key, label=cloud.label, model=self.name, wire=wire)
            left_out[:] = [name for name in given if name in refused and name not in ("stop", "max_tokens")]
            call = Call(self.name, self.url, messages, sent, self.settings, refused, key, transport, left_out)
            try:
                async with transport, contextlib.aclosing(cloud.pieces(call)) as pieces:
                    async for piece in pieces:
                        yield piece
            except BackendError as error:
                first = transport.failure or error
                if isinstance(first, ArgumentsRefused) and first.names - refused:
                    _refused[known] = refused | first.names
                    continue
                raise first from first.__cause__
            return

    def _checked_end(self, finish: str) -> str:
        """How a completed answer ended: "stop" or "length".

        Raises:
            BackendError: It was not completed.
        """
        cloud, said = self._cloud, plain(clean(finish))
        end = cloud.ends.get(finish)
        if end in ("stop", "length"):
            return end
        if end == "filtered":
            raise BackendError(
                f"{cloud.label} held the answer back ({said}).", "Ask in other words, or choose another model.",
                reason="filtered",
            )  # fmt: skip
        if end == "tool":
            raise BackendError(
                f"{self.name} wanted to call a tool instead of writing ({said}).", "Choose another model.",
                reason="unsupported",
            )  # fmt: skip
        if end == "failed":
            raise BackendError(f"{cloud.label} failed while writing ({said}).", "Ask again.", reason="server_failed")
        raise BackendError(
            f"{cloud.label} ended the answer without completing it ({said}).", "Ask again.", reason="no_end_marker"
        )

    def _last(self, answer: Writing, end: str, told: dict[str, int | None], left_out: list[str]) -> ChatResponse:
        """The last response, with its figures."""
        figures: dict[str, Any] = {
            "finish_reason": end,
            "counted_tokens": answer.counted,
            **{name: told.get(name) for name in _FIGURES},
            "first_token_seconds": answer.first_token_seconds(),
            "context_window": self.context_window,
        }
        written, first, last = told.get("answer_tokens"), answer.first_at, answer.last_at
        if written and first is not None and last is not None and last > first:
            figures["tokens_per_second"] = round(written / (last - first), 2)
        if (read := told.get("prompt_tokens")) is not None:
            # Corrects our estimate. Nothing is concluded about a cut: these services refuse what does not fit.
            self.is_cut(read, answer.counted)
        if left_out:
            figures["settings_left_out"] = list(dict.fromkeys(left_out))
        return response(answer.text, phase="writing", **figures)

    async def _load(self) -> dict[str, Any]:
        """Nothing is loaded, but the service must be there and know the key."""
        cloud = self._cloud
        key = await asyncio.to_thread(cloud.key, self.url, self.settings)
        if not key:
            raise BackendUnavailable(f"{cloud.label} does not know who asks.", cloud.missing, reason="key_missing")
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                await ask_models(cloud, self.config, self.url, key, self.settings)
        except (BackendUnavailable, TimeoutError) as error:
            raise not_there(self.url, cloud.label) from error
        return {}


_FIGURES = ("prompt_tokens", "cached_tokens", "answer_tokens")


@contextlib.contextmanager
def read_by(call: Call, *foreign: type[Exception]) -> Iterator[None]:
    """Around what a cloud's package does: what it raises, as an error with a remedy.

    Args:
        foreign: The package's own errors: of an event that says so in the middle of a stream, since the transport
            has told of all others before.
    """
    transport = call.transport
    try:
        yield
    except BackendError:
        raise
    except foreign as error:
        if (failure := transport.failure) is not None:
            raise failure from failure.__cause__
        body = getattr(error, "body", None) or getattr(error, "details", None)
        said = body if isinstance(body, dict) else {"message": str(error)}
        said = json.loads(transport.without_secrets(json.dumps(said, default=str)))
        raise refusal(0, said, {}, label=transport.label, url=call.url, model=call.model) from error
    except _STUMBLES as error:
        if (failure := transport.failure) is not None:
            raise failure from failure.__cause__
        raise BackendError(
            f"{transport.label} sent something that its own package cannot read ({type(error).__name__}).",
            "Ask again; if it stays, update the package.",
            reason="bad_response",
        ) from error
