"""The Gemini backend: Google's models over the Gemini API, with a key.

LlamaIndex's `GoogleGenAI` drops chunks without text, and with them the finish reason of an answer that was held back;
see `clouds` for what is used of it. The package would use another HTTP library (aiohttp) unless it is given a client.

*Limitations*: text in, text out. How much a model thinks is left to it; its thoughts use up `max_tokens`, and are not
shown.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from docmind.backends import ModelInfo, clouds
from docmind.backends.clouds import Call, Cloud, Piece, entries, listed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "Google Gemini"
USUAL = "https://generativelanguage.googleapis.com"
REQUIREMENT = "llama-index-llms-google-genai>=0.11,<0.12"
OPTIONS = clouds.options(f"what GOOGLE_GEMINI_BASE_URL says, else {USUAL}", top_k=True, seed=True)
WIRE = {"max_tokens": "max_output_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
        "seed": "seed", "stop": "stop_sequences"}  # fmt: skip
# What the service calls them when it refuses one.
SAID = {"max_tokens": "maxOutputTokens", "top_p": "topP", "top_k": "topK", "stop": "stopSequences"}
# Source: https://ai.google.dev/api/generate-content#FinishReason
ENDS: dict[str, clouds.End] = {
    "STOP": "stop", "MAX_TOKENS": "length", "MALFORMED_FUNCTION_CALL": "tool", "UNEXPECTED_TOOL_CALL": "tool",
    "TOO_MANY_TOOL_CALLS": "tool", "SAFETY": "filtered", "RECITATION": "filtered", "LANGUAGE": "filtered",
    "BLOCKLIST": "filtered", "PROHIBITED_CONTENT": "filtered", "SPII": "filtered", "BLOCKED": "filtered",
}  # fmt: skip


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there is a key that Google takes, and its models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The models the key may use, by name."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a generated content."""
    async for piece in content(call, "v1beta", api_key=call.key, vertexai=False):
        yield piece


async def content(call: Call, version: str, **who: Any) -> AsyncGenerator[Piece, None]:
    """What comes of a generated content that Google's package asks for.

    Args:
        who: Arguments of its client that say who asks.
    """
    import httpx
    from google import genai
    from google.genai import errors, types
    from llama_index.llms.google_genai.utils import prepare_chat_params

    from docmind.backends.cloud_llm import read_by

    def made() -> Any:  # it sets up TLS, which would hold up the event loop
        return genai.Client(
            http_options=types.HttpOptions(
                base_url=call.url,
                api_version=version,
                httpx_async_client=call.transport.client(httpx),
                httpx_client=httpx.Client(transport=httpx.MockTransport(_never)),
            ),
            **who,
        )

    with read_by(call, errors.APIError):
        client = await asyncio.to_thread(made)
        try:
            last, request, _ = await prepare_chat_params(
                call.model, call.messages, "inline", generation_config=call.named(WIRE)
            )
            stream = await client.aio.models.generate_content_stream(
                model=call.model, contents=[*request["history"], last], config=request["config"]
            )
            async for chunk in stream:
                yield _piece(chunk)
        finally:
            await client.aio.aclose()


def _piece(chunk: Any) -> Piece:
    """What a chunk says. A question that was held back has no candidate."""
    candidate = chunk.candidates[0] if chunk.candidates else None
    parts = (candidate.content.parts if candidate is not None and candidate.content is not None else None) or []
    ended = getattr(candidate, "finish_reason", None)
    blocked = getattr(chunk.prompt_feedback, "block_reason", None)
    usage = chunk.usage_metadata
    counts = (getattr(usage, name, None) or 0 for name in ("candidates_token_count", "thoughts_token_count"))
    return Piece(
        text="".join(part.text for part in parts if part.text and not part.thought),
        thinking="".join(part.text for part in parts if part.text and part.thought),
        finish="BLOCKED" if blocked else str(ended.value) if ended else None,
        prompt_tokens=getattr(usage, "prompt_token_count", None),
        cached_tokens=getattr(usage, "cached_content_token_count", None),
        answer_tokens=sum(counts) or None,
    )


def _never(request: Any) -> Any:
    raise AssertionError("the synchronous client is not used")


def no_window(model: str) -> int:
    """Google says the windows itself, so that there is no table."""
    raise ValueError(model)


def _read_models(answer: dict[str, Any], options: Mapping[str, Any]) -> list[ModelInfo]:
    from docmind.backends.careful_http import count

    found = []
    for entry in entries(answer, "models"):
        name, methods = entry.get("name"), entry.get("supportedGenerationMethods")
        if isinstance(name, str) and isinstance(methods, list) and "generateContent" in methods:
            window = (count(entry.get("inputTokenLimit")) or 0) + (count(entry.get("outputTokenLimit")) or 0)
            found.append(listed(name.removeprefix("models/"), window or None))
    return found


CLOUD = Cloud(
    name="gemini",
    label=LABEL,
    requirement=REQUIREMENT,
    modules=("llama_index.llms.google_genai",),
    options=OPTIONS,
    address=clouds.address("url", "GOOGLE_GEMINI_BASE_URL", USUAL),
    variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    missing=f"Set GEMINI_API_KEY, or run: docmind keys keep {USUAL}",
    headers=lambda key: {"x-goog-api-key": key},
    listing="/v1beta/models?pageSize=1000",
    read_models=_read_models,
    window=no_window,
    ends=ENDS,
    wire=SAID,
    pieces=pieces,
)
