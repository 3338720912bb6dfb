"""The Anthropic backend: Claude, over the Messages API.

LlamaIndex's `Anthropic` takes no client of ours, asks up to ten times, and cannot write messages for version 2 of
Anthropic's package, which it lets in (0.12.3: TypeError); see `clouds` for what is used of it.

*Limitations*: text in, text out; no extended thinking is asked for, but the thoughts of models that think anyway are
shown apart. `temperature` goes from 0 to 1, and of `temperature` and `top_p` only the first is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docmind.backends import ModelInfo, clouds
from docmind.backends.clouds import Call, Cloud, Piece, entries, listed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "Anthropic"
USUAL = "https://api.anthropic.com"
# Of the interface. The next one, 2026-10-21, refuses temperature, top_p and top_k for every model.
# Source: https://platform.claude.com/docs/en/api/versioning
VERSION = "2023-06-01"
OPTIONS = clouds.options(f"what ANTHROPIC_BASE_URL says, else {USUAL}", hottest=1.0, top_k=True)
WIRE = {"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
        "stop": "stop_sequences"}  # fmt: skip
# Source: https://docs.claude.com/en/api/messages
ENDS: dict[str, clouds.End] = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
                               "model_context_window_exceeded": "length", "refusal": "filtered",
                               "tool_use": "tool"}  # fmt: skip


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there is a key that Anthropic takes, and its models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models the key may use, by name."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a message."""
    import anthropic
    from llama_index.llms.anthropic.utils import ANTHROPIC_NO_TEMP_MODELS

    from docmind.backends.cloud_llm import read_by
    from docmind.backends.cloud_transport import http_library

    client = anthropic.AsyncAnthropic(
        api_key=call.key, base_url=call.url, max_retries=0, timeout=None,
        default_headers={"anthropic-version": VERSION},
        http_client=call.transport.client(http_library(anthropic.DefaultAsyncHttpxClient)),
    )  # fmt: skip
    client.auth_token = None  # ANTHROPIC_AUTH_TOKEN would be sent beside the key, and is bound to no address
    system = "\n".join(m.content or "" for m in call.messages if m.role.value == "system")
    messages: Any = [{"role": m.role.value, "content": m.content} for m in call.messages if m.role.value != "system"]
    if any(name in call.model for name in ANTHROPIC_NO_TEMP_MODELS):
        without: tuple[str, ...] = ("temperature", "top_p", "top_k")
    else:
        without = ("top_p",) if "temperature" in call.arguments else ()
    given = call.named(WIRE, without=without)
    # Version 1 of the package left out the sampling; the service takes it still, where the model does.
    sampling = {name: given.pop(name) for name in ("temperature", "top_p", "top_k") if name in given}
    with read_by(call, anthropic.AnthropicError):
        stream = await client.messages.create(
            model=call.model,
            messages=messages,
            stream=True,
            extra_body=sampling,
            **({"system": system} if system else {}),
            **given,
        )
        async for event in stream:
            if event.type == "message_start":
                usage = event.message.usage
                cached = usage.cache_read_input_tokens or 0
                read = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
                yield Piece(prompt_tokens=read, cached_tokens=cached)
            elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield Piece(text=event.delta.text)
            elif event.type == "content_block_delta" and event.delta.type == "thinking_delta":
                yield Piece(thinking=event.delta.thinking)
            elif event.type == "message_delta":
                yield Piece(finish=event.delta.stop_reason, answer_tokens=event.usage.output_tokens)


def _window(model: str) -> int:
    from llama_index.llms.anthropic.utils import anthropic_modelname_to_contextsize

    return int(anthropic_modelname_to_contextsize(model))


def _read_models(answer: dict[str, Any], options: Mapping[str, Any]) -> list[ModelInfo]:
    from docmind.backends.careful_http import count

    return [
        listed(entry["id"], count(entry.get("max_input_tokens")) or None)
        for entry in entries(answer, "data")
        if isinstance(entry.get("id"), str)
    ]


CLOUD = Cloud(
    name="anthropic",
    label=LABEL,
    requirement="llama-index-llms-anthropic>=0.12,<0.13",
    modules=("llama_index.llms.anthropic", "anthropic.resources.messages"),
    options=OPTIONS,
    address=clouds.address("url", "ANTHROPIC_BASE_URL", USUAL),
    variables=("ANTHROPIC_API_KEY",),
    missing=f"Set ANTHROPIC_API_KEY, or run: docmind keys keep {USUAL}",
    headers=lambda key: {"x-api-key": key, "anthropic-version": VERSION},
    listing="/v1/models?limit=1000",
    read_models=_read_models,
    window=_window,
    ends=ENDS,
    wire=WIRE,
    pieces=pieces,
)
