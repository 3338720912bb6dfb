"""The figures of past answers, as the Performance page shows them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys

import pytest

from docmind import metrics, runs, store
from docmind.answer import Answer, ask


def add_run(library, *, started_at="2026-11-21T10:00:00.000+00:00", state="complete", **receipt):
    """An answer in the library that began then, with a receipt of these figures."""
    run_id = runs.start_run(library, "answer")
    if receipt:
        runs.add_event(library, run_id, "receipt", {"finished": state, "reason": None, "backend": "llama.cpp",
                                                    "profile": "starter", "citations": 1, **receipt})  # fmt: skip
    runs.finish_run(library, run_id, state)
    with store.writing(library.path) as db:
        db.execute("UPDATE runs SET started_at = ? WHERE id = ?", (started_at, run_id))
    return run_id


def timings(first, speed):
    """The timings of a receipt."""
    return {"retrieval_s": 0.25, "first_token_s": first, "total_s": 4.5, "prompt_tokens": 900, "answer_tokens": 40,
            "tokens_per_second": speed}  # fmt: skip


def test_a_real_answer_leaves_its_figures(stocked):
    """What `ask` returned is what is read back."""
    answer = [*ask(stocked, "How many containers did the harbour of Ellmere handle in 2023?")][-1]
    assert isinstance(answer, Answer)
    (figures,) = metrics.answers(stocked)
    assert figures.run_id == answer.run_id
    assert (figures.model, figures.backend, figures.profile) == (answer.model, answer.backend, answer.profile)
    assert figures.finished == answer.finished == "complete"
    assert figures.first_token_seconds == answer.timings["first_token_s"] > 0
    assert figures.tokens_per_second == answer.timings["tokens_per_second"] > 0
    assert figures.total_seconds == answer.timings["total_s"]
    assert figures.retrieval_seconds == answer.timings["retrieval_s"]
    assert figures.prompt_tokens == answer.timings["prompt_tokens"] > 0
    assert figures.answer_tokens == answer.timings["answer_tokens"] > 0
    assert figures.citations == len(answer.citations)


def test_an_empty_library_has_no_figures(library):
    """Nor has one that only took in documents."""
    assert metrics.answers(library) == []
    runs.finish_run(library, runs.start_run(library, "ingestion"), "complete")
    assert metrics.answers(library) == []
    assert metrics.by_model([]) == []


def test_answers_come_newest_first_and_no_more_than_asked_for(library):
    """Those that are being written are not among them."""
    ids = [add_run(library, started_at=f"2026-11-21T10:00:0{n}.000+00:00", model="m") for n in range(5)]
    runs.start_run(library, "answer")
    assert [figures.run_id for figures in metrics.answers(library)] == ids[::-1]
    assert [figures.run_id for figures in metrics.answers(library, limit=2)] == ids[:2:-1]


def test_an_answer_whose_program_died_has_few_figures(library):
    """There is no receipt: it is listed as failed, and belongs to no model."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    run_id = runs.start_run(library, "answer")
    with store.writing(library.path) as db:
        db.execute("UPDATE runs SET pid = ? WHERE id = ?", (int(dead.stdout), run_id))
    runs.finish_run(library, runs.start_run(library, "ingestion"), "complete")  # closes what died
    (figures,) = metrics.answers(library)
    assert (figures.finished, figures.model, figures.first_token_seconds) == ("failed", None, None)
    assert metrics.by_model([figures]) == []


@pytest.mark.parametrize("value", [None, "fast", True, float("nan"), float("inf"), [1], {}])
def test_a_figure_that_is_no_number_is_not_known(library, value):
    """Receipts of other versions may hold anything."""
    add_run(library, model="m", timings={"first_token_s": value, "answer_tokens": value, "total_s": 2})
    (figures,) = metrics.answers(library)
    assert figures.first_token_seconds is None
    assert figures.answer_tokens is None
    assert figures.total_seconds == 2.0


def test_medians_are_by_model_and_leave_out_what_is_not_known(library):
    """Two backends that run a model of one name are two."""
    for first, speed in ((1.0, 60.0), (9.0, 80.0), (2.0, None), (None, None)):
        add_run(library, model="small", timings=timings(first, speed))
    add_run(library, model="small", backend="another", timings=timings(5.0, 10.0))
    add_run(library, model="silent", timings=timings(None, None))
    models = {(m.model, m.backend): m for m in metrics.by_model(metrics.answers(library))}
    small = models["small", "llama.cpp"]
    assert (small.answers, small.first_token_seconds, small.tokens_per_second) == (4, 2.0, 70.0)
    assert models["small", "another"].first_token_seconds == 5.0
    silent = models["silent", "llama.cpp"]
    assert (silent.answers, silent.first_token_seconds, silent.tokens_per_second) == (1, None, None)
    assert next(iter(models)) == ("small", "llama.cpp"), "most answers first"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_export_is_a_formula(library, start):
    """A model's name is a file's name, and may be anything."""
    add_run(library, model=f"{start}cmd|' /C calc'!A0", profile=f"{start}1+1", timings=timings(1.5, 20.0))
    exported = metrics.as_csv(metrics.answers(library))
    (row,) = csv.DictReader(io.StringIO(exported.decode("utf-8-sig"), newline=""))
    assert row["model"] == f"'{start}cmd|' /C calc'!A0"
    assert row["profile"] == f"'{start}1+1"
    assert row["first_token_seconds"] == "1.5", "a number stays one"


def test_the_export_has_every_figure_and_survives_odd_names(library):
    """Quotation marks, line ends and letters of any script come back as they were."""
    name = 'a "b",\nc; Ümläut 模型'
    add_run(library, model=name, timings=timings(1.5, 20.0))
    add_run(library, state="failed")
    answers = metrics.answers(library)
    rows = [*csv.DictReader(io.StringIO(metrics.as_csv(answers).decode("utf-8-sig"), newline=""))]
    assert len(rows) == 2
    assert {row["model"] for row in rows} == {name, ""}
    assert [*rows[0]] == [*metrics.AnswerFigures.__dataclass_fields__]
    assert metrics.as_csv([]).decode("utf-8-sig").startswith("run_id,")
    assert os.linesep not in metrics.as_csv([]).decode().replace("\r\n", "")
