"""Ask: the page people live in. Questions, answers as they are written, and the proof beside them."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import chats, runs
from docmind.continuing import can_continue
from docmind.errors import DocMindError
from pages.parts import answers, frame
from pages.parts.ingestion import draw_drop_area, draw_progress
from pages.parts.listener import listen
from pages.parts.safe import answer as inert
from pages.parts.safe import plain
from pages.parts.source import draw_source

if TYPE_CHECKING:
    from docmind.chats import Message
    from docmind.library import Library
    from docmind.runs import Run

SNAPSHOT_SECONDS = 0.15  # how often a growing answer is drawn: faster costs the browser more than anybody can read
WATCH_SECONDS = 2.0  # how soon another tab's question in this chat is noticed
CHAT_WIDTH_PIXELS = 760  # 75 characters of 16 px
SUGGESTIONS = 3


def main() -> None:
    """The page, from the question box to the source."""
    try:
        library = frame.library()
        chat_id = _open_chat()
        run = runs.answering(chat_id)
        question = _draw_question_box(run)
        if question:
            _ask(library, chat_id, question)
        newest = chats.newest(library, chat_id)  # first: what changes from here on is noticed
        messages = chats.messages(library, chat_id)
        _take_click()
        _draw(library, chat_id, messages, run)
        _watch(library, chat_id, run.run_id if run else None, newest)
    except DocMindError as error:
        frame.show_error(error)


def _open_chat() -> str:
    """The chat of this page: from the address after a refresh, else the one opened last, else a new one."""
    state = st.session_state
    if "chat" not in state:
        state["chat"] = st.query_params.get("c") or uuid.uuid4().hex
    st.query_params["c"] = state["chat"]
    return str(state["chat"])


# Asking -----------------------------------------------------------------------------------------------------------


def _draw_question_box(run: Run | None) -> str | None:
    """The question box, and while an answer is written the button that stops it."""
    with (
        st.bottom,
        st.container(horizontal_alignment="center"),
        st.container(width=CHAT_WIDTH_PIXELS, horizontal=True, vertical_alignment="bottom", gap="small"),
    ):
        # The same widget in the same place, asking or answering: the screen keeps it where it is.
        words = "Ask your documents …" if run is None else "Answering … Esc stops"
        question = st.chat_input(words, key="question", disabled=run is not None)
        if run is not None:
            st.button("Stop", icon=":material/stop_circle:", shortcut="Escape", on_click=run.stop, key="stop")
    return question


def _ask(library: Library, chat_id: str, question: str) -> None:
    """Begin an answer and draw the page anew, with it in its place."""
    filters = st.session_state.get("filters", {})
    st.session_state.pop("source", None)
    run = runs.start_answer(library, question, chat_id=chat_id, **frame.choice(), **filters)
    st.session_state["seen_run"] = run.run_id
    st.rerun()


def _go_on(library: Library, chat_id: str) -> None:
    """Let the last answer go on, and draw the page anew."""
    run = runs.start_answer(library, "", chat_id=chat_id, continues=True)
    st.session_state["seen_run"] = run.run_id
    st.rerun()


def _draw_filters(library: Library) -> None:
    """Which documents are asked: all, some collections, or single documents."""
    filters = st.session_state.setdefault("filters", {})
    documents = library.documents()
    names = {document.document_id: document.name for document in documents}
    collections = [name for name in library.collections() if name]
    chosen = [c for c in filters.get("collections", ()) if c in collections]
    single = [d for d in filters.get("documents", ()) if d in names]
    label = f"All documents ({len(names):,})"
    if chosen or single:
        label = " · ".join([*chosen, *([f"{len(single)} of {len(names):,} documents"] if single else [])])
    with st.popover(plain(label, limit=60), type="tertiary", icon=":material/filter_list:"):
        if collections:
            filters["collections"] = st.multiselect("Collections", collections, chosen, placeholder="All collections")
        filters["documents"] = st.multiselect(
            "Documents", list(names), single, format_func=names.__getitem__, placeholder="All documents"
        )


# Drawing ----------------------------------------------------------------------------------------------------------


def _draw(library: Library, chat_id: str, messages: list[Message], run: Run | None) -> None:
    source = st.session_state.get("source")
    message = next((m for m in messages if source and m.message_id == source["message"]), None)
    if source is None or message is None:
        with st.container(horizontal_alignment="center"), st.container(width=CHAT_WIDTH_PIXELS):
            _draw_chat(library, chat_id, messages, run)
        return
    chat, proof = st.columns([11, 10], gap="medium")
    with chat:
        _draw_chat(library, chat_id, messages, run)
    with proof, st.container(key="source-pane"):
        _draw_proof(library, message, source, is_running=run is not None)


def _draw_chat(library: Library, chat_id: str, messages: list[Message], run: Run | None) -> None:
    if library.counts()["documents"]:
        _draw_filters(library)
    if not messages and run is None:
        _draw_start(library)
    for message in messages:
        if run is not None and message.run_id == run.run_id:
            continue  # drawn below, as it grows
        answers.draw_message(message)
    if run is not None:
        if all(m.run_id != run.run_id for m in messages):  # the question is kept a moment after it is asked
            with answers.bubble("user"):
                st.markdown(inert(run.question))
        with answers.bubble("assistant"):
            _draw_growing(run.run_id)
    elif messages and messages[-1].finished in ("failed", "cut", "stopped"):
        asked = next((m.text for m in reversed(messages) if m.role == "user"), "")
        with st.container(horizontal=True):
            if can_continue(messages[-1]) and st.button(
                "Continue", icon=":material/play_arrow:", key="continue",
                help=answers.who_goes_on(messages[-1]),
            ):  # fmt: skip
                _go_on(library, chat_id)
            if asked and st.button("Ask again", icon=":material/refresh:", key="again"):
                _ask(library, chat_id, asked)


@st.fragment(run_every=SNAPSHOT_SECONDS)
def _draw_growing(run_id: str) -> None:
    """The answer so far; at its end the page is drawn from the library."""
    run = runs.find(run_id)
    if run is not None:
        answers.draw_growing(run)  # also at the end: what is not drawn here is gone until the page is
    if run is None or not run.is_running:
        st.rerun()


@st.fragment(run_every=WATCH_SECONDS)
def _watch(library: Library, chat_id: str, seen_run: str | None, seen: object) -> None:
    """Notices what another tab does in this chat, also an answer that began and ended between two looks."""
    run = runs.answering(chat_id)
    has_changed = (run.run_id if run else None) != seen_run
    with contextlib.suppress(DocMindError):  # the library cannot be read now; what is drawn stays
        has_changed = has_changed or (run is None and chats.newest(library, chat_id) != seen)
    if has_changed:
        st.rerun()


def _draw_start(library: Library) -> None:
    """Before the first question: what may be asked, or how documents come in."""
    if not library.counts()["documents"]:
        st.subheader("Ask your own documents", anchor=False)
        st.markdown("Answers come with the page that proves them. With a model on this device nothing leaves it.")
        draw_drop_area(library)
        draw_progress(library)
        return
    st.subheader("What would you like to know?", anchor=False)
    draw_progress(library)
    for number, suggestion in enumerate(_suggestions(str(library.path), library.generation(), SUGGESTIONS)):
        if st.button(plain(suggestion), key=f"suggestion-{number}", icon=":material/arrow_forward:", type="secondary"):
            _ask(library, st.session_state["chat"], suggestion)


@st.cache_data(max_entries=8, show_spinner=False)
def _suggestions(path: str, generation: str, count: int) -> list[str]:
    """First questions, made once for each state of the library."""
    from docmind.suggest import first_questions

    return first_questions(frame.library(), count)


# The proof --------------------------------------------------------------------------------------------------------


def _take_click() -> None:
    """A chip that was clicked opens its source."""
    clicked = listen()
    if clicked is not None:
        message_id, number = clicked
        st.session_state["source"] = {"message": message_id, "number": number, "zoom": 1.0}
        st.rerun()


def _draw_proof(library: Library, message: Message, source: dict[str, Any], *, is_running: bool) -> None:
    number = source.pop("number", None)
    if number is not None and number >= answers.UNPROVEN_FROM:
        source["missing"] = number - answers.UNPROVEN_FROM
    if "missing" in source:
        _draw_missing(message, source["missing"])
        return
    sources = answers.sources_of(library, message)
    if number is not None:
        source["index"] = next((place for place, s in enumerate(sources) if s["number"] == number), 0)
    if not sources:
        st.session_state.pop("source", None)
        st.rerun()
    draw_source(library, sources, min(source["index"], len(sources) - 1), is_running=is_running)


def _draw_missing(message: Message, place: int) -> None:
    """What a warning sign means: this sentence, and why it has no number."""
    if st.button("Close", icon=":material/close:", type="tertiary", key="close-missing"):
        st.session_state.pop("source", None)
        st.rerun()
    text = message.sentences[place]["text"] if place < len(message.sentences) else ""
    st.markdown("**Without proof**")
    st.markdown(f"“{plain(text, limit=1000)}”")
    st.markdown(
        "No sentence of the evidence says this with the same numbers and names. It may be true: check it in the "
        "documents before you use it."
    )


main()
