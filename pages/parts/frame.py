"""What every page stands on: the library, opened once per process; the chosen model; errors; and the preloading."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind.config import Config, load_config
from docmind.errors import DocMindError
from pages.parts.safe import plain_with_code

if TYPE_CHECKING:
    from docmind.backends import Detection
    from docmind.library import Library
    from docmind.profiles import Profile

AUTO_LABEL = "Auto: first that answers"
PRELOADED_MODEL_BYTES = 1_000_000_000  # a larger model is loaded by the first question, not by looking at the page
_preload_lock = threading.Lock()
_preloaded = False


@st.cache_resource(show_spinner=False)
def config() -> Config:
    """The configuration: the data folder of `DOCMIND_HOME`, or the platform's."""
    return load_config()


@st.cache_resource(show_spinner=False)
def _open_library(home: str) -> Library:
    from docmind.library import open_library
    from docmind.log import start_logging
    from docmind.uploads import sweep_uploads

    library = open_library(home)
    sweep_uploads(library)
    start_logging(library.config)
    return library


def library() -> Library:
    """The library, the same for all pages and visitors.

    Raises:
        LibraryError: It cannot be opened; asked again, it is tried again.
    """
    return _open_library(str(config().home))


def found_backends() -> list[Detection]:
    """What every backend says of itself, in the registry's order; asked anew each minute, and not waited for then."""
    from docmind.detection import detect_all

    return detect_all(config())


def show_error(error: DocMindError) -> None:
    """The one place that draws an error: what happened, and what to do."""
    st.error(plain_with_code(str(error)) + (f"\n\n{plain_with_code(error.hint)}" if error.hint else ""))


# The chosen model -------------------------------------------------------------------------------------------------


def profiles() -> list[Profile]:
    """The profiles that can be used; a broken file of one is told on the Models page and does not hide the others."""
    from docmind.profiles import find_profile, readable_profiles

    enabled = [profile for profile in readable_profiles(config())[0] if profile.enabled]
    return enabled or [find_profile(config())]


def choice() -> dict[str, Any]:
    """What is chosen in the sidebar, as arguments for `runs.start_answer`."""
    state = st.session_state
    if state.get("profile"):
        return {"profile": state["profile"]}
    return {"backend": state.get("backend"), "model": state.get("model")} if state.get("model") else {}


# Preloading -------------------------------------------------------------------------------------------------------


def preload() -> None:
    """Load in a thread what the first question needs, once per process: the page is there before it."""
    global _preloaded
    with _preload_lock:
        if _preloaded:
            return
        _preloaded = True
    threading.Thread(target=_preload, args=(library(),), name="docmind-preload", daemon=True).start()


def _preload(opened: Library) -> None:
    import gc
    import logging

    from docmind import embed, routing
    from docmind.backends import backend
    from docmind.profiles import find_profile

    try:
        profile = find_profile(opened.config)
        module = backend(profile.backend)
        info = next((m for m in module.models(opened.config, profile.options) if m.name == profile.model), None)
        if info is not None and (info.size_bytes or 0) <= PRELOADED_MODEL_BYTES:
            llm: Any = module.build(opened.config, profile.model, routing.options(profile))
            llm.start()
            llm.release()  # the first question takes it over; frozen below, it would never be freed by itself
        embed.identity()
        opened.vector_index()
    except DocMindError as error:  # the question that needs it will say so on the screen
        logging.getLogger("docmind").warning("preloading: %s", error.reason)
    # What is loaded stays: otherwise every collection walks through all of torch, 230 to 390 ms each time.
    gc.collect()
    gc.freeze()
