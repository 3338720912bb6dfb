"""Models: the backends and models that were found here, the profiles, and a test that really runs one."""

from __future__ import annotations

import streamlit as st

from docmind import breaker, detection
from docmind.profiles import readable_profiles
from pages.parts.backend_cards import draw_backends
from pages.parts.frame import config, found_backends
from pages.parts.profile_cards import draw_profiles
from pages.parts.profile_form import draw_form


def main() -> None:
    """The page: what was found on the left, profiles on the right."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Models", anchor=False, width="content")
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
        st.subheader("Backends", anchor=False)
        st.caption("Software that runs models, and the models it has.")
        draw_backends(found, profiles)
    with right:
        draw_profiles(profiles, broken, found)


main()
