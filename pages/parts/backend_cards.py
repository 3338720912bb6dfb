"""The backends on the Models page: a card for each that is there, a quiet line for each that is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from docmind import detection, model_runs
from docmind.backends import GGUF_BACKEND
from docmind.backends import backend as find_backend
from docmind.backends.places import where_text_goes
from docmind.wording import absence_words, fit_words
from pages.parts.frame import config
from pages.parts.get_model import draw_get_model
from pages.parts.jobs import begin, draw_jobs, running, size_words, watch
from pages.parts.key_field import draw_key, has_said
from pages.parts.place import WORDS
from pages.parts.safe import plain, plain_with_code
from pages.parts.trials import draw_test_button, draw_test_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from docmind.backends import Detection, ModelInfo
    from docmind.backends.fits import Fit
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


def draw_backends(found: Sequence[Detection], profiles: Sequence[Profile]) -> None:
    """All of them, those that are there first."""
    there = [one for one in found if _is_there(one)]
    judged = [one.backend for one in there if not _draw_card(one, profiles)]
    with st.container(gap="xxsmall", key="absent backends"):
        for one in found:
            if one not in there:
                _draw_absent(one)
    watch(running(), lambda: bool(judged) and all(detection.fits_of(config(), name)[1] for name in judged))


def _is_there(one: Detection) -> bool:
    """Whether it can be used, or a model for it can be fetched from here."""
    if one.available or one.reason != "no_model":  # the module of one that is slow may still be on its way
        return one.available
    return one.backend == GGUF_BACKEND or hasattr(find_backend(one.backend), "pull")


def _draw_absent(one: Detection) -> None:
    """What it is called and why it is not there; opened, what to do."""
    label = f"{plain(one.label)} · {_words(one.reason)}"
    with st.expander(label, expanded=has_said(one), type="compact", key=f"absent {one.backend}"):
        _draw_hint(one.hint)
        if one.url:
            _draw_place(one)
        draw_key(one)


def _draw_card(one: Detection, profiles: Sequence[Profile]) -> bool:
    """A backend, its models, and what can be done with them; whether all of it is known."""
    fits, is_known = detection.fits_of(config(), one.backend)
    with st.container(border=True, key=f"backend {one.backend}"):
        version = f" {plain(one.version)}" if one.version else ""
        working = "running" if one.url else "ready"
        state = f":gray-badge[{working}]" if one.available else f":orange-badge[{_words(one.reason)}]"
        st.markdown(f"**{plain(one.label)}**{version} {state}")
        _draw_place(one)
        if one.available and one.hint:
            st.warning(plain_with_code(one.hint), icon=":material/warning:")
        else:
            _draw_hint(one.hint)
        if one.models:
            _draw_models(one, fits)
        elif one.available:
            st.caption("It has no models yet.")
        _draw_chosen(one, fits)
        draw_test_result(one.backend)
        if hasattr(find_backend(one.backend), "pull"):
            _draw_pull(one, profiles)
        draw_key(one)
        if one.backend == GGUF_BACKEND:
            draw_get_model(is_alone=len([model for model in one.models if model.reason is None]) <= 1)
        draw_jobs(one.backend)
    return is_known


def _draw_place(one: Detection) -> None:
    """Whose machine runs it, and at which address."""
    place, host = where_text_goes(one.url)
    url = f" · {plain(one.url)}" if one.url else ""
    st.caption(WORDS[place].format(host=plain(host, limit=60)) + url)


def _draw_hint(hint: str | None) -> None:
    """What to do; a command stands by itself, where it can be copied."""
    if not hint:
        return
    words, *command = re.split(r"(?<=\b[Rr]un: )", hint, maxsplit=1)
    st.write(plain(words, limit=500))
    if command:
        st.code(command[0], language=None, wrap_lines=True)


def _words(reason: str | None) -> str:
    """A reason's code in words."""
    return plain(absence_words(reason))


# Its models -----------------------------------------------------------------------------------------------------------


_COLUMNS: dict[str, Any] = {
    "State": st.column_config.TextColumn(
        width=95, help="In memory, ready, or whether it fits into the memory that is free now with its usual window"
    ),
    "Size": st.column_config.NumberColumn(format="%.1f GB", width=65),
    "Window": st.column_config.NumberColumn(
        format="localized", width=65, help="Tokens the model was trained or loaded to read and write in one call"
    ),
    "Format": st.column_config.TextColumn(width=70, help="How its weights are quantized"),
}


def _draw_models(one: Detection, fits: Mapping[str, Fit]) -> None:
    """The table, and what is the matter with those that cannot be used."""
    st.dataframe(
        [_row(model, fits.get(model.name)) for model in one.models],
        hide_index=True, column_config=_COLUMNS, placeholder="–",
    )  # fmt: skip
    for model in [model for model in one.models if model.reason][:EXPLAINED_MODELS]:
        st.markdown(f":small[**{plain(model.name)}** · {_remedy(model.reason)}]")


def _row(model: ModelInfo, fit: Fit | None) -> dict[str, Any]:
    """A row of the table. Cells are no markdown: names need no escaping."""
    state = "in memory" if model.loaded else fit_words(fit) if fit else "ready"
    return {
        "Model": model.name,
        "State": absence_words(model.reason) if model.reason else state,
        "Size": None if model.size_bytes is None else model.size_bytes / 1e9,
        "Window": model.context_window,
        "Format": model.quantization,
    }


def _remedy(reason: str | None) -> str:
    """What is the matter with a model and what to do, in a sentence."""
    return REMEDIES.get(reason or "") or f"It cannot be used: {_words(reason)}."


def _draw_chosen(one: Detection, fits: Mapping[str, Fit]) -> None:
    """One of its models: what can be done with it, and what is known of the memory it takes."""
    module = find_backend(one.backend)
    can_delete = hasattr(module, "delete")
    # One that cannot be used can still be deleted.
    models = {model.name: model for model in sorted(one.models, key=lambda model: model.reason is not None)
              if model.reason is None or can_delete}  # fmt: skip
    if not models:
        return
    _choose_what_came(one.backend, models)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        model = models[st.selectbox("Model", list(models), key=f"model of {one.backend}", width="stretch")]
        is_off = model_runs.going_on(one.backend, model.name) is not None
        is_unusable = is_off or not one.available or model.reason is not None
        draw_test_button(f"backend {one.backend}", one.backend, model.name, {}, is_unusable)
        action: Literal["load", "unload"] = "unload" if model.loaded else "load"
        words = "Free the memory it takes" if model.loaded else "Bring it into memory"
        if hasattr(module, action) and st.button(
            action.capitalize(), key=f"{action} {one.backend}", disabled=is_unusable, help=words
        ):
            begin(lambda: model_runs.start(config(), action, one.backend, model.name))
        if can_delete:
            own = config().model_folders[0]
            is_elsewhere = model.path is not None and not model.path.is_relative_to(own)
            why = f"DocMind deletes only what lies in {plain(str(own))}" if is_elsewhere else None
            if st.button("Delete", key=f"delete {one.backend}", disabled=is_off or is_elsewhere, help=why):
                st.session_state["deleting model"] = (one.backend, model.name)
    if can_delete and st.session_state.get("deleting model") == (one.backend, model.name):
        _draw_delete(one, model)
    fit = fits.get(model.name)
    if model.loaded and model.memory_bytes:
        share = size_words(model.gpu_bytes) if model.gpu_bytes else "nothing"
        share = "all" if model.gpu_bytes == model.memory_bytes else share
        on_gpu = "" if model.gpu_bytes is None else f", {share} of it on graphics cards"
        st.caption(f"In memory: {size_words(model.memory_bytes)}{on_gpu}.")
    elif fit is not None and not model.loaded:
        st.caption(f":orange[{plain(fit.sentence)}]" if fit.verdict == "too_large" else plain(fit.sentence))


def _choose_what_came(name: str, models: Mapping[str, ModelInfo]) -> None:
    """A model that was fetched is the one that is chosen, once."""
    seen: set[str] = st.session_state.setdefault("fetched models", set())
    for run in model_runs.model_runs(name):
        is_new = run.action in ("pull", "download") and run.state == "complete" and run.run_id not in seen
        if is_new and run.model in models:
            seen.add(run.run_id)
            st.session_state[f"model of {name}"] = run.model


def _draw_delete(one: Detection, model: ModelInfo) -> None:
    """Asks before a model is gone; names the file, and its size."""
    size = f" ({size_words(model.size_bytes)})" if model.size_bytes else ""
    where = f": {plain(str(model.path), limit=400)}" if model.path else f" from the disk of {plain(one.label)}"
    st.markdown(f"**{plain(model.name)}**{size} will be deleted{where}. To use it again it has to be fetched again.")
    with st.container(horizontal=True):
        is_sure = st.button("Delete", type="primary", key=f"delete for good {one.backend}")
        is_over = st.button("Keep", key=f"keep {one.backend}") or is_sure
    if is_over:
        del st.session_state["deleting model"]
    if is_sure:
        begin(lambda: model_runs.start(config(), "delete", one.backend, model.name))
    elif is_over:
        st.rerun()


def _draw_pull(one: Detection, profiles: Sequence[Profile]) -> None:
    """A field for the name of a model that the backend itself fetches."""
    wanted = [name.strip("*") for p in profiles if p.role == "fast" for name in p.models.get(one.backend, ())]
    example = next((name for name in wanted if name), "")
    how_to_get: Any = getattr(find_backend(one.backend), "how_to_get", None)
    words = plain_with_code(how_to_get(config(), example)) if how_to_get and example else None
    with (
        st.form(f"pull {one.backend}", clear_on_submit=True, border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        name = st.text_input("Pull a model", key=f"pulled by {one.backend}", placeholder=example, help=words)
        is_asked = st.form_submit_button("Pull", icon=":material/download:", key=f"start pull {one.backend}")
    if is_asked and name.strip():
        begin(lambda: model_runs.start(config(), "pull", one.backend, name.strip()))
