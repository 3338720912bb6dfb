"""The form of a profile: drawn from `profiles.SETTINGS` and the options of its backend. Nothing typed is lost by an
error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import routing
from docmind.backends import REGISTRY
from docmind.backends import backend as find_backend
from docmind.errors import DocMindError, ProfileError
from docmind.profiles import AUTO, SETTINGS, make_profile, readable_profiles, remove_profile, save_profile
from pages.parts.frame import AUTO_LABEL, config, show_error
from pages.parts.safe import plain, plain_with_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.backends import Detection, Option
    from docmind.profiles import Profile

_BY_NAME = {option.name: option for option in SETTINGS}
ANSWERING = ("agent", "max_output_tokens", "context_window", "history_tokens", "max_sentences")
SAMPLING = ("temperature", "top_p", "top_k")
TIME = ("first_token_seconds", "idle_seconds", "total_seconds")
LABELS = {
    "agent": "How it works", "top_p": "Top p", "top_k": "Top k", "max_output_tokens": "Longest answer",
    "history_tokens": "Of the conversation before", "max_sentences": "Stop after", "url": "Address",
    "first_token_seconds": "Wait for the first word", "idle_seconds": "Wait between words",
    "total_seconds": "Whole answer", "stop": "Stop at", "models": "Models, best first",
}  # fmt: skip
PLACEHOLDERS = {"max_sentences": "no limit", "total_seconds": "no limit", "name": " ", "description": " "}
WORDS = {"direct": "Direct: one search, one call", "react": "Agent: may search again and read on", "": "None"}


def draw_form(editing: dict[str, Any], found: Sequence[Detection]) -> None:
    """The form in the page's place, until it is saved or given up.

    Args:
        editing: `values` as a file would have them, `original` the profile that is changed or None, and a `token`
            that makes the fields those of this form.
    """
    original: Profile | None = editing["original"]
    title = f"Edit {plain(original.name)}" if original else "New profile"
    st.subheader(title, anchor=False)
    if original is not None and original.source == "shipped":
        st.caption("It came with DocMind: what you save is your own and hides it; deleting yours brings it back.")
    values = _fields(editing, found)
    problem = st.container()  # above the buttons, so that it is seen where the click was
    with st.container(horizontal=True):
        is_saved = st.button("Save", type="primary", key="save profile", icon=":material/check:")
        if st.button("Cancel", key="cancel profile"):
            _close()
    if is_saved:
        try:
            _save(values, original)
        except DocMindError as error:
            with problem:
                show_error(error)
        else:
            _close()


def _close() -> None:
    del st.session_state["editing"]
    st.rerun()


def _save(values: dict[str, Any], original: Profile | None) -> None:
    """Check and keep; a profile of the person's that was given another name is not kept under the old one.

    Raises:
        DocMindError: Something does not fit, or the name is taken.
    """
    for key in ("name",) if values["backend"] == AUTO else ("name", "model"):
        if not values.get(key, "").strip():
            raise ProfileError(f"The profile has no {key}.", "Fill it in above; everything else is as you typed it.")
    profile = make_profile(values, called="The profile")
    routing.check(profile)
    is_same = original is not None and original.source == "user" and original.name == profile.name
    known = [p.name for p in readable_profiles(config())[0] if p.source == "shipped"]
    if profile.name in known and (original is None or original.name != profile.name):
        raise ProfileError(f"A profile '{profile.name}' came with DocMind.", "Take another name, or edit that one.")
    save_profile(config(), profile, overwrite=is_same)
    if original is not None and original.source == "user" and not is_same:
        remove_profile(config(), original.name)
        if st.session_state.get("profile") == original.name:
            st.session_state["pending_profile"] = profile.name


# The fields -----------------------------------------------------------------------------------------------------------


def _fields(editing: dict[str, Any], found: Sequence[Detection]) -> dict[str, Any]:
    """All fields; what stands in them, without what is left to the backend."""
    token, start = editing["token"], editing["values"]
    values: dict[str, Any] = {}

    def draw(*names: str) -> None:
        for column, name in zip(st.columns(len(names)), names, strict=True):
            with column:
                values[name] = draw_option(_BY_NAME[name], f"{token} {name}", start.get(name))

    name, role, switch = st.columns([3, 2, 2], vertical_alignment="bottom")
    with name:
        values["name"] = draw_option(_BY_NAME["name"], f"{token} name", start.get("name"))
    with role:
        values["role"] = draw_option(_BY_NAME["role"], f"{token} role", start.get("role"))
    with switch:
        values["enabled"] = st.toggle("Can be chosen", start.get("enabled", True), key=f"{token} enabled")
    draw("description")
    values |= _draw_model(token, start, found)
    with st.expander("How it answers", expanded=True, key=f"{token} answering"):
        draw(*ANSWERING[:2])
        draw(*ANSWERING[2:])
        values["system_prompt"] = st.text_area(
            "System prompt", start.get("system_prompt", ""), key=f"{token} system_prompt", height=90,
            placeholder="DocMind's own words", help=plain_with_code(_BY_NAME["system_prompt"].description),
        )  # fmt: skip
        values["fallbacks"] = _draw_fallbacks(token, start)
    with st.expander("Sampling and time limits", key=f"{token} sampling"):
        _draw_left_out(values["backend"])
        draw(*SAMPLING)
        draw(*TIME)
        draw("stop")
    values["options"] = _draw_options(token, start, values["backend"])
    return {key: value for key, value in values.items() if value is not None}


def _draw_model(token: str, start: dict[str, Any], found: Sequence[Detection]) -> dict[str, Any]:
    """The backend and its model; for `auto` the models of each backend."""
    labels = {one.backend: one.label for one in found}
    names = [AUTO, *labels]
    chosen = start.get("backend") or next((one.backend for one in found if one.available), AUTO)
    names += [chosen] if chosen not in names else []
    left, right = st.columns(2) if chosen != AUTO else (st.container(), st.container())
    with left:
        backend = st.selectbox(
            "Backend",
            names,
            names.index(chosen),
            key=f"{token} backend",
            help=plain_with_code(_BY_NAME["backend"].description),
            format_func=lambda name: AUTO_LABEL if name == AUTO else labels.get(name, name),
        )
    models = {one.backend: [model.name for model in one.models if model.reason is None] for one in found}
    if backend != AUTO:
        there = list(models.get(backend, ()))
        current = start.get("model") if backend == chosen else None
        there += [current] if current and current not in there else []
        with right:
            model = st.selectbox(
                "Model",
                there,
                there.index(current) if current else None,
                key=f"{token} model {backend}",
                placeholder="Choose one, or type its name",
                accept_new_options=True,
            )
        return {"backend": backend, "model": model or ""}
    table: dict[str, list[str]] = {name: list(given) for name, given in start.get("models", {}).items()}
    with st.expander("Models, best first", expanded=True, key=f"{token} models"):
        st.caption(plain_with_code(_BY_NAME["models"].description))
        for name, label in labels.items():
            given = table.get(name, [])
            table[name] = st.multiselect(
                plain(label), list(dict.fromkeys([*given, *models[name]])), given, key=f"{token} models {name}",
                accept_new_options=True, placeholder="None",
            )  # fmt: skip
        others = [f"{name}: {', '.join(given)}" for name, given in table.items() if name not in labels]
        if others:
            st.caption(plain(f"Kept as they are: {'; '.join(others)}", limit=500))
    return {"backend": backend, "models": {name: given for name, given in table.items() if given}}


def _draw_fallbacks(token: str, start: dict[str, Any]) -> list[str]:
    """The profiles that go on."""
    option = _BY_NAME["fallbacks"]
    given = start.get("fallbacks", option.default)
    names = [profile.name for profile in readable_profiles(config())[0] if profile.name != start.get("name")]
    return list(
        st.multiselect(
            "When the model cannot",
            list(dict.fromkeys([*given, *names])),
            given,
            key=f"{token} fallbacks",
            placeholder="Nothing goes on",
            help=plain_with_code(option.description),
        )
    )


def _draw_left_out(backend: str) -> None:
    """Which of the fields below the backend does not have."""
    if backend not in REGISTRY:
        return
    per_call = {option.name for option in find_backend(backend).OPTIONS if option.per_call}
    missing = [label(_BY_NAME[name]) for name, argument in routing.ARGUMENTS.items() if argument not in per_call]
    if missing:
        st.caption(f"{plain(find_backend(backend).LABEL)} has no setting for: {plain(', '.join(missing))}")


def _draw_options(token: str, start: dict[str, Any], backend: str) -> dict[str, Any]:
    """The backend's own options, but those that are settings of every profile."""
    given = start.get("options", {}) if backend == start.get("backend") else {}
    if backend not in REGISTRY:
        if given:
            st.caption(plain(f"Kept as they are: options {given}", limit=500))
        return dict(given)
    shared = {*routing.ARGUMENTS.values(), "context_window"}
    options = [option for option in find_backend(backend).OPTIONS if option.name not in shared or option.name in given]
    values: dict[str, Any] = {}
    with st.expander(f"Options of {plain(find_backend(backend).LABEL)}", key=f"{token} options {backend}"):
        for first in range(0, len(options), 3):
            for column, option in zip(st.columns(3), options[first : first + 3], strict=False):
                with column:
                    value = draw_option(option, f"{token} {backend} {option.name}", given.get(option.name))
                is_left = value in (None, "", []) or (value == option.default and option.name not in given)
                if not is_left:
                    values[option.name] = value
    return values


# One field ------------------------------------------------------------------------------------------------------------


def label(option: Option) -> str:
    """What a field is called, with its unit."""
    name = LABELS.get(option.name) or option.name.replace("_", " ").capitalize()
    unit = "" if option.unit in ("", "texts", "table", "address") or option.unit in name.lower() else option.unit
    return f"{name}, {unit}" if unit else name


def draw_option(option: Option, key: str, value: Any) -> Any:
    """A field for an option; None where nothing stands in it and it is left to its default."""
    default = option.default
    shown: dict[str, Any] = {
        "key": key,
        "help": plain_with_code(f"{option.description} {_range(option)}".strip()),
        "placeholder": PLACEHOLDERS.get(
            option.name, "as the backend says" if default in (None, "", []) else str(default)
        ),
    }
    if option.choices or option.kind is bool:
        choices: list[Any] = list(option.choices) or [True, False]
        words: dict[Any, str] = {**WORDS, True: "Yes", False: "No"}
        # Where the default is one of the choices it stands there; an option without one may be left empty.
        current = value if value is not None else default
        index = choices.index(current) if current in choices else None
        return st.selectbox(
            label(option), choices, index, format_func=lambda choice: words.get(choice, choice), **shown
        )
    if option.kind in (int, float):
        number: Any = option.kind
        if value is not None:  # in the session and not as the field's own value, which could not be emptied
            st.session_state.setdefault(key, number(value))
        return st.number_input(
            label(option),
            number(option.minimum) if option.minimum is not None else None,
            number(option.maximum) if option.maximum is not None else None,
            None,
            step=1 if number is int else 0.05 if (option.maximum or 100) <= 5 else 1.0,
            **shown,
        )
    if option.kind is list:
        given = list(value or [])
        shown["placeholder"] = "Type and press Enter"
        return st.multiselect(label(option), given, given, accept_new_options=True, **shown)
    return st.text_input(label(option), value or "", **shown) or None


def _range(option: Option) -> str:
    """From where to where a number goes."""
    if option.minimum is None:
        return ""
    return (
        f"{option.minimum:,g} to {option.maximum:,g}."
        if option.maximum is not None
        else f"At least {option.minimum:g}."
    )
