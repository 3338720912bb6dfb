"""Documents being added: where they are dropped, live progress, a way to stop it, and what came of it.

The runs belong to the process (`docmind.runs`); this only looks at them, from the first event that this page has not
seen. What a session has seen of a run is kept in its state, so that a result stays until it is dismissed.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from docmind import runs, uploads
from docmind.errors import DocMindError
from docmind.sample import sample_path
from pages.parts.frame import show_error
from pages.parts.progress import ENDED, Progress, line, summary, what_is_done

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamlit.delta_generator import DeltaGenerator

    from docmind.library import Library

TYPES: Final = ["pdf", "txt", "md"]
BUSY_SECONDS: Final = 0.5  # between two looks while documents are added
IDLE_SECONDS: Final = 2.0  # and while none are: another page or program may begin
REDRAW_SECONDS: Final = 4.0  # at most so often is the whole page drawn anew for documents that came meanwhile
LINES: Final = 6  # results that need attention; more go into a table
# Where there is nothing else on the page, there is something to aim at.
_TALL: Final = (
    '<style>[data-testid="stFileUploaderDropzone"] {min-height: 9rem}'
    ' [data-testid="stFileUploaderDropzone"] > * {align-self: center}</style>'
)


def begin(library: Library, paths: Sequence[Path], *, collections: Sequence[str] = ()) -> None:
    """Start to add files and folders; this page then shows how it goes, in place of what went well before."""
    for progress in [*_seen().values()]:
        if not progress.run.is_running and not progress.needs_attention and progress.run.error is None:
            _dismiss(progress.run.run_id)
    run = runs.start_ingestion(library, paths, collections=collections)
    _seen()[run.run_id] = Progress(run, was_seen_running=True)


def draw_drop_area(library: Library) -> DeltaGenerator:
    """Where files are dropped, and in an empty library a sample to try. `draw_progress` shows what becomes of them.

    Returns:
        The row below it, for other ways to add documents.
    """
    state = st.session_state
    is_empty = not library.counts()["documents"]
    if is_empty:
        st.html(_TALL)
    files = st.file_uploader(
        "Drop files here or browse", type=TYPES, accept_multiple_files=True,
        key=f"upload_{state.get('upload_round', 0)}",
    )  # fmt: skip
    if files:
        _take(library, files)
    row = st.container(horizontal=True, vertical_alignment="center")
    if is_empty and not runs.live("ingestion"):
        row.button(
            "Try with a sample", icon=":material/water:", on_click=_take_sample, args=(library,),
            help="A guide of three pages about tides, with numbers you can ask for.",
        )  # fmt: skip
    if error := state.get("upload_error"):
        show_error(error)
    return row


def _take(library: Library, files: Sequence[Any]) -> None:
    """Keep uploaded files on the disk, free their memory, and begin to read them."""
    state = st.session_state
    context: Any = get_script_run_ctx()
    with st.spinner("Keeping the file…" if len(files) == 1 else f"Keeping {len(files):,} files…"):
        # Nothing is drawn in here: drawing is where a click elsewhere ends this run, and the files would be lost.
        try:
            _keep(library, [(file.name, file) for file in files])
        finally:
            state["upload_round"] = state.get("upload_round", 0) + 1  # a new widget: an empty one
            for file in files:
                # The server keeps uploads in memory until the visitor leaves. Source: FACTS, streamlit 1.67.
                context.uploaded_file_mgr.remove_file(context.session_id, file.file_id)
    st.rerun()


def _take_sample(library: Library) -> None:
    sample = sample_path()
    _keep(library, [(sample.name, sample.read_bytes())])


def _keep(library: Library, files: Sequence[tuple[str, Any]]) -> None:
    """Keep all files and begin to read them, or keep none and remember why."""
    st.session_state.pop("upload_error", None)
    kept: list[Path] = []
    try:
        uploads.sweep_uploads(library)
        for name, data in files:
            kept.append(uploads.keep_upload(library.config, name, data))
    except DocMindError as error:
        for path in kept:
            uploads.forget_upload(library, path)
        st.session_state["upload_error"] = error
    else:
        begin(library, kept)


def draw_progress(library: Library) -> None:
    """What is being added, and what came of it. Looks by itself again and again, and redraws the page at the end.

    Draws nothing where there is nothing to tell.
    """
    st.session_state["ingestion_drawn"] = (_running(), _generation(library), time.monotonic())
    st.fragment(_look, run_every=BUSY_SECONDS if _running() else IDLE_SECONDS)(library)


def _look(library: Library) -> None:
    """One look: by the page, then by the fragment alone."""
    running, generation, drawn = st.session_state["ingestion_drawn"]
    if running != _running():
        st.rerun()
    if (not running or time.monotonic() - drawn > REDRAW_SECONDS) and generation != _generation(library):
        st.rerun()
    for progress in _followed():
        if progress.run.is_running:
            _draw_running(progress)
        else:
            _draw_result(progress)


def _seen() -> dict[str, Progress]:
    seen: dict[str, Progress] = st.session_state.setdefault("ingestion_seen", {})
    return seen


def _followed() -> list[Progress]:
    """The runs to show, the oldest first, each as of now."""
    seen = _seen()
    dismissed: set[str] = st.session_state.setdefault("ingestion_dismissed", set())
    for run in runs.live("ingestion"):
        seen.setdefault(run.run_id, Progress(run))
    for progress in seen.values():
        if progress.run.run_id not in dismissed:
            progress.follow()
    return [
        progress
        for run_id, progress in seen.items()
        # A page that is opened later need not hear of what went well before.
        if run_id not in dismissed and (progress.was_seen_running or progress.needs_attention or progress.run.error)
    ]


def _running() -> tuple[str, ...]:
    return tuple(run.run_id for run in runs.live("ingestion") if run.is_running)


def _generation(library: Library) -> str | None:
    """The mark of the library's state; None when it cannot be asked, which the page will say."""
    with contextlib.suppress(DocMindError):
        return library.generation()
    return None


# While it runs ----------------------------------------------------------------------------------------------------


def _draw_running(progress: Progress) -> None:
    run = progress.run
    is_stopping = run.stop_requested.is_set()
    with st.container(border=True, key=f"ingestion_{run.run_id}"):
        words, button = st.columns([6, 1], vertical_alignment="center", wrap=False)
        words.progress(progress.fraction, text=what_is_done(progress))
        button.button(
            "Cancel",
            key=f"cancel_{run.run_id}",
            on_click=run.stop,
            disabled=is_stopping,
            width="stretch",
            help="Documents that are finished stay; the one being read is left out.",
        )


# When it has ended ------------------------------------------------------------------------------------------------


def _draw_result(progress: Progress) -> None:
    run = progress.run
    with st.container(border=True, key=f"ingestion_{run.run_id}"):
        words, button = st.columns([6, 1], vertical_alignment="center", wrap=False)
        words.markdown(summary(progress))
        button.button(
            "Dismiss", key=f"dismiss_{run.run_id}", on_click=_dismiss, args=(run.run_id,), type="tertiary",
            width="stretch",
        )  # fmt: skip
        if run.error is not None:
            show_error(run.error)
        # A folder holds pictures and programs too: a heap of those is one line.
        kinds = [result for result in progress.needs_attention if result.reason == "unsupported_type"]
        others = [result for result in progress.needs_attention if result not in kinds]
        told = others[:LINES] + (kinds if len(kinds) <= 2 else [])
        for result in told:
            st.markdown(line(result))
        if rest := [result for result in progress.needs_attention if result not in told]:
            are_kinds = len(rest) == len(kinds)
            with st.expander(f"{len(rest):,} " + ("files of other kinds" if are_kinds else "more")):
                st.dataframe(
                    {
                        "File": [PurePath(result.path).name for result in rest],
                        "Ended": [ENDED[result.status] for result in rest],
                        "Why, and what to do": [result.hint or result.reason for result in rest],
                    },
                    hide_index=True,
                )


def _dismiss(run_id: str) -> None:
    st.session_state.setdefault("ingestion_dismissed", set()).add(run_id)
    _seen().pop(run_id, None)
