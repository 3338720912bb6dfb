"""Where the next question goes, said before it is sent, and the person's word on it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

import streamlit as st

from docmind import detection, vectors
from docmind.backends.places import allow, is_allowed, where_text_goes
from docmind.errors import SettingsError
from docmind.settings import Settings, change_settings, read_settings
from pages.parts import frame
from pages.parts.safe import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORDS: Final = {
    "this device": ":green[●] on this device",
    "your network": ":orange[●] on your network: {host}",
    "the internet": ":red[●] on the internet: {host}",
}


def draw_place(url: str | None, *, is_known: bool = True, fallbacks: Sequence[str | None] = ()) -> None:
    """Whose machine reads the next question, whether that is allowed, and the switch that keeps all on this one.

    Args:
        url: Of the model's server; None: it runs in this program.
        is_known: Whether that has been found out.
        fallbacks: Of the models that go on when this one fails.
    """
    try:
        settings = read_settings(frame.config())
    except SettingsError as error:
        frame.show_error(error)
        return
    place, host = where_text_goes(url)
    words = WORDS[place].format(host=plain(host, limit=60)) if is_known else ":gray[○] not known yet where it runs"
    with st.container(
        horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", gap="small", key="place"
    ):
        st.caption(words, width="content")
        is_local_only = st.toggle(
            "Local only", settings.local_only,
            key=f"local only {settings.local_only}",  # a new one when another tab, or the command line, has changed it
            help="Nothing of you leaves this device, whatever is chosen or allowed.",
        )  # fmt: skip
    if is_local_only != settings.local_only:
        _change(lambda before: dataclasses.replace(before, local_only=is_local_only))
    if url is not None and place != "this device":
        _draw_consent(settings, url, host)
    _draw_fallbacks(settings, [other for other in fallbacks if other is not None and other != url])
    _draw_search_place(host)


def _draw_search_place(host: str) -> None:
    """Where the search sends questions, when that is beyond this device and not where the model is anyway."""
    choice = vectors.chosen(frame.config())
    if choice is None:
        return
    place, search_host = vectors.destination(frame.config(), choice)
    if place != "this device" and search_host != host:
        words = WORDS[place].format(host=plain(search_host, limit=60))
        st.caption(f"Search {words}", help="Questions are sent to this machine too, to be searched for.")


def _draw_consent(settings: Settings, url: str, host: str) -> None:
    """For an address beyond this device: the person allows it once, and can take that back."""
    if settings.local_only:
        st.caption(":orange[“Local only” is on: this model is not asked.]")
    elif is_allowed(settings, url):
        if st.button("Stop allowing it", key="forbid", type="tertiary"):
            _allow(url, False)
    else:
        st.caption(f":orange[Questions and passages would be sent to {plain(host, limit=60)}.]")
        if st.button("Allow this address", key="allow"):
            _allow(url, True)


def _draw_fallbacks(settings: Settings, urls: Sequence[str]) -> None:
    """Who else may be asked when this model fails, beyond this device."""
    allowed = [where_text_goes(url) for url in urls if is_allowed(settings, url) and not settings.local_only]
    beyond = list(dict.fromkeys(host for place, host in allowed if place != "this device"))
    if beyond:
        st.caption(f":orange[If it fails: {plain(', '.join(beyond), limit=100)}]")


def _allow(url: str, is_wanted: bool) -> None:
    """Keep the person's word and draw the page anew."""
    try:
        allow(frame.config(), url, is_allowed=is_wanted)
    except SettingsError as error:
        frame.show_error(error)
    except ValueError:
        frame.show_error(SettingsError(f"'{url[:200]}' is no address.", "Mend `url` in the profile."))
    else:
        st.rerun()


def _change(change: Callable[[Settings], Settings]) -> None:
    """Keep a decision; what was found elsewhere is looked at anew."""
    try:
        change_settings(frame.config(), change)
    except SettingsError as error:
        frame.show_error(error)
        return
    detection.forget()
    st.rerun()
