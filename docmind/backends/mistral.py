"""The Mistral backend: models in Mistral's cloud.

LlamaIndex's `MistralAI` hides the finish reason of some chunks, adds line breaks to pieces of text and mixes thoughts
into them; see `clouds` for what is used of it.

*Limitations*: text in, text out. `temperature` goes from 0 to 1.5.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from docmind.backends import ModelInfo, clouds
from docmind.backends.clouds import Call, Cloud, Piece, entries, listed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "Mistral"
USUAL = "https://api.mistral.ai"
OPTIONS = clouds.options(f"what MISTRAL_ENDPOINT says, else {USUAL}", hottest=1.5, seed=True)
WIRE = {"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "random_seed",
        "stop": "stop"}  # fmt: skip
# Source: https://docs.mistral.ai/api/#tag/chat
ENDS: dict[str, clouds.End] = {"stop": "stop", "length": "length", "model_length": "length", "tool_calls": "tool",
                               "error": "failed"}  # fmt: skip


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there is a key that Mistral takes, and its models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models the key may use, by name."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a chat completion."""
    from llama_index.llms.mistralai.base import to_mistral_chatmessage
    from mistralai.client import Mistral, errors, httpclient

    from docmind.backends.cloud_llm import read_by

    library: Any = importlib.import_module(httpclient.httpx.__name__)  # httpx, since 2026 a fork of it
    client = Mistral(
        api_key=call.key,
        server_url=call.url,
        async_client=call.transport.client(library),
        client=library.Client(transport=library.MockTransport(_never)),  # else it makes one that nobody closes
        retry_config=None,
    )
    with read_by(call, errors.MistralError):
        stream = await client.chat.stream_async(
            model=call.model, messages=to_mistral_chatmessage(call.messages), **call.named(WIRE)
        )
        async for event in stream:
            usage = event.data.usage
            choice = event.data.choices[0] if event.data.choices else None
            text, thinking = _said(choice.delta.content) if choice is not None else ("", "")
            yield Piece(
                text=text,
                thinking=thinking,
                finish=str(choice.finish_reason) if choice is not None and choice.finish_reason else None,
                prompt_tokens=getattr(usage, "prompt_tokens", None),
                answer_tokens=getattr(usage, "completion_tokens", None),
            )


def _never(request: Any) -> Any:
    raise AssertionError("the synchronous client is not used")


def _said(content: Any) -> tuple[str, str]:
    """Text and thoughts of a piece, which is a text or a list of both kinds."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else "", ""
    texts = [part.text for part in content if part.type == "text"]
    thoughts = [inner.text for part in content if part.type == "thinking" for inner in part.thinking
                if inner.type == "text"]  # fmt: skip
    return "".join(texts), "".join(thoughts)


def _window(model: str) -> int:
    from llama_index.llms.mistralai.utils import mistralai_modelname_to_contextsize

    return int(mistralai_modelname_to_contextsize(model))


def _read_models(answer: dict[str, Any], options: Mapping[str, Any]) -> list[ModelInfo]:
    from docmind.backends.careful_http import count

    found = []
    for entry in entries(answer, "data"):
        abilities = entry.get("capabilities")
        if isinstance(entry.get("id"), str):
            writes = not isinstance(abilities, dict) or abilities.get("completion_chat") is not False
            found.append(listed(entry["id"], count(entry.get("max_context_length")) or None, writes=writes))
    return found


CLOUD = Cloud(
    name="mistral",
    label=LABEL,
    requirement="llama-index-llms-mistralai>=0.11,<0.12",
    modules=("llama_index.llms.mistralai", "mistralai.client.chat"),
    options=OPTIONS,
    address=clouds.address("url", "MISTRAL_ENDPOINT", USUAL),
    variables=("MISTRAL_API_KEY",),
    missing=f"Set MISTRAL_API_KEY, or run: docmind keys keep {USUAL}",
    headers=lambda key: {"Authorization": f"Bearer {key}"},
    listing="/v1/models",
    read_models=_read_models,
    window=_window,
    ends=ENDS,
    wire=WIRE,
    pieces=pieces,
)
