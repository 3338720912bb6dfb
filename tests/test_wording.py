"""Words that the screen and the command line share."""

from __future__ import annotations

import pytest

from docmind.events import ModelWaiting
from docmind.wording import waiting_line


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (ModelWaiting("waiting", ahead=1), "1 before you …"),
        (ModelWaiting("thinking"), "Thinking …"),
        (ModelWaiting("loading"), "Loading the model …"),
        (ModelWaiting("loading", seconds=23), "Loading the model … 23 s"),
        (ModelWaiting("loading", done=40, total=100, seconds=2), "Loading the model 40 % … 2 s"),
        (ModelWaiting("reading"), "Reading …"),
        (ModelWaiting("reading", done=1024, total=2048), "Reading 1,024 of 2,048 tokens …"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_does_not_write_yet_says_what_it_does(event, line):
    """With how long, or how far, where that is known."""
    assert waiting_line(event) == line
