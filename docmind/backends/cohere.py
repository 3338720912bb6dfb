"""The Cohere backend: Command models in Cohere's cloud, over version 2 of its chat.

LlamaIndex's `Cohere` cannot stream asynchronously (0.9.0 awaits a synchronous generator), speaks version 1, and asks
up to ten times; see `clouds` for what is used of it.

*Limitations*: text in, text out. `top_p` is at most 0.99 there.
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

LABEL = "Cohere"
USUAL = "https://api.cohere.com"
OPTIONS = clouds.options(f"what CO_API_URL says, else {USUAL}", hottest=1.0, top_k=True, seed=True)
WIRE = {"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "p", "top_k": "k", "seed": "seed",
        "stop": "stop_sequences"}  # fmt: skip
# Source: https://docs.cohere.com/reference/chat-stream
ENDS: dict[str, clouds.End] = {"COMPLETE": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length",
                               "TOOL_CALL": "tool", "ERROR_TOXIC": "filtered", "ERROR": "failed",
                               "TIMEOUT": "failed"}  # fmt: skip


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there is a key that Cohere takes, and its models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models the key may use, by name."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a chat."""
    import cohere
    import httpx
    from cohere.core.api_error import ApiError

    from docmind.backends.cloud_llm import read_by

    client = cohere.AsyncClientV2(
        api_key=call.key, base_url=call.url, httpx_client=call.transport.client(httpx),
        log_warning_experimental_features=False,
    )  # fmt: skip
    messages: Any = [{"role": m.role.value, "content": m.content or ""} for m in call.messages]
    with read_by(call, ApiError):
        stream = client.chat_stream(
            model=call.model, messages=messages, request_options={"max_retries": 0}, **call.named(WIRE)
        )
        async for event in stream:
            if event.type == "content-delta":
                content = event.delta.message.content
                yield Piece(text=content.text or "", thinking=getattr(content, "thinking", None) or "")
            elif event.type == "message-end":
                tokens = getattr(event.delta.usage, "tokens", None)
                yield Piece(
                    finish=event.delta.finish_reason,
                    prompt_tokens=_whole(getattr(tokens, "input_tokens", None)),
                    answer_tokens=_whole(getattr(tokens, "output_tokens", None)),
                )


def _whole(number: object) -> int | None:
    """Cohere counts in floats."""
    return int(number) if isinstance(number, int | float) and 0 <= number < 1 << 53 else None


def _window(model: str) -> int:
    from llama_index.llms.cohere.utils import cohere_modelname_to_contextsize

    return int(cohere_modelname_to_contextsize(model))


def _read_models(answer: dict[str, Any], options: Mapping[str, Any]) -> list[ModelInfo]:
    return [
        listed(entry["name"], _whole(entry.get("context_length")) or None)
        for entry in entries(answer, "models")
        if isinstance(entry.get("name"), str)
    ]


CLOUD = Cloud(
    name="cohere",
    label=LABEL,
    requirement="llama-index-llms-cohere>=0.9,<0.10",
    modules=("llama_index.llms.cohere", "cohere.v2.client"),
    options=OPTIONS,
    address=clouds.address("url", "CO_API_URL", USUAL),
    variables=("CO_API_KEY", "COHERE_API_KEY"),
    missing=f"Set CO_API_KEY, or run: docmind keys keep {USUAL}",
    headers=lambda key: {"Authorization": f"Bearer {key}"},
    listing="/v1/models?endpoint=chat&page_size=1000",
    read_models=_read_models,
    window=_window,
    ends=ENDS,
    wire=WIRE,
    pieces=pieces,
)
