"""Models: the backends and models that were found here, the profiles, and a test that really runs one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import breaker, detection, hardware
from docmind.profiles import DEFAULT, readable_profiles
from docmind.wording import absence_words
from pages.parts.frame import config, found_backends
from pages.parts.panel import gigabytes
from pages.parts.profile_cards import draw_profiles
from pages.parts.profile_form import draw_form
from pages.parts.safe import plain
from pages.parts.trials import draw_model_test

if TYPE_CHECKING:
    from docmind.backends import Detection, ModelInfo
    from docmind.profiles import Profile

# What to do about a model that has it.
REMEDIES = {
    "model_damaged": "The file is damaged: fetch it again.",
    "unreadable": "The file may not be read: check its permissions.",
    "no_text_generation": "It makes vectors and cannot answer: choose a chat model.",
    "unsupported": "This version does not load its kind: choose another.",
    "unsafe_weights": "Its weights are Python pickles, which can run code: fetch it as safetensors.",
    "remote_code": "It wants to run code that came with it, which DocMind does not allow.",
}
EXPLAINED_MODELS = 5  # unusable ones that get a line of their own


def main() -> None:
    """The page: what was found on the left, profiles on the right."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Models", width="content")
        if st.button("Refresh", icon=":material/refresh:", key="refresh", help="Look for backends and models again"):
            breaker.forget()
            detection.forget()
            st.rerun()
    if "editing" in st.session_state:
        draw_form(st.session_state["editing"], found_backends())
        return
    profiles, broken = readable_profiles(config())
    found = found_backends()
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("On this machine")
        st.caption("Software that runs models, and the models it has.")
        for one in found:
            draw_backend(one, next((p for p in profiles if p.name == DEFAULT), None))
    with right:
        draw_profiles(profiles, broken, found)


# Backends -------------------------------------------------------------------------------------------------------------


def draw_backend(detection: Detection, starter: Profile | None) -> None:
    """A backend: whether it is there, or the command that mends it; its models; one of them to test."""
    with st.container(border=True):
        version = f" {plain(detection.version)}" if detection.version else ""
        state = ":gray-badge[ready]" if detection.available else f":orange-badge[{_words(detection.reason)}]"
        st.markdown(f"**{plain(detection.label)}**{version} {state}")
        if detection.url:
            st.caption(plain(detection.url))
        if not detection.available and detection.hint:
            # A command stands by itself, where it can be copied.
            words, *command = re.split(r"(?<=\b[Rr]un: )", detection.hint, maxsplit=1)
            st.write(plain(words))
            if command:
                st.code(command[0], language=None, wrap_lines=True)
        if detection.models:
            st.dataframe(
                [_row(model) for model in detection.models], hide_index=True, column_config=_COLUMNS, placeholder="–"
            )
            for model in [model for model in detection.models if model.reason][:EXPLAINED_MODELS]:
                st.markdown(f":small[**{plain(model.name)}** · {_remedy(model.reason)}]")
        elif detection.available:
            st.caption("It has no models yet.")
        usable = [model.name for model in detection.models if model.reason is None]
        if detection.available and usable:
            draw_model_test(detection.backend, usable)
        if starter is not None and detection.backend == starter.backend and starter.model in usable:
            draw_better_model(is_alone=len(usable) == 1)


_COLUMNS: dict[str, Any] = {
    "State": st.column_config.TextColumn(width=80),
    "Size": st.column_config.NumberColumn(format="%.1f GB", width=65),
    "Window": st.column_config.NumberColumn(
        format="localized", width=65, help="Tokens the model was trained or loaded to read and write in one call"
    ),
    "Format": st.column_config.TextColumn(width=70, help="How its weights are quantized"),
}


def _row(model: ModelInfo) -> dict[str, Any]:
    """A row of the table. Cells are no markdown: names need no escaping."""
    return {
        "Model": model.name,
        "State": _words(model.reason) if model.reason else "in memory" if model.loaded else "ready",
        "Size": None if model.size_bytes is None else model.size_bytes / 1e9,
        "Window": model.context_window,
        "Format": model.quantization,
    }


def _words(reason: str | None) -> str:
    """A reason's code in words."""
    return plain(absence_words(reason))


def _remedy(reason: str | None) -> str:
    """What is the matter with a model and what to do, in a sentence."""
    return REMEDIES.get(reason or "") or f"It cannot be used: {_words(reason)}."


def draw_better_model(*, is_alone: bool) -> None:
    """What the starter is good for, and the steps to a better model."""
    folder = config().model_folders[0]
    label = "A 135M model: good for plain facts. Here is how to get a better one"
    with st.expander(label, expanded=is_alone, type="compact"):
        st.markdown(
            "1. Fetch an *instruct* model of about 4 billion parameters as a GGUF file of about 2.5 GB, "
            "with **Q4_K_M** in its name. Hugging Face has many: search for **4B instruct GGUF**.\n"
            "2. Put the file into this folder" + ("" if folder.is_dir() else ", which you have to make first") + ":"
        )
        st.code(str(folder), language=None, wrap_lines=True)
        st.markdown("3. Press **Refresh** above, then choose the model in the sidebar.")
        total = hardware.read().ram_total_bytes
        st.caption(f"Such a model takes about 4 GB of memory; this machine has {gigabytes(total)} GB.")


main()
