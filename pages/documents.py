"""Documents: bring them in, see how well each was read, file them, remove them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from docmind import vectors
from docmind.errors import DocMindError
from pages.parts.frame import library, show_error
from pages.parts.ingestion import begin, draw_drop_area, draw_progress
from pages.parts.safe import plain
from pages.parts.xray import draw_xray

if TYPE_CHECKING:
    from docmind.library import Document, Library

ROW_PIXELS: Final = 35
TABLE_ROWS: Final = 12  # more are scrolled
NAMED: Final = 5  # documents a confirmation lists by name


def main() -> None:
    """The page, from top to bottom."""
    st.title("Documents", anchor=False)
    try:
        opened = library()
        documents = opened.documents()
        unread = opened.unread_pages()
        search_model, is_here = _search_model(opened)
    except DocMindError as error:
        show_error(error)
        return
    if not documents:
        st.markdown(
            "**No documents yet.** Add reports, papers, contracts, notes: PDF, text and Markdown files. They are read"
            + (" on this machine and stay on it; then you can ask them." if is_here else " on this machine.")
        )
    draw_adding(opened, _counts(documents, unread) if documents else "")
    if search_model:
        st.caption(search_model)
    draw_progress(opened)
    if documents:
        draw_documents(opened, documents, unread)
    if failed := st.session_state.get("documents_error"):
        show_error(failed)


def _search_model(opened: Library) -> tuple[str, bool]:
    """Which model makes the vectors and where the text goes for that, and whether it stays; "" for DocMind's own."""
    choice = vectors.chosen(opened.config)
    if choice is None:
        return "", True
    place, host = vectors.destination(opened.config, choice)
    is_here = place == "this device"
    where = "on this device" if is_here else f"the text of all documents is sent to {host} on {place}"
    return plain(f"Search model: {choice.name} · {where}", limit=300), is_here


# Bringing them in -------------------------------------------------------------------------------------------------


def draw_adding(opened: Library, counts: str) -> None:
    """The two ways in: through the browser, or by a path of this machine; and what there is already."""
    with draw_drop_area(opened):
        draw_path_form(opened)
        st.caption(counts, width="content")


def draw_path_form(opened: Library) -> None:
    """A form behind a button: a path, and a collection."""
    with st.popover("Add a folder or file by path…", icon=":material/folder_open:", key="by_path", on_change="rerun"):
        with st.form("path_form", border=False):
            st.text_input(
                "Folder or file on this machine", key="path", placeholder=str(Path.home() / "Documents"),
                help="A folder is read with all folders in it. The files stay where they are.",
            )  # fmt: skip
            st.text_input("Collection (optional)", key="path_collection", placeholder="a name to file them under")
            st.form_submit_button("Add", type="primary", on_click=_add_path, args=(opened,))
        if message := st.session_state.pop("path_message", None):
            st.warning(message)


def _add_path(opened: Library) -> None:
    """Begin to add what the form names; closes the form, or says what is wrong with the path."""
    text = st.session_state["path"].strip().strip("\"'")  # "Copy as path" puts it in quotes
    collection = st.session_state["path_collection"].strip()
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # an unknown ~user
        path = Path(text)
    if not text or not path.is_absolute() or "\0" in text:
        st.session_state["path_message"] = "Give the whole path, from the root of the disk or from `~`."
        return
    begin(opened, [path], collections=[collection] if collection else [])
    st.session_state["path"] = ""
    st.session_state["by_path"] = False


def _guarded(action: Any, *arguments: Any) -> None:
    """Run what a button does; an error is shown on the page."""
    st.session_state.pop("documents_error", None)
    try:
        action(*arguments)
    except DocMindError as error:
        st.session_state["documents_error"] = error


# The table --------------------------------------------------------------------------------------------------------


def draw_documents(opened: Library, documents: list[Document], unread: dict[str, int]) -> None:
    """Filter and actions, the table, and the X-ray of the one that is selected."""
    tools = st.container(horizontal=True, vertical_alignment="bottom")
    words = tools.text_input(
        "Filter", key="documents_filter", placeholder="Filter by name, collection or status",
        label_visibility="collapsed", icon=":material/search:", width=380,
    )  # fmt: skip
    shown = [document for document in reversed(documents) if _matches(document, words)]
    selected = _selected(shown)
    draw_actions(opened, selected, tools)
    if not shown:
        st.info("No document matches the filter.")
        return
    st.dataframe(
        {
            "Name": [document.name for document in shown],
            "Pages": [document.pages for document in shown],
            "Read": [_percent_read(document, unread) for document in shown],
            "Status": [_status(document) for document in shown],
            "Collections": [", ".join(document.collections) for document in shown],
            "Added": [datetime.fromisoformat(document.added_at) for document in shown],
        },
        key=f"documents_{st.session_state['table_round']}",
        column_config={
            "Name": st.column_config.TextColumn(width=190),
            "Pages": st.column_config.NumberColumn(width=60, format="localized"),
            "Read": st.column_config.ProgressColumn(
                width=96, min_value=0, max_value=100, format="%d %%", help="Pages that could be read"
            ),
            "Status": st.column_config.TextColumn(width=222),
            "Collections": st.column_config.TextColumn(width=84),
            "Added": st.column_config.DatetimeColumn(width=118, format="distance"),
        },
        hide_index=True,
        height=ROW_PIXELS * (min(len(shown), TABLE_ROWS) + 1) + 3,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": st.session_state["table_default"]}},
    )
    if len(selected) == 1:
        try:
            draw_xray(opened, selected[0])
        except DocMindError as error:
            show_error(error)
    else:
        st.caption("Select one document to see how each of its pages was read.")


def _selected(shown: list[Document]) -> list[Document]:
    """The selected documents, and a table that knows them.

    The browser tells rows by number, so another list of documents needs a table of its own, with the same ones selected
    in it: never may a number be taken for the document that stood there before.
    """
    state = st.session_state
    ids = [document.document_id for document in shown]
    before: list[str] = state.get("table_ids", [])
    chosen = state.get(f"documents_{state.get('table_round', 0)}")
    rows = chosen["selection"]["rows"] if chosen else state.get("table_default", [])
    selected = {before[row] for row in rows if row < len(before)}
    if ids != before or "table_round" not in state:
        state["table_ids"] = ids
        state["table_round"] = state.get("table_round", 0) + 1
        state["table_default"] = [row for row, document_id in enumerate(ids) if document_id in selected]
    return [document for document in shown if document.document_id in selected]


def _matches(document: Document, words: str) -> bool:
    text = " ".join((document.name, document.title, *document.collections, _status(document))).casefold()
    return all(word in text for word in words.casefold().split())


def _status(document: Document) -> str:
    """ "ready", or "partial" with the reason in words."""
    if document.state != "partial":
        return document.state
    missing = document.hint.split(". ")[0].rstrip(".")
    return f"partial: {missing[:1].lower()}{missing[1:]}"


def _percent_read(document: Document, unread: dict[str, int]) -> int:
    """Pages that could be read, of a hundred; rounded so that only all is 100."""
    return (document.pages - unread.get(document.document_id, 0)) * 100 // max(1, document.pages)


def _counts(documents: list[Document], unread: dict[str, int]) -> str:
    pages = sum(document.pages for document in documents)
    missing = sum(unread.values())
    return " · ".join(
        (
            f"{len(documents):,} {'document' if len(documents) == 1 else 'documents'}",
            f"{pages:,} {'page' if pages == 1 else 'pages'}",
            f"all readable but {missing:,} {'page' if missing == 1 else 'pages'}" if missing else "all readable",
        )
    )


# What can be done with them ---------------------------------------------------------------------------------------


def draw_actions(opened: Library, selected: list[Document], tools: Any) -> None:
    """Collections and removal of the selected documents; always there, so that nothing jumps when one is selected."""
    ids = [document.document_id for document in selected]
    with tools.popover("Collections", icon=":material/label:", disabled=not selected):
        st.selectbox(
            "File under", opened.collections(), index=None, key="collection_to_add", accept_new_options=True,
            placeholder="Choose or write a name",
        )  # fmt: skip
        st.button("File", on_click=_guarded, args=(_file, opened, ids))
        if filed := sorted({name for document in selected for name in document.collections}):
            st.selectbox("Take out of", filed, index=None, key="collection_to_remove", placeholder="Choose a name")
            st.button("Take out", on_click=_guarded, args=(_take_out, opened, ids))
    if tools.button("Remove…", icon=":material/delete:", disabled=not selected):
        st.session_state["removing"] = ids
    if ids and st.session_state.get("removing") == ids:
        _draw_removal(opened, selected)
    else:
        st.session_state.pop("removing", None)


def _draw_removal(opened: Library, selected: list[Document]) -> None:
    """The confirmation, in words that say what is lost and what stays."""
    kept = opened.config.home / "documents"
    are_uploads = [document.path is not None and Path(document.path).is_relative_to(kept) for document in selected]
    names = [f"**{plain(document.name, limit=80)}**" for document in selected[:NAMED]]
    if len(selected) > NAMED:
        names.append(f"{len(selected) - NAMED:,} more")
    pages = sum(document.pages for document in selected)
    with st.container(border=True, key="removal"):
        st.markdown(
            f"Remove {', '.join(names)} from the library? What was read of {pages:,}"
            f" {'page' if pages == 1 else 'pages'} is deleted for good, and answers that quoted"
            f" {'it lose those' if len(selected) == 1 else 'them lose their'} quotes. Your own files stay where they"
            " are" + ("; only the copy made of what you uploaded goes." if any(are_uploads) else ".")
        )
        buttons = st.container(horizontal=True)
        is_confirmed = buttons.button("Remove", type="primary", key="confirm_removal")
        buttons.button("Keep", on_click=st.session_state.pop, args=("removing", None))
        if is_confirmed:
            # Overwriting what was there takes seconds in a large library.
            with st.spinner("Removing, and overwriting what was stored…"):
                _guarded(opened.remove, [document.document_id for document in selected])
            st.session_state.pop("removing", None)
            st.rerun()


def _file(opened: Library, document_ids: list[str]) -> None:
    name = (st.session_state["collection_to_add"] or "").strip()
    if name:
        opened.set_collections(document_ids, add=[name])
    st.session_state["collection_to_add"] = None


def _take_out(opened: Library, document_ids: list[str]) -> None:
    if name := st.session_state["collection_to_remove"]:
        opened.set_collections(document_ids, remove=[name])
    st.session_state["collection_to_remove"] = None


main()
