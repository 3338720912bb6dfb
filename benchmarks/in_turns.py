"""Two ways to read the same words, taking turns, so that a busy machine is busy for both."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Reading = Callable[[], tuple[float, float, float, int]]


def measure(bare: Reading, ours: Reading, rounds: int) -> dict[str, Any]:
    """Medians of both, and the median of the ratios of neighbouring turns, in words per second.

    Args:
        bare: Reads an answer; gives when it asked, when it saw the first and the last word (`time.perf_counter`), and
            how many they were. Time runs from the first word to the last, as the caller sees them.
        ours: The same through our adapter.
        rounds: Turns that count; one more comes before them and warms up.
    """
    rows = []
    for turn in range(rounds + 1):
        pair = (bare, ours)
        readings = {which: pair[which]() for which in ((0, 1) if turn % 2 else (1, 0))}
        if turn:
            rows.append([figure for which in (0, 1) for figure in _figures(*readings[which])])
    columns = [statistics.median(column) for column in zip(*rows, strict=True)]
    return {
        "ratio": round(statistics.median(row[2] / row[0] for row in rows), 3),
        "bare_tokens_per_second": round(columns[0], 1),
        "adapter_tokens_per_second": round(columns[2], 1),
        "bare_first_token_seconds": round(columns[1], 4),
        "adapter_first_token_seconds": round(columns[3], 4),
        "rounds": [[round(value, 4) for value in row] for row in rows],
    }


def _figures(asked: float, first: float, last: float, words: int) -> tuple[float, float]:
    """Words per second, and seconds to the first."""
    return (words - 1) / (last - first), first - asked
