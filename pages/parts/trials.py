"""Trying a model from the Models page: a button that starts it, what it is doing, and what came back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import detection
from docmind.trial import TrialRun
from pages.parts.frame import config, show_error
from pages.parts.safe import answer, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def draw_model_test(name: str, usable: Sequence[str]) -> None:
    """Choose one of a backend's models and run it."""
    place = f"backend {name}"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        model = st.selectbox("Test a model", usable, key=f"model of {name}")
        draw_test_button(place, name, model, {}, False)
    draw_test_result(place)


def draw_test_button(
    place: str,
    name: str,
    model: str,
    options: Mapping[str, Any],
    is_disabled: bool,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Starts a test. One at a time: a second model in memory would slow the first down."""
    _, run = st.session_state.get("trial", ("", None))
    is_running = run is not None and run.is_running
    if st.button("Test", key=f"test {place}", icon=":material/play_arrow:", disabled=is_disabled or is_running):
        st.session_state["trial"] = (place, TrialRun(config(), name, model, options, arguments))
        st.rerun()


def draw_test_result(place: str) -> None:
    """The test that was started here: how far it is, or what came back."""
    where, run = st.session_state.get("trial", ("", None))
    if where != place or run is None:
        return
    if run.is_running:
        draw_running_test(run)
    elif run.error is not None:
        show_error(run.error)
    elif run.trial is not None:
        trial = run.trial
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


@st.fragment(run_every=0.3)
def draw_running_test(run: TrialRun) -> None:
    """What a test is doing; at its end the page is drawn anew."""
    if not run.is_running:
        detection.forget()  # the model is in memory now
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
    seconds = time.monotonic() - run.started_at
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Stop", icon=":material/stop:", key="stop test", disabled=run.is_stopping):
            run.stop()
        st.caption("Stopping…" if run.is_stopping else f"{words[progress.phase]} · {seconds:.0f} s")
    if progress.text:
        st.markdown(answer(progress.text))
