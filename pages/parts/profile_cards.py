"""Profiles on the Models page: a card each, by role, and the order in which Auto tries backends."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import routing
from docmind.backends import REGISTRY
from docmind.errors import DocMindError
from docmind.profiles import AUTO, DEFAULT, ROLES, as_values, copy_name, remove_profile
from docmind.settings import change_settings
from docmind.wording import absence_words, left_out_words
from pages.parts.frame import config, show_error
from pages.parts.safe import plain
from pages.parts.trials import draw_test_button, draw_test_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.backends import Detection
    from docmind.errors import ProfileError
    from docmind.profiles import Profile


def draw_profiles(profiles: Sequence[Profile], broken: Sequence[ProfileError], found: Sequence[Detection]) -> None:
    """All of it, from the heading to the order of backends."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Profiles", anchor=False, width="content")
        if st.button("New profile", icon=":material/add:", key="new profile"):
            edit({}, None)
    st.caption("A profile is a saved choice of backend, model and settings.")
    for error in broken:
        show_error(error)
    for profile in sorted(profiles, key=lambda p: ([*ROLES, ""].index(p.role), p.name)):
        _draw_profile(profile, found)
    _draw_order(found)


def edit(values: dict[str, Any], original: Profile | None) -> None:
    """Open the form on these values; `original` is the profile that is changed, None for a new one."""
    st.session_state["editing"] = {"token": uuid.uuid4().hex[:8], "values": values, "original": original}
    st.rerun()


# One profile ----------------------------------------------------------------------------------------------------------


def _draw_profile(profile: Profile, found: Sequence[Detection]) -> None:
    """A profile, whether it can be used, and what can be done with it."""
    is_active = st.session_state.get("profile", DEFAULT) == profile.name
    real, problem, chosen = _ready(profile, found)
    with st.container(border=True):
        with st.container(
            horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", gap="small", wrap=False
        ):
            badges = [f":gray-badge[{plain(profile.role)}]"] if profile.role else []
            badges += [":blue-badge[in use]"] if is_active else []
            st.markdown(f"**{plain(profile.name)}** {' '.join(badges)}".rstrip())
            actions = ["Edit", "Duplicate", *(["Delete"] if profile.source == "user" else [])]
            action = st.menu_button(":material/more_horiz:", actions, key=f"menu {profile.name}", type="tertiary")
        if profile.description:
            st.write(plain(profile.description, limit=400))
        st.caption(" · ".join(_settings(profile)))
        if chosen and problem is None:
            st.caption(plain(chosen, limit=300))
        left_out = routing.settings_left_out(real)
        if left_out:
            st.caption(f":orange[{plain(left_out_words(left_out, real.backend))}.]")
        in_vain = routing.fallbacks_left_out(config(), profile)
        if in_vain and in_vain != (DEFAULT,):  # nobody chose that one
            words = f"Cannot go on when it fails: {', '.join(in_vain)}. Mend or leave out with Edit."
            st.caption(f":orange[{plain(words, limit=300)}]")
        if problem is not None:
            _draw_problem(problem, chosen)
        if st.session_state.get("deleting") == profile.name and profile.source == "user":
            _draw_delete(profile)
            return
        with st.container(horizontal=True):
            if st.button(
                "Use this profile",
                key=f"use {profile.name}",
                type="primary",
                disabled=is_active or problem is not None,
                help="It is in use." if is_active else None,
            ):
                st.session_state["pending_profile"] = profile.name
                st.rerun()
            place = f"profile {profile.name}"
            is_off = problem is not None
            options, arguments = ({}, {}) if is_off else (routing.options(real), routing.call_arguments(real))
            draw_test_button(place, real.backend, real.model, options, is_off, arguments, profile=profile.name)
        draw_test_result(real.backend, profile.name)
    if action == "Edit":
        edit(as_values(profile), profile)
    elif action == "Duplicate":
        edit(as_values(profile) | {"name": copy_name(config(), profile.name)}, None)
    elif action == "Delete":
        st.session_state["deleting"] = profile.name
        st.rerun()


def _ready(profile: Profile, found: Sequence[Detection]) -> tuple[Profile, DocMindError | None, str]:
    """The profile with the backend and model it really has, what is in its way, and why `auto` came to what it did."""
    if not profile.enabled:
        return profile, DocMindError("It is switched off.", "Switch it on with Edit."), ""
    if profile.backend == AUTO:
        try:
            resolved = routing.resolve(config(), profile, is_patient=False)
            if resolved.profiles:
                return resolved.profiles[0], None, resolved.words
            missing = DocMindError(
                "None of its models is here.", routing.nothing_there(config(), profile).hint, reason="no_model"
            )
            return profile, missing, resolved.words
        except DocMindError as error:
            return profile, error, ""
    if profile.backend not in REGISTRY:
        return profile, DocMindError(f"There is no backend '{profile.backend}'.", "Choose one with Edit."), ""
    models = {(one.backend, model.name): model for one in found for model in one.models if one.available}
    model = models.get((profile.backend, profile.model))
    try:
        routing.check(profile)
    except DocMindError as error:
        return profile, error, ""
    if "url" in profile.options:  # another machine, which nobody has asked yet
        return profile, None, ""
    if model is None:
        return profile, DocMindError(f"{profile.backend} has no model '{profile.model}' here."), ""
    if model.reason is not None:
        return profile, DocMindError(f"{profile.model} cannot be used: {absence_words(model.reason)}."), ""
    return profile, None, ""


def _draw_problem(problem: DocMindError, why: str) -> None:
    """What is in a profile's way, and what to do; a command stands where it can be copied."""
    words, _, command = problem.hint.partition("Run: ")
    st.markdown(
        f":orange[{plain(str(problem), limit=400)}] {plain(words, limit=400)}".rstrip(),
        help=plain(why, limit=400) if why else None,
    )
    if command:
        st.code(command, language=None, wrap_lines=True)


def _settings(profile: Profile) -> Sequence[str]:
    """Its settings in short; what is left to the backend is not named."""
    settings = ["the first backend that is there"] if profile.backend == AUTO else [plain(profile.backend)]
    settings += [plain(profile.model)] if profile.model else []
    if profile.agent == "react":
        settings.append("agent")
    if profile.context_window is not None:
        settings.append(f"window {profile.context_window:,}")
    if profile.temperature is not None:
        settings.append(f"temperature {profile.temperature:g}")
    settings.append(f"up to {profile.max_output_tokens:,} tokens")
    if profile.source == "user":
        settings.append("your own")
    return settings


def _draw_delete(profile: Profile) -> None:
    """Asks before a profile is gone."""
    st.markdown("It will be gone for good. One that came with DocMind and has its name comes back.")
    with st.container(horizontal=True):
        is_sure = st.button("Delete", type="primary", key=f"delete {profile.name}")
        if st.button("Keep", key=f"keep {profile.name}"):
            del st.session_state["deleting"]
            st.rerun()
    if not is_sure:
        return
    try:
        remove_profile(config(), profile.name)
    except DocMindError as error:
        show_error(error)
        return
    del st.session_state["deleting"]
    if st.session_state.get("profile") == profile.name:
        st.session_state["pending_profile"] = DEFAULT
    st.rerun()


# The order of backends ------------------------------------------------------------------------------------------------


def _draw_order(found: Sequence[Detection]) -> None:
    """In which order Auto tries backends; each goes up or down by one."""
    with st.expander("The order in which Auto tries backends", type="compact", key="order"):
        try:
            order = routing.in_order(config(), [one.backend for one in found])
        except DocMindError as error:
            show_error(error)
            return
        labels = {one.backend: one.label for one in found}
        for place, name in enumerate(order):
            with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
                st.markdown(f"{place + 1} · {plain(labels[name])}", width="stretch")
                up = st.button(
                    "Up", icon=":material/arrow_upward:", key=f"up {name}", type="tertiary", disabled=place == 0
                )
                down = st.button(
                    "Down", icon=":material/arrow_downward:", key=f"down {name}", type="tertiary",
                    disabled=place + 1 == len(order),
                )  # fmt: skip
            if up or down:
                other = place - 1 if up else place + 1
                order[place], order[other] = order[other], order[place]
                _keep_order(order)


def _keep_order(order: Sequence[str]) -> None:
    try:
        # Names of another installation stay, behind these.
        change_settings(
            config(),
            lambda s: replace(s, backend_order=tuple(dict.fromkeys([*order, *s.backend_order]))),
        )
    except DocMindError as error:
        show_error(error)
        return
    st.rerun()
