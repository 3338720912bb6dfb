"""`OpenAICompatibleEmbedding`: the LlamaIndex face of a model behind /v1/embeddings. Made by
`openai_compatible.embedding`.

*Why not OpenAI's client, or LlamaIndex's over it*: as `openai_compatible_llm` says; and it takes the vectors in the
order they come, whatever their `index` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from pydantic import Field

from docmind.backends.careful_http import HEADERS, bad_response, client_settings, fetch_whole, json_object
from docmind.backends.openai_compatible import key_header, refusal
from docmind.backends.openai_compatible_presets import Preset  # noqa: TC001 (pydantic reads it)
from docmind.backends.served_embedding import CONNECT_SECONDS, ServedEmbedding
from docmind.errors import BackendError, ContextTooLong

if TYPE_CHECKING:
    from collections.abc import Mapping


class OpenAICompatibleEmbedding(ServedEmbedding):
    """A model behind /embeddings. Whether a text that is too long is refused or cut is the server's affair."""

    preset: Preset = Field(description="What kind of server it is.")

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_openai_compatible_embedding"

    async def _ask(self, texts: list[str]) -> object:
        settings = client_settings(self.config, self.url, CONNECT_SECONDS)
        headers = HEADERS | key_header(self.preset, self.url)
        async with httpx.AsyncClient(base_url=self.url, headers=headers, **settings) as client:
            request = {"model": self.model_name, "input": texts, "encoding_format": "float"}
            answer, whole = await fetch_whole(client, "POST", "/embeddings", request)
        if answer.status_code >= 400:
            raise self._failure(answer.status_code, whole.decode("utf-8", "replace"), answer.headers)
        return _in_order(json_object(whole).get("data"), len(texts))

    def _failure(self, status: int, text: str, headers: Mapping[str, str]) -> BackendError:
        """The error for a refusal."""
        if "too large to process" in text:  # the physical batch of llama-server is 512 tokens
            hint = "Start the server with a larger batch, llama-server with -ub 2048, or choose another model."
            return ContextTooLong(f"{self.model_name} cannot read a text this long there.", hint)
        error = refusal(status, text, self.url, self.preset, headers)
        if isinstance(error, ContextTooLong):
            return ContextTooLong(f"{self.model_name} cannot read a text this long.")
        if status == 501 or "does not support embeddings" in text:  # llama-server that was started to chat
            return BackendError(
                f"{self.preset.label} was not started to make vectors.",
                "Start it with an embedding model, llama-server with --embeddings.",
                reason="unsupported",
            )
        return error


def _in_order(data: object, count: int) -> object:
    """The vectors in the order of their texts, which is that of `index`.

    Raises:
        BackendError: There is not one for each text (`bad_response`).
    """
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise bad_response("It sent no list of vectors.")
    by_index = {entry.get("index"): entry.get("embedding") for entry in data if type(entry.get("index")) is int}
    if len(data) != count or sorted(by_index) != list(range(count)):
        raise bad_response(f"It sent {len(data)} vectors for {count} texts, or not one for each.")
    return [by_index[index] for index in range(count)]
