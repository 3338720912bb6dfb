"""The key of a model server: a field that takes it, where it was kept, and a way to forget it. It is never drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from docmind import detection, keys
from docmind.backends.places import origin, where_text_goes
from docmind.errors import SettingsError
from pages.parts.frame import show_error
from pages.parts.safe import plain

if TYPE_CHECKING:
    from docmind.backends import Detection

WANTED = ("key_missing", "key_rejected")


def has_said(one: Detection) -> bool:
    """Whether something was done about its key in this session: then it is not hidden."""
    url = one.url or ""
    return keys.is_kept(url) is not None and f"{_field(url)} said" in st.session_state


def _field(url: str) -> str:
    return f"key for {origin(url)}"


def draw_key(one: Detection) -> None:
    """Nothing for a backend that takes no key, or that does well without one on this device."""
    url = one.url or ""
    is_kept = keys.is_kept(url)
    if is_kept is None or not (is_kept or one.reason in WANTED or url.startswith("https:")):
        return
    address = origin(url)
    shown = address.removesuffix(":443") if address.startswith("https:") else address.removesuffix(":80")
    shown = plain(shown, limit=120)
    field = _field(url)
    # The answer to what was done here last; the key is in neither.
    said = st.session_state.get(f"{field} said")
    if isinstance(said, SettingsError):
        show_error(said)
    elif said or is_kept:
        with st.container(horizontal=True, vertical_alignment="center", wrap=False, key=f"kept {address}"):
            st.caption(said or f"A key is kept for {shown}.", width="stretch")
            if is_kept:
                st.button("Forget", key=f"forget {address}", type="tertiary", on_click=_forget, args=(url, field))
    if is_kept and one.reason not in WANTED:
        return
    with (
        st.form(f"form {field}", clear_on_submit=True, border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        st.text_input(f"Key for {shown}", type="password", key=field, placeholder="Paste it here")
        st.form_submit_button("Keep", key=f"keep {address}", on_click=_take, args=(url, field))
    if url.startswith("http:") and where_text_goes(url)[0] != "this device":
        st.caption(":orange[This address is not encrypted: whoever is on the way can read the key.]")


def _take(url: str, field: str) -> None:
    """Keep what stands in the field, and take it out of the session."""
    state = st.session_state
    key = state.pop(field, "")
    try:
        where = keys.keep_key(url, key)
    except SettingsError as error:
        state[f"{field} said"] = error
        return
    ring = keys.keyring_name() if where == "keyring" else None
    state[f"{field} said"] = (
        f"The key is kept in {plain(ring)}."
        if ring
        else "The key is kept until DocMind ends: this system has no keyring that guards keys."
    )
    detection.forget()


def _forget(url: str, field: str) -> None:
    keys.forget_key(url)
    st.session_state[f"{field} said"] = "The key is forgotten."
    detection.forget()
