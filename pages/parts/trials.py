"""Trying a model from the Models page: a button that starts it, what it is doing, and what came back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import model_runs
from docmind.errors import DocMindError
from docmind.trial import TrialProgress
from pages.parts.frame import config, show_error
from pages.parts.safe import answer, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from docmind.model_runs import ModelRun

RUNNING_SECONDS = 0.3  # between two looks at a test


def draw_test_button(
    place: str,
    name: str,
    model: str,
    options: Mapping[str, Any],
    is_disabled: bool,
    arguments: Mapping[str, Any] | None = None,
    *,
    profile: str | None = None,
) -> None:
    """Starts a test. One at a time: a second model in memory would slow the first down."""
    is_running = any(run.action == "test" and run.is_running for run in model_runs.model_runs())
    if st.button("Test", key=f"test {place}", icon=":material/play_arrow:", disabled=is_disabled or is_running):
        try:
            model_runs.start_test(config(), name, model, options, arguments, profile=profile)
        except DocMindError as error:  # another tab was quicker
            show_error(error)
            return
        st.rerun()


def draw_test_result(name: str, profile: str | None = None) -> None:
    """The test that was started here: how far it is, or what came back."""
    run = next((r for r in model_runs.model_runs(name) if r.action == "test" and r.profile == profile), None)
    if run is None:
        return
    if run.is_running:
        draw_running_test(run)
    elif run.error is not None:
        show_error(run.error)
    elif run.result is not None:
        trial = run.result
        silence = "Stopped before the first word." if trial.is_stopped else "The model wrote nothing."
        st.markdown(answer(trial.text) or silence)
        figures = ["stopped"] if trial.is_stopped else []
        figures.append(plain(run.model))
        if trial.first_token_seconds is not None:
            figures.append(f"first token {trial.first_token_seconds:.1f} s")
        if trial.tokens_per_second is not None:
            figures.append(f"{trial.tokens_per_second:.0f} tokens/s")
        figures.append(f"window {trial.context_window:,} tokens")
        if trial.load_seconds is not None:
            figures.append(f"loaded in {trial.load_seconds:.1f} s")
        st.caption(" · ".join(figures))


@st.fragment(run_every=RUNNING_SECONDS)
def draw_running_test(run: ModelRun) -> None:
    """What a test is doing; at its end the page is drawn anew."""
    if not run.is_running:
        st.rerun()
    progress = run.progress
    words = {
        "starting": "Starting",
        "waiting": "Waiting for another answer",
        # At 100 % it reads a first prompt to measure its speed.
        "loading": f"Loading {progress.done} %" if 0 < progress.done < 100 else "Loading",
        "reading": "Reading",
        "writing": "Writing",
    }
    seconds = time.monotonic() - run.started
    is_stopping = run.stop_requested.is_set()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Stop", icon=":material/stop:", key="stop test", on_click=run.stop, disabled=is_stopping)
        doing = words.get(progress.doing, progress.doing.capitalize())
        st.caption("Stopping…" if is_stopping else f"{plain(doing)} · {seconds:.0f} s")
    if isinstance(progress, TrialProgress) and progress.text:
        st.markdown(answer(progress.text))
