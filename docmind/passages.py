"""Pages → passages: a LlamaIndex transform that cuts a page where sentences and lines end. Knows no file and no index.

The passages of a page are a partition of its text: joined, they restore it letter for letter. So a passage never
crosses a page, and a quote's offsets need no second bookkeeping.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_index.core.schema import TextNode, TransformComponent

from docmind.embed import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.schema import BaseNode

# Where a page may be cut, best first: an empty line, the end of a sentence, the end of a line, a space.
# The cut is after the match, so that every character belongs to exactly one passage.
CUTS: tuple[re.Pattern[str], ...] = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"[.!?…。！？][\"'”’)\]]*\s+"),
    re.compile(r"\n\s*"),
    re.compile(r"\s+"),
)
LONG_WORD_CHARACTERS = 100  # BERT's WordPiece makes one [UNK] of anything longer
MAX_TITLE_TOKENS = 96  # a title may not eat the whole budget: file names reach 255 characters


def embedded_text(title: str, text: str) -> str:
    """What the model reads of a passage: the document's title in front, so that "BESTBUY 2023" finds its pages.

    The title is cut to `MAX_TITLE_TOKENS`.
    """
    title = _cut_title(title)[0]
    return f"{title}\n{text}" if title else text


@lru_cache(maxsize=256)
def _cut_title(title: str) -> tuple[str, int]:
    """A title as the model reads it, and its tokens."""
    spans = load_tokenizer().encode(title, add_special_tokens=False).offsets
    if len(spans) > MAX_TITLE_TOKENS:
        title = title[: spans[MAX_TITLE_TOKENS][0]].rstrip()
    return title, min(len(spans), MAX_TITLE_TOKENS)


def split_page(text: str, budget_tokens: int) -> list[tuple[int, int]]:
    """Cut a page into passages of at most `budget_tokens` tokens.

    Returns:
        Offsets (start, end) in code points: the first starts at 0, each starts where the one before ended, the last
        ends at len(text). [] for a page without visible text.
    """
    if not text.strip():
        return []
    passages: list[tuple[int, int]] = []
    for start, end in _split(text, budget_tokens):
        # A cut inside a word can make more tokens of its two halves than it had: then cut once more.
        if end - start < len(text) and _count(text[start:end]) > budget_tokens:
            passages += [(start + a, start + b) for a, b in split_page(text[start:end], budget_tokens)]
        else:
            passages.append((start, end))
    return passages


def _count(text: str) -> int:
    return len(load_tokenizer().encode(text, add_special_tokens=False).ids)


def _split(text: str, budget_tokens: int) -> list[tuple[int, int]]:
    """`split_page` by the tokens of the whole page."""
    spans = np.asarray(load_tokenizer().encode(text, add_special_tokens=False).offsets, dtype=np.int64).reshape(-1, 2)
    token_starts = _starts(spans)
    total = len(token_starts)
    if total <= budget_tokens:
        return [(0, len(text))]
    # Equal shares instead of full passages and a remainder: a last passage of ten words finds nothing by itself.
    count = -(-total // budget_tokens)
    cuts = [np.asarray([m.end() for m in pattern.finditer(text)], dtype=np.int64) for pattern in CUTS]
    passages: list[tuple[int, int]] = []
    start, first = 0, 0  # character and token where the open passage begins
    while total - first > budget_tokens:
        remaining = total - first
        share = -(-remaining // max(count - len(passages), -(-remaining // budget_tokens)))
        latest = int(token_starts[first + budget_tokens])  # a cut here leaves exactly budget_tokens before it
        wanted = int(token_starts[min(first + share, total - 1)])
        cut = _choose_cut(cuts, start, wanted, max(latest, start + 1))
        passages.append((start, cut))
        start = cut
        first = int(np.searchsorted(token_starts, cut))
    if start < len(text):
        passages.append((start, len(text)))
    return passages


def _starts(spans: np.ndarray) -> np.ndarray:
    """Where tokens begin. A word the tokenizer gives up on (over 100 characters) counts as one token per 4 characters.

    Otherwise a page without spaces would be one passage of any length: one unknown word.
    """
    if not len(spans) or int((spans[:, 1] - spans[:, 0]).max()) <= LONG_WORD_CHARACTERS:
        return spans[:, 0]
    return np.concatenate(
        [np.arange(a, b, 4) if b - a > LONG_WORD_CHARACTERS else np.asarray([a]) for a, b in spans.tolist()]
    )


def _choose_cut(cuts: Sequence[np.ndarray], start: int, wanted: int, latest: int) -> int:
    """The best boundary near `wanted`, never after `latest`; the better kinds may lie farther away."""
    length = max(wanted - start, 1)
    for positions, reach in zip(cuts, (0.25, 0.4, 0.5, 0.9), strict=True):
        near = positions[(positions >= wanted - reach * length) & (positions <= latest) & (positions > start)]
        near = near[near <= wanted + reach * length]
        if len(near):
            return int(near[np.argmin(np.abs(near - wanted))])
    return latest  # one word longer than a passage: cut between two of its tokens


class PassageSplitter(TransformComponent):
    """One node per page in, one node per passage out, ready for the embedding model.

    A page node carries ``document_id``, ``title`` and ``page`` in its metadata; a passage node carries the same and
    ``start`` and ``end``, and its text is `embedded_text`.
    """

    passage_tokens: int = 254

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Split every page node."""
        passages: list[BaseNode] = []
        for node in nodes:
            title = str(node.metadata.get("title", ""))
            text = node.get_content()
            for start, end in split_page(text, max(1, self.passage_tokens - _cut_title(title)[1])):
                metadata = {**node.metadata, "start": start, "end": end}
                passages.append(
                    TextNode(
                        text=embedded_text(title, text[start:end]),
                        metadata=metadata,
                        excluded_embed_metadata_keys=list(metadata),
                        excluded_llm_metadata_keys=list(metadata),
                    )
                )
        return passages
