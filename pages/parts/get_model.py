"""Getting a model from a hub: what a repository has, whether it fits this machine, and only then the download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from docmind import hardware, model_runs, runs
from docmind.backends import GGUF_BACKEND
from docmind.download import kept_bytes
from docmind.errors import SettingsError
from docmind.settings import read_settings
from docmind.wording import fit_words
from pages.parts.frame import config, show_error
from pages.parts.jobs import begin, draw_running, size_words
from pages.parts.panel import gigabytes
from pages.parts.safe import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.download import Offer
    from docmind.model_runs import ModelRun

EXAMPLE: Final = "Qwen/Qwen3-4B-GGUF"
GOOD_QUANTIZATION: Final = "q4_k_m"  # nearly as good as the whole at a quarter of its size: chosen first
_COLUMNS: Final[dict[str, Any]] = {
    "Size": st.column_config.NumberColumn(format="%.1f GB", width=70),
    "Fits": st.column_config.TextColumn(width=110, help="Into the memory that is free now"),
}


def draw_get_model(*, is_alone: bool) -> None:
    """The field, what it found, and the download.

    Args:
        is_alone: There is no model but the starter: then it stands open.
    """
    look = _look()
    with st.expander("Get a model", expanded=is_alone or look is not None, type="compact", key="get a model"):
        if is_alone:
            total = gigabytes(hardware.read().ram_total_bytes)
            st.markdown(
                "The 135M model that came with DocMind is good for plain facts. A better one has about 4 billion "
                "parameters and **Q4_K_M** in its name: about 2.5 GB to download, and 4 GB of memory while it "
                f"answers. This machine has {total} GB."
            )
        is_local_only = _is_local_only()
        with (
            st.form("look", border=False, enter_to_submit=not is_local_only),
            st.container(horizontal=True, vertical_alignment="bottom"),
        ):
            source = st.text_input(
                "Repository, or the address of a GGUF file", key="look source", placeholder=EXAMPLE,
                disabled=is_local_only, help="As owner/name on Hugging Face, or https://…/name.gguf",
            )  # fmt: skip
            is_asked = st.form_submit_button("Look up", key="look up", disabled=is_local_only)
        if is_local_only:
            st.caption(":orange[“Local only” is on: nothing is fetched. Switch it off in the sidebar to get a model.]")
        if is_asked:
            begin(lambda: model_runs.start_look(config(), source.strip() or EXAMPLE))
        if look is not None:
            _draw_look(look)
        st.caption(f"Or put a GGUF file into this folder and press Refresh: {plain(str(config().model_folders[0]))}")


def _look() -> ModelRun | None:
    """The latest, unless the person has stopped waiting for it."""
    looks = [run for run in model_runs.model_runs(GGUF_BACKEND) if run.action == "look"]
    return next((run for run in reversed(looks) if not run.stop_requested.is_set()), None)


def _is_local_only() -> bool:
    try:
        return read_settings(config()).local_only
    except SettingsError:  # the sidebar says so; what is asked then is refused
        return True


def _draw_look(look: ModelRun) -> None:
    """What is there, or why it is not known."""
    if look.is_running:
        draw_running(look)
    elif look.error is not None:
        show_error(look.error)
    elif not look.result:
        st.caption(f"{plain(look.model)} has no GGUF file. Many makers have a second repository with GGUF in its name.")
    else:
        with st.container(horizontal=True, vertical_alignment="center", wrap=False):
            st.markdown(f":small[**{plain(look.model, limit=120)}**]", width="stretch")
            st.button("Close", key="close look", type="tertiary", on_click=runs.dismiss, args=(look.run_id,))
        _draw_offers(look.result, look.run_id)


def _draw_offers(offers: Sequence[Offer], look_id: str) -> None:
    """The table, and what there is to know and to do about one of it."""
    st.dataframe(
        [
            {
                "File": offer.model.files[0].name,
                "Size": offer.model.size_bytes / 1e9 if offer.model.size_bytes else None,
                "Fits": fit_words(offer.fit) if offer.fit else None,
            }
            for offer in offers
        ],
        hide_index=True, column_config=_COLUMNS, placeholder="–",
    )  # fmt: skip
    good = [place for place, offer in enumerate(offers) if GOOD_QUANTIZATION in offer.model.name.lower()]
    place = st.selectbox(
        "File", range(len(offers)), good[0] if good else 0, key=f"choice of {look_id}",
        format_func=lambda place: offers[place].model.name,
    )  # fmt: skip
    offer = offers[place]
    is_too_large = offer.fit is not None and offer.fit.verdict == "too_large"
    if offer.fit is not None:
        st.markdown(f":orange[{plain(offer.fit.sentence)}]" if is_too_large else plain(offer.fit.sentence))
    size, kept = offer.model.size_bytes, kept_bytes(config(), offer.model)
    if model_runs.going_on(GGUF_BACKEND, offer.model.name):
        return
    if kept and kept == size:
        st.caption("It is on this machine already.")
        return
    if kept:
        st.caption(f"{size_words(kept)} of it are here from before: the download goes on from there.")
    is_sure = not is_too_large or st.checkbox("Download it all the same", key=f"anyway {look_id} {place}")
    label = f"Download {size_words(size)}" if size else "Download"
    if st.button(label, icon=":material/download:", key="download", type="primary", disabled=not is_sure):
        begin(lambda: model_runs.start_download(config(), offer.model))
