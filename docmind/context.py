"""What the model is given to read: evidence packed by time, then by window, then by pages. Knows no backend.

A small machine reads a few hundred tokens a second, so five full pages would mean ten seconds of silence. How much goes
in follows from the measured reading speed of the model in use; what stayed out is listed, never cut in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from docmind.citations import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from docmind.library import Library
    from docmind.search import Hit

MAX_PAGES = 5  # pages shown to the model: more added no correct answers and cost time (docs/decisions.md)
MIN_EVIDENCE_TOKENS = 320  # the best passage goes in even on a machine too slow for the target
UNMEASURED_TOKENS_PER_SECOND = 250.0  # of a model not measured yet: the starter on two cores
NEIGHBOURS = 2  # passages looked at on each side of a hit when there is room left


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A passage that was found and not given to the model."""

    document: str
    page: int
    start: int
    end: int
    tokens: int
    reason: Literal["time", "window", "pages"]


@dataclass(frozen=True, slots=True)
class Packed:
    """The evidence for one answer.

    Attributes:
        evidence: Numbered from 1 in order of relevance; neighbouring passages of a page are one piece.
        tokens: Of the evidence as written into the prompt, by the model's own tokenizer.
        budget_tokens: What the time and the window allowed.
    """

    evidence: tuple[Evidence, ...]
    left_out: tuple[LeftOut, ...]
    tokens: int
    budget_tokens: int


def evidence_text(piece: Evidence) -> str:
    """One piece of evidence as the model reads it."""
    return f"[{piece.number}] {piece.document}, page {piece.page}:\n{piece.text.strip()}\n"


def pack(
    library: Library,
    hits: Sequence[Hit],
    count_tokens: Callable[[list[str]], list[int]],
    *,
    window_tokens: int,
    reserved_tokens: int,
    tokens_per_second: float | None,
    target_seconds: float,
) -> Packed:
    """Choose the evidence: best passages first, then their neighbours while there is room.

    Args:
        hits: Best first.
        count_tokens: The model's own count for each text.
        reserved_tokens: Of the window: instructions, question and answer.
        tokens_per_second: How fast the model reads a prompt; None: not measured yet.
        target_seconds: How long reading the evidence may take.
    """
    speed = tokens_per_second or UNMEASURED_TOKENS_PER_SECOND
    by_time = max(round(speed * target_seconds), MIN_EVIDENCE_TOKENS)
    by_window = window_tokens - reserved_tokens
    budget = max(0, min(by_time, by_window))
    short: Literal["time", "window"] = "time" if by_time <= by_window else "window"

    pieces = [Evidence(1, hit.document_id, hit.document, hit.page, hit.start, hit.end, hit.text) for hit in hits]
    sizes = count_tokens([evidence_text(piece) for piece in pieces]) if pieces else []
    chosen: list[Evidence] = []
    left_out: list[LeftOut] = []
    used = 0
    pages: set[tuple[str, int]] = set()
    for piece, size in zip(pieces, sizes, strict=True):
        page = (piece.document_id, piece.page)
        reason: Literal["time", "window", "pages"] | None = None
        if page not in pages and len(pages) == MAX_PAGES:
            reason = "pages"
        elif used + size > budget:
            reason = short
        if reason:
            left_out.append(LeftOut(piece.document, piece.page, piece.start, piece.end, size, reason))
            continue
        pages.add(page)
        chosen.append(piece)
        used += size
    if not left_out:
        chosen, used = _with_neighbours(library, chosen, used, budget, count_tokens)
    merged = _merged(chosen)
    evidence = tuple(replace(piece, number=number) for number, piece in enumerate(merged, start=1))
    tokens = sum(count_tokens([evidence_text(piece) for piece in evidence])) if evidence else 0
    return Packed(evidence, tuple(left_out), tokens, budget)


def as_json(left_out: LeftOut) -> dict[str, Any]:
    """A left-out passage as the contract prints it."""
    return {name: getattr(left_out, name) for name in ("document", "page", "start", "end", "tokens", "reason")}


def _with_neighbours(
    library: Library,
    chosen: list[Evidence],
    used: int,
    budget: int,
    count_tokens: Callable[[list[str]], list[int]],
) -> tuple[list[Evidence], int]:
    """Add the passages around the best ones, nearest first, while they fit."""
    present = {(piece.document_id, piece.page, piece.start) for piece in chosen}
    result = list(chosen)
    for piece in chosen:
        around = library.passages_of_page(piece.document_id, piece.page)
        here = next((n for n, p in enumerate(around) if p.start == piece.start), None)
        if here is None:
            continue
        for step in range(1, NEIGHBOURS + 1):
            for n in (here + step, here - step):
                if not 0 <= n < len(around) or (piece.document_id, piece.page, around[n].start) in present:
                    continue
                near = around[n]
                neighbour = replace(piece, start=near.start, end=near.end, text=near.text)
                size = count_tokens([neighbour.text])[0]
                if used + size > budget:
                    return result, used
                present.add((piece.document_id, piece.page, neighbour.start))
                result.append(neighbour)
                used += size
    return result, used


def _merged(chosen: Sequence[Evidence]) -> list[Evidence]:
    """Join passages that touch on their page; a piece stands where its best passage stood."""
    result: list[Evidence] = []
    for piece in chosen:
        for n, other in enumerate(result):
            if (other.document_id, other.page) != (piece.document_id, piece.page):
                continue
            if other.end == piece.start:
                result[n] = replace(other, end=piece.end, text=other.text + piece.text)
                break
            if piece.end == other.start:
                result[n] = replace(other, start=piece.start, text=piece.text + other.text)
                break
        else:
            result.append(piece)
            continue
    return result
