"""The X-ray of a document: a strip of its pages coloured by how each was read, and the chosen page beside its text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from docmind.parse import PAGE_REASONS
from pages.parts.safe import plain, plain_with_code

if TYPE_CHECKING:
    from docmind.library import Document, Library, Page

MAX_CELLS: Final = 1200  # more pages share cells: a browser draws so many at once without a pause
PICTURED: Final = "pdf"  # the kind of document whose pages have a picture

# How a page was read: what the strip calls it, from the best to the worst. Of pages that share a cell the worst shows.
STATES: Final[dict[str, str]] = {
    "text": "with text",
    "ocr": "with recognised text",
    "blank": "blank",
    "not_reached": "not reached",
    "scanned": "scanned, no text",
    "unreadable": "unreadable",
}
_RANK: Final = {state: rank for rank, state in enumerate(STATES)}

_CSS: Final = """
.strip { display: flex; flex-wrap: wrap; gap: 3px; font-family: var(--st-font); }
button {
  all: unset; box-sizing: border-box; flex: 0 0 auto; width: 16px; height: 21px; border-radius: 2px; cursor: pointer;
  border: 1px solid transparent;
}
button:hover { transform: translateY(-2px); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
button[aria-pressed="true"] { outline: 2px solid var(--st-text-color); outline-offset: 1px; }
.text { background: color-mix(in srgb, var(--st-primary-color) 55%, transparent); }
.ocr { background: repeating-linear-gradient(90deg, color-mix(in srgb, var(--st-primary-color) 55%, transparent) 0 3px,
  transparent 3px 5px); border-color: color-mix(in srgb, var(--st-primary-color) 55%, transparent); }
.blank { border-color: color-mix(in srgb, var(--st-text-color) 45%, transparent); }
.not_reached { border: 1px dashed color-mix(in srgb, var(--st-text-color) 60%, transparent); }
.scanned { background: #e0930f; }
.unreadable { background: repeating-linear-gradient(45deg, #d33f3f 0 4px, #8f1d1d 4px 6px); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 10px; font-size: 0.875rem;
  color: var(--st-text-color); }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { box-sizing: border-box; width: 12px; height: 15px; border-radius: 2px; border: 1px solid transparent; }
"""
# Words come from this file only; nothing of a document is in the data.
_JS: Final = """
export default function ({ parentElement, data, setTriggerValue }) {
  let root = parentElement.querySelector(".root");
  if (!root) { root = document.createElement("div"); root.className = "root"; parentElement.appendChild(root); }
  const strip = document.createElement("div");
  strip.className = "strip";
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "Pages");
  data.cells.forEach(([first, last, state]) => {
    const cell = document.createElement("button");
    const words = (last > first ? `Pages ${first} to ${last}: ` : `Page ${first}: `) + data.words[state];
    cell.className = state; cell.title = words; cell.setAttribute("aria-label", words);
    cell.setAttribute("aria-pressed", String(first <= data.chosen && data.chosen <= last));
    cell.onclick = () => setTriggerValue("chosen", first);
    strip.appendChild(cell);
  });
  const legend = document.createElement("div");
  legend.className = "legend";
  data.counts.forEach(([state, words]) => {
    const entry = document.createElement("span"), swatch = document.createElement("i");
    swatch.className = state;
    entry.append(swatch, words);
    legend.appendChild(entry);
  });
  const focused = root.contains(parentElement.activeElement) ? parentElement.activeElement.title : null;
  root.replaceChildren(strip, legend);
  if (focused) [...strip.children].find((cell) => cell.title === focused)?.focus();
}
"""
_strip = st.components.v2.component("docmind_xray", css=_CSS, js=_JS)


def draw_xray(library: Library, document: Document) -> None:
    """The strip, and below it one page: its picture, and what was read of it.

    Raises:
        LibraryDamaged: The page's stored text does not match its hash.
        DocumentNotFound: The document was removed meanwhile.
    """
    pages = [(number, _state(source, reason)) for number, source, reason in library.page_states(document.document_id)]
    if not pages:
        return
    st.subheader(plain(document.name), anchor=False)
    if document.state == "partial":
        st.markdown(f":orange-badge[read in part] {plain_with_code(document.hint, limit=600)}")
    key = f"xray_page_{document.document_id}"
    st.session_state.setdefault(key, next((n for n, state in pages if _RANK[state] >= _RANK["not_reached"]), 1))
    counts = Counter(state for _, state in pages)

    def choose() -> None:
        chosen = st.session_state[f"xray_{document.document_id}"].chosen
        if isinstance(chosen, int) and 1 <= chosen <= len(pages):
            st.session_state[key] = chosen

    _strip(
        key=f"xray_{document.document_id}",
        data={
            "cells": _cells(pages),
            "chosen": st.session_state[key],
            "words": STATES,
            "counts": [[state, f"{counts[state]:,} {words}"] for state, words in STATES.items() if counts[state]],
        },
        on_chosen_change=choose,
    )
    chosen = st.number_input(f"Page (of {len(pages):,})", 1, len(pages), key=key, width=160)
    _draw_page(library, document, library.page(document.document_id, int(chosen)))


def _state(source: str, reason: str | None) -> str:
    """How a page was read, as a key of `STATES`."""
    if source != "none":
        return source
    return reason if reason in STATES else "unreadable"


def _cells(pages: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """(first page, last page, state) of each cell of the strip."""
    step = -(-len(pages) // MAX_CELLS)
    groups = [pages[first : first + step] for first in range(0, len(pages), step)]
    return [(group[0][0], group[-1][0], max((state for _, state in group), key=_RANK.__getitem__)) for group in groups]


def _draw_page(library: Library, document: Document, page: Page) -> None:
    """What was read of a page, beside its picture where its kind has one."""
    if document.kind == PICTURED:
        picture, words = st.columns(2, gap="medium")
        with picture:
            _draw_picture(library, document, page.page)
    else:
        words = st.container()
    with words:
        if page.text:
            st.caption(f"What DocMind read on page {page.page:,}")
            with st.container(height=560, border=True):
                st.text(page.text)  # no markdown: shown as it is
        else:
            reason: Any = PAGE_REASONS.get(page.reason or "unreadable")  # type: ignore[call-overload]
            st.info(f"Page {page.page:,} {reason.meaning}.\n\n{reason.hint}" if reason else "There is no text.")


def _draw_picture(library: Library, document: Document, number: int) -> None:
    from pages.parts.source import draw_page

    draw_page(library, document.document_id, number)
