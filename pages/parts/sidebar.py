"""What stands beside every page: the chats, the model that answers, where text goes, and how busy the machine is."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import streamlit as st

from docmind import chats, detection, routing, runs
from docmind.errors import DocMindError
from docmind.metrics import answers
from docmind.profiles import AUTO, DEFAULT, ROLES, Profile
from pages.parts import frame
from pages.parts.panel import draw_strip
from pages.parts.place import draw_place
from pages.parts.safe import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docmind.backends import Detection
    from docmind.chats import Chat

CHAT_PAGE = "pages/chat.py"
SHOWN_CHATS = 40
CHATS_HEIGHT_PIXELS = 190  # the model below stays in sight on a laptop
WATCH_SECONDS = 1.0  # how soon a slow backend is noticed to have answered
TITLE_CHARACTERS = 34  # what fits one line of the sidebar


# A list reads from the left; the buttons it is made of would centre each title.
STYLE = """<style>
.st-key-chats button { justify-content: flex-start; text-align: left; }
.st-key-chats [data-testid="stVerticalBlock"] { gap: 0; }
</style>"""


def draw_sidebar() -> None:
    """All of it, from top to bottom."""
    st.html(STYLE)
    if st.button("New chat", icon=":material/add:", width="stretch", help="Start with an empty page"):
        open_chat(None)
    _draw_chats()
    _draw_model()
    draw_strip()


def open_chat(chat_id: str | None) -> None:
    """Go to a chat; None is a new one."""
    st.session_state["chat"] = chat_id or uuid.uuid4().hex
    st.session_state.pop("source", None)
    st.switch_page(CHAT_PAGE)


# Chats ------------------------------------------------------------------------------------------------------------


def _draw_chats() -> None:
    words = st.text_input(
        "Search chats", key="chat_search", placeholder="Search chats", icon=":material/search:",
        label_visibility="collapsed",
    )  # fmt: skip
    found = chats.list_chats(frame.library(), words, limit=SHOWN_CHATS + 1)
    with st.container(height=CHATS_HEIGHT_PIXELS, border=False, gap=None, key="chats"):
        if not found:
            st.caption("No chat holds these words." if words else "Your chats are kept here.")
        for day, group in _by_day(found[:SHOWN_CHATS]):
            st.caption(day)
            for chat in group:
                _draw_chat(chat)
        if len(found) > SHOWN_CHATS:
            st.caption("Older ones are found by their words.")


def _draw_chat(chat: Chat) -> None:
    is_open = st.session_state.get("chat") == chat.chat_id
    name = plain(chat.title, limit=TITLE_CHARACTERS)
    if runs.answering(chat.chat_id):
        name = f"{name} …"
    with st.container(horizontal=True, gap=None, vertical_alignment="center", key=f"row-{chat.chat_id}", wrap=False):
        label = f"**{name}**" if is_open else name
        if st.button(label, key=f"open-{chat.chat_id}", type="tertiary", width="stretch"):
            open_chat(chat.chat_id)
        action = st.menu_button(
            ":material/more_horiz:", ["Rename", "Delete"], key=f"menu-{chat.chat_id}", type="tertiary"
        )
    if action:
        st.session_state["has_dialog"] = True
    if action == "Rename":
        _rename(chat)
    elif action == "Delete":
        _delete(chat)


@st.dialog("Rename chat")
def _rename(chat: Chat) -> None:
    title = st.text_input("Title", chat.title, max_chars=chats.TITLE_CHARACTERS)
    if st.button("Rename", type="primary"):
        chats.rename(frame.library(), chat.chat_id, title)
        st.rerun()


@st.dialog("Delete chat")
def _delete(chat: Chat) -> None:
    st.markdown(f"“{plain(chat.title)}” with its questions, answers and quotes will be gone for good.")
    if st.button("Delete", type="primary"):
        run = runs.answering(chat.chat_id)
        if run:
            run.stop()
        chats.delete(frame.library(), chat.chat_id)
        if st.session_state.get("chat") == chat.chat_id:
            open_chat(None)
        st.rerun()


def _by_day(found: list[Chat]) -> Iterator[tuple[str, list[Chat]]]:
    """Chats under "Today", "Yesterday", "This week" and "Earlier", in their order."""
    today = datetime.now().astimezone().date()
    groups: dict[str, list[Chat]] = {}
    for chat in found:
        day = datetime.fromisoformat(chat.updated_at).replace(tzinfo=UTC).astimezone().date()
        name = "Earlier"
        if day >= today:
            name = "Today"
        elif day == today - timedelta(days=1):
            name = "Yesterday"
        elif day > today - timedelta(days=7):
            name = "This week"
        groups.setdefault(name, []).append(chat)
    yield from groups.items()


# The model --------------------------------------------------------------------------------------------------------


def _used_last(found: dict[str, Detection], profiles: list[Profile]) -> tuple[str | None, str, str] | None:
    """Profile, backend and model of the newest answer, where they are still there: a reload goes on with them."""
    for last in answers(frame.library(), limit=1):
        there = [model.name for model in found[last.backend].models] if last.backend in found else []
        profile = next((p for p in profiles if p.name == last.profile), None)
        if profile is not None and profile.backend == AUTO:
            return profile.name, *_place_of(profile)
        if last.backend and last.model in there:
            return profile.name if profile else None, last.backend, str(last.model)
    return None


def _place_of(profile: Profile) -> tuple[str, str]:
    """Where the two boxes stand for a profile; `auto` has roles in place of models."""
    return profile.backend, profile.name if profile.backend == AUTO else profile.model


def _draw_model() -> None:
    """Backend and model, switched on the fly: the next question goes to what is chosen here."""
    state = st.session_state
    found = {one.backend: one for one in frame.found_backends()}
    profiles = frame.profiles()
    wanted = state.pop("pending_profile", None)
    if wanted or not state.get("backend"):
        first = next((p for p in profiles if p.name == (wanted or DEFAULT)), profiles[0])
        chosen = first.name, *_place_of(first)
        state["profile"], state["backend"], state["model"] = (None if wanted else _used_last(found, profiles)) or chosen
    roles = sorted((p for p in profiles if p.backend == AUTO), key=lambda p: [*ROLES, ""].index(p.role))
    names = [AUTO] if roles else []
    names += [name for name, one in found.items() if one.available] or list(found)
    if state["backend"] not in names:
        names.insert(0, state["backend"])
    backend = st.selectbox(
        "Backend", names, names.index(state["backend"]),
        format_func=lambda name: found[name].label if name in found else frame.AUTO_LABEL if name == AUTO else name,
    )  # fmt: skip
    there = found.get(backend)
    models = [model.name for model in there.models if model.reason is None] if there else []
    models = [role.name for role in roles] if backend == AUTO else models
    current = state["model"] if backend == state["backend"] else (models[0] if models else None)
    if current is not None and current not in models:
        models.insert(0, current)
    model = st.selectbox(
        "Role" if backend == AUTO else "Model", models, models.index(current) if current in models else None,
        placeholder="No model found",
        help="The next question goes to this model; what was answered before stays.",
    )  # fmt: skip
    if (backend, model) != (state["backend"], state["model"]):
        # A profile made for this model brings its settings along.
        fitting = next((p for p in profiles if _place_of(p) == (backend, model)), None)
        state["profile"], state["backend"], state["model"] = fitting and fitting.name, backend, model
    profile = next((p for p in profiles if p.name == state["profile"]), None) or Profile("", backend, model or "")
    try:
        route = routing.with_fallbacks(frame.config(), profile, is_patient=False)
        resolved = routing.resolve(frame.config(), profile, is_patient=False) if profile.backend == AUTO else None
    except DocMindError as error:  # the settings cannot be read, or a value of the profile is none
        frame.show_error(error)
        return
    if resolved is not None:
        otherwise = f"no model of this role; {profile.fallbacks[0]} answers" if profile.fallbacks else "no model"
        st.caption(f"→ {plain(resolved.chosen or otherwise, limit=80)}", help=plain(resolved.words, limit=300))
    first, *others = [p for p in route if p.backend != AUTO] or [profile]
    url, is_known = routing.where(frame.config(), first, found)
    draw_place(url, is_known=is_known, fallbacks=[routing.where(frame.config(), other, found)[0] for other in others])


def watch_backends(drawn: object) -> None:
    """Draws the page anew when slow backends have answered otherwise than it shows.

    To be called when the page is drawn: what was clicked on it would be lost otherwise. A page with a dialog is left as
    it is, for drawing it would close the dialog.

    Args:
        drawn: What was said when it was drawn (`detection.said`).
    """
    if st.session_state.pop("has_dialog", False):
        return
    if not detection.is_complete(frame.config()) or detection.said(frame.config()) != drawn:
        _watch_backends(drawn)


@st.fragment(run_every=WATCH_SECONDS)
def _watch_backends(drawn: object) -> None:
    """It asks nobody: an open page that nobody uses leaves servers alone."""
    if runs.answering(st.session_state.get("chat", "")):  # it is not interrupted, and its end draws the page
        return
    if detection.is_complete(frame.config()) and detection.said(frame.config()) != drawn:
        st.rerun()
