"""Where the next question goes, said before it is sent, and the person's word on it."""

from __future__ import annotations

import dataclasses
from typing import Final

import streamlit as st

from docmind import detection, vectors
from docmind.backends.places import allow, is_allowed, where_text_goes
from docmind.errors import SettingsError
from docmind.settings import Settings, read_settings, save_settings
from pages.parts import frame
from pages.parts.safe import plain

WORDS: Final = {
    "this device": (":green[●] on this device", "Questions and documents do not leave this machine."),
    "your network": (":orange[●] on your network: {host}", "Questions and passages are sent to this machine."),
    "the internet": (":red[●] on the internet: {host}", "Questions and passages are sent to this address."),
}


def draw_place(url: str | None) -> None:
    """Whose machine reads the next question, whether that is allowed, and the switch that keeps all on this one."""
    try:
        settings = read_settings(frame.config())
    except SettingsError as error:
        frame.show_error(error)
        return
    place, host = where_text_goes(url)
    words, explained = WORDS[place]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", key="place"):
        st.caption(words.format(host=plain(host, limit=60)), help=explained, width="content")
        st.session_state["local_only"] = settings.local_only  # another tab, or the command line, may have changed it
        st.toggle(
            "Local only", key="local_only", on_change=_switch,
            help="Nothing is asked or sent beyond this device, whatever is chosen or allowed.",
        )  # fmt: skip
    if url is not None and place != "this device":
        _draw_consent(settings, url, host)
    _draw_search_place(host)


def _draw_search_place(host: str) -> None:
    """Where the search sends questions, when that is beyond this device and not where the model is anyway."""
    choice = vectors.chosen(frame.config())
    if choice is None:
        return
    place, search_host = vectors.destination(frame.config(), choice)
    if place != "this device" and search_host != host:
        words = WORDS[place][0].format(host=plain(search_host, limit=60))
        st.caption(f"Search {words}", help="Questions are sent to this machine too, to be searched for.")


def _draw_consent(settings: Settings, url: str, host: str) -> None:
    """For an address beyond this device: the person allows it once, and can take that back."""
    if settings.local_only:
        st.caption(":orange[“Local only” is on: this model is not asked.]")
    elif is_allowed(settings, url):
        st.button("Stop allowing it", key="forbid", type="tertiary", on_click=_allow, args=(url, False))
    else:
        st.caption(f":orange[Questions and passages would be sent to {plain(host, limit=60)}.]")
        st.button("Allow this address", key="allow", on_click=_allow, args=(url, True))


def _switch() -> None:
    """Keep what the switch says; what was found elsewhere is looked at anew."""
    settings = read_settings(frame.config())
    save_settings(frame.config(), dataclasses.replace(settings, local_only=st.session_state["local_only"]))
    detection.forget()


def _allow(url: str, is_allowed: bool) -> None:
    allow(frame.config(), url, is_allowed=is_allowed)
