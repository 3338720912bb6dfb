"""Two ways to read the same words, taking turns, so that a busy machine is busy for both."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@contextlib.contextmanager
def stand_in(module: str, pace: float | None = None) -> Iterator[str]:
    """The address of a stand-in of the tests (`tests.servers.NAME`) in a process of its own; `pace` is words a second,
    None as fast as it can."""
    command = [sys.executable, "-m", f"tests.servers.{module}", *(["--pace", str(pace)] if pace else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def at_both_paces(name: str, description: str, measure: Callable[..., dict[str, Any]]) -> None:
    """Measure at a fast model's pace and flat out, print, and write results/NAME.json; reads the command line.

    Args:
        measure: Takes rounds, tokens, and the pace of the stand-in (None: as fast as it can).
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pace", type=float, default=200.0, help="words a second of the stand-in")
    arguments = parser.parse_args()
    load_before = psutil.getloadavg()[0]
    result = {
        "load_average_before": round(load_before, 2),
        "decode": measure(arguments.rounds, arguments.tokens, arguments.pace),
        "flat_out": measure(arguments.rounds, 10 * arguments.tokens),
        "settings": {"tokens": arguments.tokens, "pace": arguments.pace},
    }
    machine.write(name, result)
