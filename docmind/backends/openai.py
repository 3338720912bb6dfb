"""The OpenAI backend: models in OpenAI's cloud, over its chat completions.

LlamaIndex's `OpenAI` gives a stream that just ends as a complete answer; see `clouds` for what is used of it.

*Limitations*: text in, text out; models that only know the Responses API refuse. How a reasoning model thinks is not
shown by this API, so its first word may take minutes. OpenAI lists no windows: they are those of LlamaIndex's table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docmind.backends import ModelInfo, Option, clouds
from docmind.backends.clouds import Call, Cloud, Piece, entries, listed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "OpenAI"
USUAL = "https://api.openai.com/v1"
EFFORT = Option("effort", str, None, "", "How much a reasoning model thinks; by default as its maker says.",
                choices=("none", "minimal", "low", "medium", "high"), per_call=True)  # fmt: skip
OPTIONS = (*clouds.options(f"what OPENAI_BASE_URL says, else {USUAL}", seed=True), EFFORT)
# Our names → the protocol's. `max_tokens` is what models before the reasoning ones called it.
WIRE = {"max_tokens": "max_completion_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed",
        "stop": "stop", "effort": "reasoning_effort"}  # fmt: skip
# Source: https://platform.openai.com/docs/api-reference/chat/object
ENDS: dict[str, clouds.End] = {"stop": "stop", "length": "length", "content_filter": "filtered", "tool_calls": "tool",
                               "function_call": "tool"}  # fmt: skip
# The list of models says nothing about them but the name.
_NOT_WRITING = re.compile(
    r"embedding|whisper|tts|dall-e|image|moderation|audio|realtime|transcribe|sora|davinci|babbage|instruct|codex"
    r"|deep-research|computer-use|-search-|-pro\b"
)


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there is a key that OpenAI takes, and its models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models the key may use, by name."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a chat completion."""
    import openai

    from docmind.backends.cloud_transport import http_library

    client = openai.AsyncOpenAI(
        api_key=call.key, base_url=call.url, max_retries=0, timeout=None,
        http_client=call.transport.client(http_library(openai.DefaultAsyncHttpxClient)),
    )  # fmt: skip
    async for piece in completion(call, client, WIRE):
        yield piece


async def completion(call: Call, client: Any, names: Mapping[str, str]) -> AsyncGenerator[Piece, None]:
    """What comes of a chat completion that a client of OpenAI's package asks for."""
    import openai
    from llama_index.llms.openai.utils import O1_MODELS, to_openai_message_dicts

    from docmind.backends.cloud_llm import read_by

    # Reasoning models take neither; their answer is cut at `stop` by us.
    without = ("temperature", "top_p", "stop") if call.model in O1_MODELS else ("effort",)
    with read_by(call, openai.OpenAIError):
        stream = await client.chat.completions.create(
            model=call.model,
            messages=to_openai_message_dicts(call.messages, model=call.model),
            stream=True,
            stream_options={"include_usage": True},
            **call.named(names, without=without),
        )
        async for chunk in stream:
            usage = getattr(chunk, "usage", None)
            details = getattr(usage, "prompt_tokens_details", None)
            choice = chunk.choices[0] if chunk.choices else None
            delta = choice.delta if choice is not None else None
            yield Piece(
                text=(delta.content if delta is not None else None) or "",
                finish=choice.finish_reason if choice is not None else None,
                prompt_tokens=getattr(usage, "prompt_tokens", None),
                cached_tokens=getattr(details, "cached_tokens", None),
                answer_tokens=getattr(usage, "completion_tokens", None),
            )


def window(model: str) -> int:
    """Tokens, by LlamaIndex's table."""
    from llama_index.llms.openai.utils import openai_modelname_to_contextsize

    return int(openai_modelname_to_contextsize(model))


def _read_models(answer: dict[str, Any], options: Mapping[str, Any]) -> list[ModelInfo]:
    names = [entry["id"] for entry in entries(answer, "data") if isinstance(entry.get("id"), str)]
    return [listed(name) for name in names if not _NOT_WRITING.search(name)]


CLOUD = Cloud(
    name="openai",
    label=LABEL,
    requirement="llama-index-llms-openai>=0.8,<0.9",
    modules=("llama_index.llms.openai", "openai.resources.chat.completions"),
    options=OPTIONS,
    address=clouds.address("url", "OPENAI_BASE_URL", USUAL),
    variables=("OPENAI_API_KEY",),
    missing=f"Set OPENAI_API_KEY, or run: docmind keys keep {USUAL}",
    headers=lambda key: {"Authorization": f"Bearer {key}"},
    listing="/models",
    read_models=_read_models,
    window=window,
    ends=ENDS,
    wire=WIRE,
    pieces=pieces,
)
