"""What a model wrote, read as a step; the cases of whole answers are in test_agent.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docmind.transcript import Step, answer_so_far, read_step, without_thinking

PIECES = [
    "Thought:", "**Thought:**", "Action:", "Action Input:", "Answer:", "Final Answer:", "Observation:", "Question:",
    "\n", "\n\n", " ", "search_documents", '{"query": "quay"}', "{", "}", "`", "```", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "It cost 3.7 million.", "the answer: 5", "<", "[1]", "x" * 250,
]  # fmt: skip
written = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
MARKS = ("Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:")


@given(written)
def test_nothing_a_model_writes_is_an_error(text):
    """Neither complete nor in the middle."""
    step = read_step(text)
    assert isinstance(step, Step)
    assert not (step.text and step.tool)
    answer_so_far(text)


@given(written)
def test_what_was_shown_is_never_taken_back_or_changed(text):
    """Each longer text shows what the shorter showed, and more; unless thoughts begin in the middle of an answer."""
    if "think>" in text:
        return
    before = ""
    for end in range(len(text) + 1):
        now = answer_so_far(text[:end])
        assert now.startswith(before.rstrip()), (before, now)
        before = now
    if before:
        assert read_step(text).text.startswith(before.rstrip())


@given(written)
def test_no_marker_is_ever_part_of_an_answer(text):
    """Where one stands at the beginning of a line it belongs to the form."""
    for answer in (read_step(text).text, answer_so_far(text)):
        for line in answer.split("\n"):
            assert not line.strip().startswith(MARKS), answer


PAGE, QUAY = {"document": "a.pdf", "page": 3}, {"query": "quay"}


@pytest.mark.parametrize(
    ("text", "tool", "arguments"),
    [
        ('Action: read_page\nAction Input: {"document": "a.pdf", "page": 3}', "read_page", PAGE),
        ("Action: read_page\nAction Input: {'document': 'a.pdf', 'page': 3}", "read_page", PAGE),
        ('Action: search_documents(query="the quay")', "search_documents", {"query": "the quay"}),
        ("**Action**: `search_documents`\n**Action Input**: the quay", "search_documents", {"": "the quay"}),
        ('```json\n{"tool": "list_documents", "input": {}}\n```', "list_documents", {}),
        ('[{"name": "search_documents", "arguments": "{\\"query\\": \\"quay\\"}"}]', "search_documents", QUAY),
        ('Let me look.\nAction: search_documents\n{"query": "quay"}', "search_documents", QUAY),
    ],
    ids=["JSON", "single quotes", "function", "bold", "fenced", "list", "without its marker"],
)  # fmt: skip
def test_a_call_is_read_however_it_is_written(text, tool, arguments):
    """Its name and its arguments."""
    step = read_step(text)
    assert (step.tool, step.arguments) == (tool, arguments)


@pytest.mark.parametrize(
    "text",
    [
        "The harbour handled 48,200 containers.",
        "Two things:\n\n- The answer: it depends.\n- `code {x}`",
        "Action is needed at the quay: it sinks.",
        "{curly} words",
    ],
)
def test_an_ordinary_answer_without_markers_stays_what_it_is(text):
    """Words that look like a marker inside a line are words."""
    assert read_step(text).text == ("" if text.startswith("{") else text)
    assert without_thinking(text) == text


def test_a_long_answer_without_markers_is_shown_while_it_comes():
    """Models that never write a marker stream too."""
    text = "The harbour handled many containers. " * 20
    assert answer_so_far(text[:100]) == ""
    assert answer_so_far(text[:400]).startswith("The harbour handled")
