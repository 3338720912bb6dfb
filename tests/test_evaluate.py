"""Measures against examples computed by hand."""

from __future__ import annotations

import json
import math

import pytest

from docmind.errors import DocMindError
from docmind.evaluate import Question, Score, evaluate, ndcg, read_questions, summarise

A, B, C, D = (("a.pdf", n) for n in range(1, 5))


def score(pages, relevant, rank):
    """A score as `evaluate` gives it."""
    return Score(
        Question("?", "", dict.fromkeys(relevant, 1.0)),
        tuple(pages),
        rank,
        ndcg(pages, dict.fromkeys(relevant, 1.0)),
        0.5,
    )


def test_ndcg_of_the_only_page_is_its_discount():
    """First 1, second 1/log2(3), third 1/2, missing 0."""
    assert ndcg([A, B], {A: 1.0}) == 1.0
    assert ndcg([B, A], {A: 1.0}) == pytest.approx(1 / math.log2(3))
    assert ndcg([B, C, A], {A: 1.0}) == pytest.approx(0.5)
    assert ndcg([B, C], {A: 1.0}) == 0.0
    assert ndcg([], {A: 1.0}) == 0.0
    assert ndcg([A], {}) == 0.0


def test_ndcg_of_grades_is_what_one_computes_by_hand():
    """Grades 3 and 1, found in the wrong order behind a useless page: (1/log2(3) + 3/2) / (3 + 1/log2(3))."""
    assert ndcg([B, C, A], {A: 3.0, C: 1.0}) == pytest.approx((1 / math.log2(3) + 1.5) / (3 + 1 / math.log2(3)))
    assert ndcg([A, C], {A: 3.0, C: 1.0, D: 0.0}) == 1.0


def test_ndcg_looks_no_deeper_than_asked():
    """The ideal, too, has only so many places."""
    pages = [("x", n) for n in range(10)]
    assert ndcg([*pages, A], {A: 1.0}) == 0.0
    many = {("y", n): 1.0 for n in range(20)}
    assert ndcg([("y", n) for n in range(10)], many) == pytest.approx(1.0)


def test_the_summary_is_the_mean_over_questions():
    """Ranks 1, 2, 4 and none: hit@1 1/4, hit@3 2/4, hit@5 3/4, MRR (1 + 1/2 + 1/4) / 4."""
    scores = [score([A, B], [A], 1.0), score([B, A], [A], 0.5), score([B, C, D, A], [A], 0.25), score([B], [A], 0.0)]
    summary = summarise(scores)
    assert (summary["questions"], summary["hit@1"], summary["hit@3"], summary["hit@5"]) == (4, 0.25, 0.5, 0.75)
    assert summary["hit@10"] == 0.75
    assert summary["mrr"] == pytest.approx(0.4375)
    assert summary["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(5)) / 4, abs=1e-4)
    assert summary["seconds_per_question"] == 0.5


def test_pages_count_once_and_are_ranked_by_their_best_passage(shelf):
    """On the made-up library every question finds its page first."""
    questions = [
        Question("How many containers did the harbour handle?", "48,200", {("harbour report 2023.pdf", 1): 1.0}),
        Question("How much honey does a colony need?", "20 kilograms", {("beekeeping.md", 1): 1.0}),
        Question("What is not in any document?", "", {("missing.pdf", 1): 1.0}),
    ]
    scores = list(evaluate(shelf, questions))
    assert all(len(set(s.pages)) == len(s.pages) for s in scores)
    assert [s.reciprocal_rank for s in scores] == [1.0, 1.0, 0.0]
    assert [s.hit(1) for s in scores] == [True, True, False]
    assert summarise(scores)["mrr"] == pytest.approx(2 / 3, abs=1e-4)


def test_mrr_looks_no_deeper_than_k(shelf):
    """A page at rank 2 counts nothing at k = 1."""
    first = next(evaluate(shelf, [Question("lemon cake", "", {})])).pages
    second = Question("lemon cake", "", {first[1]: 1.0})
    assert next(evaluate(shelf, [second], 10)).reciprocal_rank == 0.5
    assert next(evaluate(shelf, [second], 1)).reciprocal_rank == 0.0


def test_both_forms_of_a_question_are_read(tmp_path):
    """Pages of one document, or graded judgements; blank lines, a mark in front and U+2028 do no harm."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question": "One\u2028line?", "answer": "yes", "doc": "a.pdf", "pages": [1, 3], "extra": 0},
        {"question": "Two?", "relevant": [{"doc": "a.pdf", "page": 2, "grade": 2}, {"doc": "b.pdf", "page": 1}]},
    ]
    path.write_text(
        "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n", encoding="utf-8"
    )
    one, two = read_questions(path)
    assert one == Question("One\u2028line?", "yes", {("a.pdf", 1): 1.0, ("a.pdf", 3): 1.0})
    assert two == Question("Two?", "", {("a.pdf", 2): 2.0, ("b.pdf", 1): 1.0})


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "5",
        '"text"',
        "null",
        "{}",
        '{"question": "x"}',
        '{"question": "x", "doc": "a", "pages": ["one"]}',
        '{"question": "x", "relevant": [1]}',
        '{"question": "x", "relevant": 3}',
    ],
)
def test_a_line_that_is_no_question_is_named_by_its_number(tmp_path, line):
    """So that one can mend the file."""
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "good", "doc": "a", "pages": [1]}\n' + line)
    with pytest.raises(DocMindError, match="Line 2") as caught:
        read_questions(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    "content", [None, b"", b"\n\n", b"\xff\xfe\x00"], ids=["missing", "empty", "blank", "no UTF-8"]
)
def test_a_file_without_questions_is_an_error(tmp_path, content):
    """Not a division by nothing."""
    path = tmp_path / "questions.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DocMindError) as caught:
        read_questions(path)
    assert caught.value.hint
