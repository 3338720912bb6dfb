"""What is being done with a backend's models: how far it is, a way to stop it, how it ended.

The runs belong to the process (`docmind.model_runs`): another tab, or one that is opened later, shows the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import streamlit as st

from docmind import model_runs, runs
from docmind.errors import DocMindError
from docmind.model_runs import Downloaded
from pages.parts.frame import show_error
from pages.parts.progress import left_words
from pages.parts.safe import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from docmind.model_runs import ModelRun

RUNNING_SECONDS: Final = 0.5  # between two looks at a run
IDLE_SECONDS: Final = 2.0  # and at whether another tab has started or ended one
_CAN_STOP: Final = ("pull", "download", "load", "look")
_OWN_PLACE: Final = ("test", "look")  # drawn where their result is


def begin(start: Callable[[], ModelRun]) -> None:
    """Start something and draw the page anew; or say what is in its way."""
    try:
        start()
    except DocMindError as error:
        show_error(error)
        return
    st.rerun()


def draw_jobs(backend: str) -> None:
    """What is being done with the models of a backend, and what came of it in the last minutes."""
    for run in model_runs.model_runs(backend):
        if run.action in _OWN_PLACE:
            continue
        if run.is_running:
            draw_running(run)
        elif run.error is not None or (said := _ending(run)):
            with st.container(horizontal=True, vertical_alignment="center", wrap=False, key=f"ended {run.run_id}"):
                if run.error is not None:
                    show_error(run.error)
                else:
                    st.markdown(f":small[{said}]", width="stretch")
                st.button(
                    "Dismiss", key=f"dismiss {run.run_id}", type="tertiary", on_click=runs.dismiss, args=(run.run_id,)
                )


@st.fragment(run_every=RUNNING_SECONDS)
def draw_running(run: ModelRun) -> None:
    """How far it is; at its end the page is drawn anew."""
    if not run.is_running:
        st.rerun()
    progress = run.progress
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, key=f"job {run.run_id}"):
        if progress.total and progress.unit in ("bytes", "%"):
            st.progress(min(1.0, progress.done / progress.total), text=what_is_done(run))
        else:
            st.caption(what_is_done(run), width="stretch")
        if run.action in _CAN_STOP:
            st.button(
                "Stop", icon=":material/stop:", key=f"stop {run.run_id}", on_click=run.stop,
                disabled=run.stop_requested.is_set(), help="What came is kept." if run.action == "download" else None,
            )  # fmt: skip


@st.fragment(run_every=IDLE_SECONDS)
def watch(drawn: tuple[str, ...], is_due: Callable[[], bool] | None = None) -> None:
    """Draw the page anew when something was started or has ended elsewhere, or when what it waits for is due."""
    if drawn != running() or (is_due is not None and is_due()):
        st.rerun()


def running() -> tuple[str, ...]:
    """The runs that are going on."""
    return tuple(run.run_id for run in model_runs.model_runs() if run.is_running)


def what_is_done(run: ModelRun) -> str:
    """What is being done, in one line of markdown."""
    progress = run.progress
    if run.stop_requested.is_set():
        return f"Stopping · **{plain(run.model, limit=60)}**"
    starting = {"unload": "unloading", "delete": "deleting"}.get(run.action, progress.doing)
    words = [f"{plain(starting).capitalize()} **{plain(run.model, limit=60)}**"]
    if progress.unit == "%" and progress.total:
        words.append(f"{progress.done} %")
    elif progress.total and progress.unit == "bytes":
        share = f"{100 * progress.done // progress.total} %"
        words += [f"{size_words(progress.done)} of {size_words(progress.total)}", share]
        if speed := run.bytes_per_second:
            words += [f"{speed / 1e6:,.0f} MB/s", left_words((progress.total - progress.done) / speed)]
    else:
        words.append(f"{time.monotonic() - run.started:.0f} s")
    return " · ".join(words)


def size_words(count: int) -> str:
    """ "2.5 GB", and megabytes for what would be 0.0."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _ending(run: ModelRun) -> str:
    """How a run ended, where that is not seen elsewhere on the page."""
    name = f"**{plain(run.model)}**"
    if run.state == "stopped":
        if run.action == "load":
            return f"Stopped waiting for {name}; its server may go on loading."
        return f"Stopped. What came of {name} is kept: the next time it goes on from there."
    if run.action == "pull":
        return f"{name} was pulled and can be chosen."
    if isinstance(run.result, Downloaded):
        compared = "as the source says" if run.result.is_compared else "the source named none to compare"
        return f"{name} was downloaded and can be chosen. SHA-256 {(run.result.sha256 or '')[:12]}…, {compared}."
    return ""
