"""`ServedEmbedding`: what models behind a server that make vectors have in common: prefixes, a deadline, distrust.

A backend writes `_ask` over it. Which of them makes the vectors of a library is decided in `docmind.vectors`. Knows no
backend by name.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, ClassVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import Field

from docmind.backends.careful_http import bad_response, clean, wait_for
from docmind.backends.places import origin
from docmind.config import Config  # noqa: TC001 (pydantic reads it)
from docmind.errors import BackendError, BackendUnavailable, ConsentMissing, ContextTooLong

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH_SIZE = 16  # texts of one request: some 20 KB there and at most 2 MB back
CONNECT_SECONDS = 5.0  # a machine that is busy with vectors may be slow to accept, and a folder is many requests
BATCH_SECONDS = 120.0  # for one request, in which the server may have to load the model
MOST_NUMBERS = 1 << 16  # of a vector; the largest models have 8,192
LARGEST_NUMBER = 1e12  # squares of it still fit single precision


class ServedEmbedding(BaseEmbedding):
    """A model on a server that makes vectors.

    Raises, from every call:
        BackendUnavailable: The server is not there.
        ConsentMissing: The person has not allowed that text is sent there.
        ContextTooLong: A text is longer than the model can read.
        BackendError: `bad_response` (not one vector for each text, all of one length and of finite numbers), `stalled`,
            `key_rejected`, …
    """

    label: ClassVar[str] = "The server"
    config: Config = Field(exclude=True, description="Where the person's decisions are kept.")
    url: str = Field(description="The server's address.")
    query_prefix: str = Field(default="", description="Put in front of every question.")
    passage_prefix: str = Field(default="", description="Put in front of every passage.")
    start: str = Field(default="Start the server.", exclude=True, description="How to mend its absence.")

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"embed_batch_size": BATCH_SIZE, **values})

    async def _ask(self, texts: list[str]) -> object:
        """What the server answers for some texts: a list of vectors in the same order, if it is to be trusted."""
        raise NotImplementedError

    async def _made(self, texts: Sequence[str], prefix: str) -> list[list[float]]:
        try:
            async with asyncio.timeout(BATCH_SECONDS):
                answer = await self._ask([clean(prefix + text) for text in texts])
        except TimeoutError as error:
            raise BackendError(
                f"{self.label} made no vectors within {BATCH_SECONDS:.0f} seconds.",
                "See what the server does, or choose a smaller model.",
                reason="stalled",
            ) from error
        except ConsentMissing as error:
            if error.reason != "consent_missing":
                raise
            raise ConsentMissing(str(error), f"Allow it. Run: docmind settings allow {origin(self.url)}") from error
        except ContextTooLong as error:
            hint = error.hint or "Choose a model that reads 512 tokens or more, and a short prefix."
            raise ContextTooLong(str(error), hint) from error
        except BackendUnavailable as error:
            if error.reason != "unreachable":
                raise
            raise BackendUnavailable(str(error), self.start) from error
        return checked_vectors(answer, len(texts))

    # What LlamaIndex calls

    def _get_query_embedding(self, query: str) -> list[float]:
        return wait_for(self._made([query], self.query_prefix))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._made([query], self.query_prefix))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return wait_for(self._made([text], self.passage_prefix))[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._made([text], self.passage_prefix))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return wait_for(self._made(texts, self.passage_prefix))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._made(texts, self.passage_prefix)


def checked_vectors(answer: object, count: int) -> list[list[float]]:
    """The vectors a server sent, if they are that.

    Raises:
        BackendError: They are not `count`, not of one length, or not of finite numbers, or one is nothing but zeros,
            which is no direction (`bad_response`).
    """
    if not isinstance(answer, list) or len(answer) != count:
        there = f"{len(answer)} vectors" if isinstance(answer, list) else "no list of vectors"
        raise bad_response(f"It sent {there} for {count} texts.")
    for vector in answer:
        if not isinstance(vector, list) or not 0 < len(vector) <= MOST_NUMBERS or len(vector) != len(answer[0]):
            raise bad_response("Its vectors are not all of one length.")
        # Comparisons with NaN are false; a bool is no number here.
        if not all(type(x) in (int, float) and abs(x) <= LARGEST_NUMBER for x in vector) or not math.hypot(*vector):
            raise bad_response("Its vectors are not made of finite numbers, or of nothing but zeros.")
    return answer
