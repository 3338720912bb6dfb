"""Models: the backends and models that were found here, the profiles, and a test that really runs one."""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import hardware, routing
from docmind.backends import REGISTRY
from docmind.errors import DocMindError
from docmind.profiles import DEFAULT, load_profiles
from docmind.trial import TrialRun
from pages.parts import frame
from pages.parts.frame import config, detections, found_backends, show_error
from pages.parts.panel import gigabytes
from pages.parts.safe import answer, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from docmind.backends import Detection, ModelInfo
    from docmind.profiles import Profile

ROLES = ("fast", "balanced", "technical", "reasoning", "")  # in this order

# A reason's code as a short state, and what to do about a model that has it.
REASONS = {
    "not_installed": ("not installed", ""),
    "no_model": ("no model found", ""),
    "unreachable": ("not running", ""),
    "model_damaged": ("damaged", "The file is damaged: fetch it again."),
    "unreadable": ("unreadable", "The file may not be read: check its permissions."),
    "no_text_generation": ("no chat", "It makes vectors and cannot answer: choose a chat model."),
    "unsafe_weights": ("unsafe", "Its weights are Python pickles, which can run code: fetch it as safetensors."),
    "remote_code": ("needs code", "It wants to run code that came with it, which DocMind does not allow."),
    "unsupported": ("unsupported", "This version does not load its kind: choose another."),
}
EXPLAINED_MODELS = 5  # unusable ones that get a line of their own


def main() -> None:
    """The page: what was found on the left, profiles on the right."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Models", width="content")
        if st.button("Refresh", icon=":material/refresh:", key="refresh", help="Look for backends and models again"):
            detections.clear()
            st.rerun()
    profiles, broken = read_profiles()
    found = found_backends()
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("On this machine")
        st.caption("Software that runs models, and the models it has.")
        for detection in found:
            draw_backend(detection, next((p for p in profiles if p.name == DEFAULT), None))
    with right:
        st.subheader("Profiles")
        st.caption("A profile is a saved choice of backend, model and settings.")
        if broken is not None:
            show_error(broken)
        models = {(d.backend, model.name): model for d in found for model in d.models if d.available}
        for profile in sorted(profiles, key=_by_role):
            draw_profile(profile, models)


def read_profiles() -> tuple[list[Profile], DocMindError | None]:
    """All profiles; when a file of one is broken its error, and what can be read without it."""
    try:
        return load_profiles(config()), None
    except DocMindError as error:
        with contextlib.suppress(DocMindError):  # the starter's own file may be the broken one
            return frame.profiles(), error
        return [], error


def _by_role(profile: Profile) -> tuple[int, str]:
    return (ROLES.index(profile.role) if profile.role in ROLES else len(ROLES), profile.name)


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
        format="localized", width=65, help="Tokens the model was trained to read and write in one call"
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
    """A reason's code in words; those of backends to come are readable too."""
    return REASONS[reason][0] if reason in REASONS else plain((reason or "not available").replace("_", " "))


def _remedy(reason: str | None) -> str:
    """What is the matter with a model and what to do, in a sentence."""
    return (REASONS[reason][1] if reason in REASONS else "") or f"It cannot be used: {_words(reason)}."


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


# Profiles -------------------------------------------------------------------------------------------------------------


def draw_profile(profile: Profile, models: Mapping[tuple[str, str], ModelInfo]) -> None:
    """A profile, whether it can be used, and its test."""
    is_active = st.session_state.get("profile", DEFAULT) == profile.name
    model = models.get((profile.backend, profile.model))
    problem = _problem(profile, model)
    with st.container(border=True):
        badges = [f":gray-badge[{plain(profile.role)}]"] if profile.role else []
        badges += [":blue-badge[in use]"] if is_active else []
        st.markdown(f"**{plain(profile.name)}** {' '.join(badges)}")
        if profile.description:
            st.write(plain(profile.description, limit=400))
        st.caption(" · ".join(_settings(profile)))
        if problem:
            st.markdown(f":orange[{plain(problem)}]")
        place = f"profile {profile.name}"
        with st.container(horizontal=True):
            if st.button(
                "Use this profile",
                key=f"use {profile.name}",
                type="primary",
                disabled=is_active or bool(problem),
                help="It is in use." if is_active else None,
            ):
                st.session_state["pending_profile"] = profile.name
                st.rerun()
            draw_test_button(place, profile.backend, profile.model, routing.options(profile), bool(problem))
        draw_test_result(place)


def _problem(profile: Profile, model: ModelInfo | None) -> str | None:
    """Why a profile cannot be used, in a sentence; None when it can."""
    if not profile.enabled:
        return "It is switched off in its file."
    if profile.backend not in REGISTRY:
        return f"There is no backend '{profile.backend}'."
    if model is None:
        return f"{profile.backend} has no model '{profile.model}' here."
    return None if model.reason is None else f"{profile.model}: {_remedy(model.reason)}"


def _settings(profile: Profile) -> Sequence[str]:
    """Its settings in short; what is left to the backend is not named."""
    settings = [plain(profile.backend), plain(profile.model)]
    if profile.context_window is not None:
        settings.append(f"window {profile.context_window:,}")
    if profile.temperature is not None:
        settings.append(f"temperature {profile.temperature:g}")
    settings.append(f"up to {profile.max_output_tokens:,} tokens")
    if profile.source == "user":
        settings.append("your own")
    return settings


# Tests ----------------------------------------------------------------------------------------------------------------


def draw_model_test(name: str, usable: Sequence[str]) -> None:
    """Choose one of a backend's models and run it."""
    place = f"backend {name}"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        model = st.selectbox("Test a model", usable, key=f"model of {name}")
        draw_test_button(place, name, model, {}, False)
    draw_test_result(place)


def draw_test_button(place: str, name: str, model: str, options: Mapping[str, Any], is_disabled: bool) -> None:
    """Starts a test. One at a time: a second model in memory would slow the first down."""
    _, run = st.session_state.get("trial", ("", None))
    is_running = run is not None and run.is_running
    if st.button("Test", key=f"test {place}", icon=":material/play_arrow:", disabled=is_disabled or is_running):
        st.session_state["trial"] = (place, TrialRun(config(), name, model, options))
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
        detections.clear()  # the model is in memory now
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


main()
