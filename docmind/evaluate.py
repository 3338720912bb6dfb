"""Search quality on questions whose pages are known. Knows no screen.

A page counts once; pages are ranked by their best passage.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docmind.errors import ContextTooLong, DocMindError
from docmind.search import search

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from docmind.library import Library

DEPTHS = (1, 3, 5, 10)
PASSAGES_PER_PAGE = 6  # passages looked at for each page wanted, since several may lie on one page


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the pages that answer it, with their grades (1 where the file gives none)."""

    question: str
    answer: str
    relevant: dict[tuple[str, int], float]  # (document name, page) -> grade


@dataclass(frozen=True, slots=True)
class Score:
    """What one question scored. `pages` are the ranked (document name, page) pairs."""

    question: Question
    pages: tuple[tuple[str, int], ...]
    reciprocal_rank: float  # 0 when no relevant page is among the first k
    ndcg: float
    seconds: float

    def hit(self, depth: int) -> bool:
        """Whether a relevant page is among the first `depth`."""
        return any(page in self.question.relevant for page in self.pages[:depth])


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file.

    Each line is ``{"question", "answer", "doc", "pages"}`` or ``{"question", "relevant": [{"doc", "page", "grade"}]}``.

    Raises:
        DocMindError: The file cannot be read, or a line is not of either form; the message names the line.
    """
    questions = []
    try:
        # Not splitlines: U+2028 may stand inside a JSON string. utf-8-sig: editors on Windows put a mark in front.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DocMindError(
            f"The questions {path} cannot be read ({error}).", "Name a JSONL file.", reason="not_found"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "relevant" in row:
                relevant = {(str(r["doc"]), int(r["page"])): float(r.get("grade", 1)) for r in row["relevant"]}
            else:
                relevant = {(str(row["doc"]), int(page)): 1.0 for page in row["pages"]}
            questions.append(Question(str(row["question"]), str(row.get("answer", "")), relevant))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DocMindError(
                f"Line {number} of {path} is not a question ({type(error).__name__}: {error}).",
                'Each line is {"question", "answer", "doc", "pages"}'
                ' or {"question", "relevant": [{"doc", "page", "grade"}]}.',
                reason="questions_invalid",
            ) from error
    if not questions:
        raise DocMindError(
            f"{path} holds no questions.", "Put one JSON object on each line.", reason="questions_invalid"
        )
    return questions


def evaluate(library: Library, questions: Sequence[Question], k: int = 10) -> Iterator[Score]:
    """Search for each question and score its pages as it goes."""
    depth = max(k, DEPTHS[-1])
    for question in questions:
        started = time.monotonic()
        hits = search(library, question.question, depth * PASSAGES_PER_PAGE)
        seconds = time.monotonic() - started
        pages = tuple(dict.fromkeys((hit.document, hit.page) for hit in hits))[:depth]
        rank = next((n for n, page in enumerate(pages[:k], start=1) if page in question.relevant), None)
        yield Score(question, pages, 1 / rank if rank else 0.0, ndcg(pages[:10], question.relevant), seconds)


def ndcg(pages: Sequence[tuple[str, int]], relevant: dict[tuple[str, int], float], depth: int = 10) -> float:
    """nDCG at `depth` with linear gain. Source: Järvelin and Kekäläinen, TOIS 2002, in the form trec_eval computes."""
    gained = sum(relevant.get(page, 0.0) / math.log2(n + 1) for n, page in enumerate(pages[:depth], start=1))
    ideal = sorted((grade for grade in relevant.values() if grade > 0), reverse=True)[:depth]
    best = sum(grade / math.log2(n + 1) for n, grade in enumerate(ideal, start=1))
    return gained / best if best else 0.0


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """The means over all questions, in the words of the contract."""
    seconds = sorted(score.seconds for score in scores)
    return {
        "questions": len(scores),
        **{f"hit@{depth}": round(statistics.fmean(score.hit(depth) for score in scores), 4) for depth in DEPTHS},
        "mrr": round(statistics.fmean(score.reciprocal_rank for score in scores), 4),
        "ndcg@10": round(statistics.fmean(score.ndcg for score in scores), 4),
        "seconds_per_question": round(statistics.fmean(seconds), 4),
        "seconds_p50": round(statistics.median(seconds), 4),
        "seconds_p95": round(seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))], 4),
    }


# Answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grade:
    """What one answer scored.

    Attributes:
        contains: The expected answer stands in the given one, after lower-casing and without articles and punctuation.
        f1: Word overlap with the expected answer. Source: Rajpurkar et al., "SQuAD" (EMNLP 2016), section 6.1.
        cited: At least one citation lies on a page that answers the question.
        proven: The share of its claims that are quoted; None when it claims nothing.
    """

    question: str
    expected: str
    answer: str
    contains: bool
    f1: float
    cited: bool
    proven: float | None
    not_in_documents: bool
    first_token_seconds: float | None


def evaluate_answers(library: Library, questions: Sequence[Question], profile: str | None = None) -> Iterator[Grade]:
    """Answer each question with a profile and grade what came back."""
    from docmind.answer import Answer, ask

    for question in questions:
        try:
            answer = next(e for e in ask(library, question.question, profile=profile) if isinstance(e, Answer))
        except ContextTooLong:  # this question alone; anything else would fail for all of them
            yield Grade(question.question, question.answer, "", False, 0.0, False, None, False, None)
            continue
        claims = [s for s in answer.sentences if s.is_claim]
        given, expected = _normalised(answer.text), _normalised(question.answer)
        yield Grade(
            question=question.question,
            expected=question.answer,
            answer=answer.text,
            contains=bool(expected) and f" {' '.join(expected)} " in f" {' '.join(given)} ",
            f1=round(_f1(given, expected), 4),
            cited=any((c["document"], c["page"]) in question.relevant for c in answer.citations),
            proven=sum(s.support == "quoted" for s in claims) / len(claims) if claims else None,
            not_in_documents=answer.not_in_documents,
            first_token_seconds=answer.timings["first_token_s"],
        )


def summarise_answers(grades: Sequence[Grade]) -> dict[str, Any]:
    """The means over all answers; `claims_quoted` is over answers that claim something."""
    proven = [grade.proven for grade in grades if grade.proven is not None]
    first = sorted(g.first_token_seconds for g in grades if g.first_token_seconds is not None)
    return {
        "answers": len(grades),
        "contains": round(statistics.fmean(grade.contains for grade in grades), 4),
        "f1": round(statistics.fmean(grade.f1 for grade in grades), 4),
        "cited_right_page": round(statistics.fmean(grade.cited for grade in grades), 4),
        "claims_quoted": round(statistics.fmean(proven), 4) if proven else None,
        "not_in_documents": round(statistics.fmean(grade.not_in_documents for grade in grades), 4),
        "first_token_seconds_p50": first[len(first) // 2] if first else None,
    }


def _normalised(text: str) -> list[str]:
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")]


def _f1(given: Sequence[str], expected: Sequence[str]) -> float:
    common = sum((Counter(given) & Counter(expected)).values())
    return 2 * common / (len(given) + len(expected)) if common else 0.0
