"""`OllamaEmbedding`: the LlamaIndex face of a model on an Ollama server that makes vectors. Made by `ollama.embedding`.

*Why not LlamaIndex's `OllamaEmbedding`*: its client follows redirects with the passages, uses a proxy named in the
environment for a server on this machine, waits for ever, and lets Ollama cut what is too long without a word.
"""

from __future__ import annotations

from typing import ClassVar

import httpx

from docmind.backends.careful_http import HEADERS, client_settings, fetch
from docmind.backends.ollama import key_header, no_vectors, refusal
from docmind.backends.served_embedding import CONNECT_SECONDS, ServedEmbedding
from docmind.errors import ContextTooLong, ModelNotFound


class OllamaEmbedding(ServedEmbedding):
    """A model behind /api/embed. Every request says `truncate` false: Ollama would cut a long passage at its end."""

    label: ClassVar[str] = "Ollama"

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex stores with a serialized model."""
        return "docmind_ollama_embedding"

    async def _ask(self, texts: list[str]) -> object:
        settings = client_settings(self.config, self.url, CONNECT_SECONDS)
        async with httpx.AsyncClient(base_url=self.url, headers=HEADERS | key_header(self.url), **settings) as client:
            request = {"model": self.model_name, "input": texts, "truncate": False}
            status, answer = await fetch(client, "POST", "/api/embed", request)
        if status >= 400:
            said = str(answer.get("error"))
            if status == 404 and "model" in said and "not found" in said:
                raise ModelNotFound(f"Ollama has no model '{self.model_name}' any more.",
                                    f"Run: ollama pull {self.model_name}")  # fmt: skip
            if "does not support embeddings" in said:
                raise no_vectors(self.model_name)
            error = refusal(status, said, self.url)
            # "the input length exceeds the context length", older: "input length exceeds maximum context length"
            if isinstance(error, ContextTooLong):
                raise ContextTooLong(f"{self.model_name} cannot read a text this long.")
            raise error
        return answer.get("embeddings")
