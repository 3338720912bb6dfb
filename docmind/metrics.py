"""The figures of past answers, from the receipts that `docmind.answer` leaves in the library. Knows no screen.

A receipt holds figures only, never words of a question or an answer.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from docmind import store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from docmind.library import Library

# What a spreadsheet takes for the beginning of a formula.
# Source: OWASP, CSV injection.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """One answer that has ended. None: not known, as when it ended before there was anything to measure."""

    run_id: str
    started_at: str  # ISO 8601, UTC
    model: str | None
    backend: str | None
    profile: str | None
    finished: str  # complete, stopped, cut or failed
    first_token_seconds: float | None  # from the question to the first word, search and loading included
    tokens_per_second: float | None  # of writing
    prompt_tokens: int | None
    answer_tokens: int | None
    total_seconds: float | None
    retrieval_seconds: float | None
    citations: int | None


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """The medians of one model's answers; None where no answer has the figure."""

    model: str
    backend: str
    answers: int
    first_token_seconds: float | None
    tokens_per_second: float | None


def answers(library: Library, limit: int = 200) -> list[AnswerFigures]:
    """The last answers that have ended, newest first; those whose program died have few figures."""
    with store.reading(library.path) as db:
        rows = db.execute(
            "SELECT id, state, started_at, (SELECT data FROM run_events WHERE run_id = runs.id AND kind = 'receipt'"
            " ORDER BY sequence DESC LIMIT 1) AS receipt FROM runs WHERE kind = 'answer' AND state != 'running'"
            " ORDER BY started_at DESC, rowid DESC LIMIT ?",
            (limit,),
        ).fetchall()
    return [_figures(row["id"], row["started_at"], row["state"], json.loads(row["receipt"] or "{}")) for row in rows]


def by_model(figures: Iterable[AnswerFigures]) -> list[ModelFigures]:
    """Medians by model and backend, most answers first."""
    groups: dict[tuple[str, str], list[AnswerFigures]] = {}
    for answer in figures:
        if answer.model is not None:
            groups.setdefault((answer.model, answer.backend or ""), []).append(answer)
    found = [
        ModelFigures(
            model, backend, len(group),
            _median(answer.first_token_seconds for answer in group),
            _median(answer.tokens_per_second for answer in group),
        )
        for (model, backend), group in groups.items()
    ]  # fmt: skip
    return sorted(found, key=lambda model: (-model.answers, model.model))


def as_csv(figures: Iterable[AnswerFigures]) -> bytes:
    """All figures for a spreadsheet, UTF-8 with a mark (Excel needs it); no text is taken for a formula."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(AnswerFigures)])
    writer.writeheader()
    for answer in figures:
        writer.writerow({name: _cell(value) for name, value in asdict(answer).items()})
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def _cell(value: Any) -> Any:
    """A text that begins like a formula gets a quotation mark in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def _figures(run_id: str, started_at: str, state: str, receipt: dict[str, Any]) -> AnswerFigures:
    """One row; receipts of older and newer versions may lack figures, or have others."""
    timings = receipt.get("timings") or {}
    return AnswerFigures(
        run_id=run_id,
        started_at=started_at,
        model=receipt.get("model"),
        backend=receipt.get("backend"),
        # An answer with a model of the moment instead of a profile has an empty name.
        profile=receipt.get("profile") or None,
        finished=receipt.get("finished") or state,
        first_token_seconds=_number(timings.get("first_token_s")),
        tokens_per_second=_number(timings.get("tokens_per_second")),
        prompt_tokens=_count(timings.get("prompt_tokens")),
        answer_tokens=_count(timings.get("answer_tokens")),
        total_seconds=_number(timings.get("total_s")),
        retrieval_seconds=_number(timings.get("retrieval_s")),
        citations=_count(receipt.get("citations")),
    )


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _median(values: Iterable[float | None]) -> float | None:
    """The median of what is known, None of nothing."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
