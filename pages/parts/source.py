"""The proof: the page a quote was copied from, as a picture with the quote marked, or as text where there is none.

State: `st.session_state["source"]` is {"message": id, "index": which citation, "zoom": 1.0}; absent when closed.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from docmind.errors import DocMindError, DocumentError, DocumentNotFound
from pages.parts.frame import show_error
from pages.parts.safe import plain, plain_with_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.library import Document, Library, Page

ZOOMS: Final = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # of the pane's width
PICTURE_SCALE: Final = 1.5  # pixels for a point: a Letter page has 918, the pane 400 to 700
LARGE_SCALE: Final = 2.4  # zoomed in
MAX_PICTURE_WIDTH: Final = 1_460  # pixels; a wider one Streamlit would scale down itself, and blur
TEXT_AROUND: Final = 3_000  # characters shown before and after the quote of a long page
TEXT_SHOWN: Final = 12_000  # a page that is not longer is shown whole; no page of print is

_STEERING: Final = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])  # turns the words around

# The pane stays beside what is read, however far the chat is scrolled: it is as high as the window between the screen's
# head (3.75rem) and the question box. The page scrolls in its own frame, so that the quote below stays in sight.
_STYLE: Final = """<style>
.st-key-source { gap: 0.25rem; --source-room: 75dvh; }
.st-key-source-head { flex-wrap: nowrap; }
.st-key-source-head > :first-child { flex: 1 1 0; min-width: 0; }
.st-key-source-head [data-testid="stMarkdown"] p { font-weight: 600; }
/* The words of these four are for screen readers; the eye has arrow, glass and tooltip. */
.st-key-source-buttons button [data-testid="stMarkdownContainer"] {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
.st-key-source-body { gap: 0.75rem; overflow-y: auto; }
.st-key-source-picture, .st-key-source-text {
  position: relative; overflow: auto; flex-shrink: 0; max-height: max(14rem, calc(var(--source-room) - 9.5rem));
  border: 1px solid rgba(128, 128, 128, 0.35); border-radius: 2px;
}
.st-key-source-text { padding: 0.75rem 1rem; }
.st-key-source-picture [data-testid="stSpinner"] { position: absolute; top: 1rem; left: 1rem; }
.source-text { font-size: 1rem; line-height: 1.6; max-width: 75ch; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
.source-text mark { background: #ffe26e; color: #101214; padding: 0.1em 0; border-radius: 2px; }
.source-cut { opacity: 0.7; font-size: 0.875rem; margin-bottom: 0.5rem; }
.source-quote { padding-left: 0.75rem; border-left: 3px solid #e0b400; }
.source-where { font-size: 0.875rem; opacity: 0.7; margin-top: 0.35rem; overflow-wrap: anywhere; }
@media (min-width: 641px) {
  [data-testid="stColumn"]:has(.st-key-source) { position: sticky; top: 3.75rem; align-self: flex-start; }
  .st-key-source { --source-room: calc(100dvh - 15.25rem); }
  .st-key-source-body { max-height: var(--source-room); }
}
</style>"""

# Brings the marked place into the middle of the pane, once for each place and zoom. Nothing of a document is in it.
_JS: Final = """
let shown = null;
export default function ({ data }) {
  if (!data || data.place === shown) return;
  shown = data.place;
  const until = performance.now() + 3000;
  let touched = false, quiet = 0;
  const touch = () => { touched = true; };
  for (const moved of ["wheel", "touchmove", "pointerdown", "keydown"]) {
    document.addEventListener(moved, touch, { once: true, passive: true });
  }
  const centre = () => {
    if (touched || data.place !== shown || performance.now() > until || quiet > 20) return;
    const mark = document.querySelector(".st-key-source-picture img, .st-key-source-text mark");
    const frame = mark?.closest(".st-key-source-picture, .st-key-source-text");
    if (frame) {
      const box = mark.getBoundingClientRect(), view = frame.getBoundingClientRect();
      const [left, right, y] = mark.nodeName === "IMG" ? data.marked : [0, 1, 0.5];
      const before = frame.scrollTop;
      frame.scrollTop += box.top + box.height * y - view.top - view.height / 2;
      // A quote that is wider than the frame is read from its beginning.
      const margin = Math.max(view.width * 0.05, (view.width - box.width * (right - left)) / 2);
      frame.scrollLeft += box.left + box.width * left - view.left - margin;
      quiet = mark.complete !== false && frame.scrollTop === before ? quiet + 1 : 0;
    }
    requestAnimationFrame(centre);
  };
  requestAnimationFrame(centre);
}
"""
_centre = st.components.v2.component("docmind_source", js=_JS, css=":host { display: none; }")


def draw_source(library: Library, citations: Sequence[dict[str, Any]], index: int, *, is_running: bool = False) -> None:
    """The pane beside the chat: the page of one of an answer's citations, and the way to the others.

    Args:
        citations: As `docmind.answer` makes them; at least one.
        index: Which of them, from 0.
        is_running: Whether an answer is being written: then Escape belongs to its Stop button.
    """
    st.session_state.setdefault("source", {"message": None, "zoom": 1.0})["index"] = index
    st.html(_STYLE)
    _draw_pane(library, list(citations), is_running)


@st.fragment
def _draw_pane(library: Library, citations: list[dict[str, Any]], is_running: bool) -> None:
    """The pane; its own buttons draw it anew without the chat."""
    source = st.session_state.get("source")
    if source is None:  # it was closed by its button: the chat takes the room
        st.rerun()
    index = min(max(int(source.get("index", 0)), 0), len(citations) - 1)
    zoom = float(source.get("zoom", 1.0))
    citation = citations[index]
    with st.container(key="source"):
        _draw_head(citation, is_running=is_running)
        _draw_buttons(index, len(citations), zoom)
        with st.container(key="source-body"):
            try:
                _draw_proof(library, citation, zoom)
            except DocumentNotFound:
                _draw_removed(citation)
            except DocMindError as error:  # the page is damaged; what was quoted is kept beside it
                show_error(error)
                _draw_quote(citation, None)


# Head and buttons -------------------------------------------------------------------------------------------------


def _draw_head(citation: dict[str, Any], *, is_running: bool) -> None:
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", key="source-head"
    ):
        st.markdown(f"{plain(citation['document'])} · page {citation['page']:,}", wrap=False)
        st.button(
            "Close",
            icon=":material/close:",
            type="tertiary",
            key="source-close",
            shortcut=None if is_running else "Escape",
            on_click=_close,
        )


def _draw_buttons(index: int, count: int, zoom: float) -> None:
    """Previous and next quote with the arrow keys, and the size of the page."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="source-buttons"):
        st.button(
            "Previous", type="tertiary", key="source-previous", help="Previous quote", shortcut="Left",
            on_click=_show, args=(index - 1,), disabled=index == 0,
        )  # fmt: skip
        st.markdown(f"Quote {index + 1:,} of {count:,}", width="content")
        st.button(
            "Next", type="tertiary", key="source-next", help="Next quote", shortcut="Right",
            on_click=_show, args=(index + 1,), disabled=index == count - 1,
        )  # fmt: skip
        st.space("stretch")
        st.button(
            "Smaller", icon=":material/zoom_out:", type="tertiary", key="source-smaller", help="Smaller",
            on_click=_zoom, args=(_step(zoom, -1),), disabled=zoom <= ZOOMS[0],
        )  # fmt: skip
        st.markdown(f"{zoom:.0%}".replace("%", " %"), width="content")
        st.button(
            "Larger", icon=":material/zoom_in:", type="tertiary", key="source-larger", help="Larger",
            on_click=_zoom, args=(_step(zoom, 1),), disabled=zoom >= ZOOMS[-1],
        )  # fmt: skip


def _step(zoom: float, direction: int) -> float:
    """The next size in a direction."""
    place = min(range(len(ZOOMS)), key=lambda i: abs(ZOOMS[i] - zoom))
    return ZOOMS[min(max(place + direction, 0), len(ZOOMS) - 1)]


# A click in a pane that another tab, or a quick second click, has closed already changes nothing.
def _show(index: int) -> None:
    if "source" in st.session_state:
        st.session_state["source"]["index"] = index


def _zoom(zoom: float) -> None:
    if "source" in st.session_state:
        st.session_state["source"]["zoom"] = zoom


def _close() -> None:
    st.session_state.pop("source", None)


# The page ---------------------------------------------------------------------------------------------------------


def _draw_proof(library: Library, citation: dict[str, Any], zoom: float) -> None:
    """The page of a citation, the quote below it.

    Raises:
        DocumentNotFound: The document was removed.
        LibraryDamaged: The page's stored text does not match its hash.
    """
    if not citation["quote"]:
        raise DocumentNotFound("The document was removed.", "")
    document = library.document(citation["document_id"])
    page = library.page(citation["document_id"], citation["page"])
    if citation["page_sha256"] != page.sha256:
        st.markdown(":orange-badge[:material/warning: changed] This page has changed since: it was read anew.")
    # What is known at once stands there at once; the picture comes into the room that is kept for it.
    above = st.container()
    span = _span(page.text, citation)
    _draw_quote(citation, document, with_words=_is_pictured(document) or span is None)
    below = st.container()
    with above:
        has_picture = _draw_picture(library, document, page, citation["boxes"], zoom)
        if not has_picture:
            with st.container(key="source-text"):
                st.html(_marked(page.text, span, zoom))
    place = f"{document.document_id} {page.page} {citation['start']} {zoom} {has_picture}"
    with below:
        if has_picture:
            with st.expander("Open page text", type="compact"):
                st.html(_marked(page.text, span))
        _centre(key="docmind_source", data={"place": place, "marked": _place(citation["boxes"], page)})


def draw_page(library: Library, document_id: str, number: int) -> None:
    """A page without a quote: its picture, or its text and one sentence why there is none.

    Raises:
        DocumentNotFound: There is no such page.
        LibraryDamaged: The page's stored text does not match its hash.
    """
    document, page = library.document(document_id), library.page(document_id, number)
    st.html(_STYLE)
    if not _draw_picture(library, document, page, (), 1.0) and page.text:
        with st.container(key="source-text"):
            st.html(_marked(page.text, None))


def _is_pictured(document: Document) -> bool:
    """Whether the document's pages have a look of their own."""
    return document.kind == "pdf"


def _draw_picture(
    library: Library, document: Document, page: Page, boxes: Sequence[Sequence[float]], zoom: float
) -> bool:
    """The page as it looks; False when it could not be drawn, and the reason is on the screen instead."""
    from docmind.parse.picture import page_picture

    if not _is_pictured(document):
        st.caption("A text file has no pages to picture: this is its text.")
        return False
    if not document.path:
        st.caption("Where this file lies is not known, so its page cannot be pictured: this is its text.")
        return False
    scale = PICTURE_SCALE if zoom <= 1 else LARGE_SCALE
    width, height = (page.width, page.height) if page.width > 0 < page.height else (612.0, 792.0)
    st.html(
        f"<style>.st-key-source-picture {{ aspect-ratio: {width:.2f} / {height * min(zoom, 1):.2f}; }}"
        f" .st-key-source-picture img {{ width: {zoom:.0%} !important; max-width: none !important; }}</style>"
    )
    frame = st.empty()
    try:
        with frame.container(key="source-picture"):
            with st.spinner("Drawing the page …"):
                picture = page_picture(
                    library.config,
                    Path(document.path),
                    page.page,
                    boxes,
                    sha256=document.sha256,
                    scale=min(scale, MAX_PICTURE_WIDTH / width),
                )
            alt = f"Page {page.page} of {plain_name(document.name)}" + (", the quote marked" if boxes else "")
            st.image(picture.jpeg, width="stretch", output_format="JPEG", alt=alt)
    except DocumentError as error:
        frame.empty()
        hint = f" {plain_with_code(error.hint, limit=300)}" if error.hint else ""
        st.caption(f"No picture, only the text: {plain_with_code(str(error), limit=400)}{hint}")
        return False
    return True


def plain_name(name: str) -> str:
    """A name where the screen takes text as it is, not markdown."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())[:200]


def _place(boxes: Sequence[Sequence[float]], page: Page) -> list[float]:
    """Left and right end of the marked place and the height of its middle, as shares of the page's size."""
    if not boxes or page.width <= 0 or page.height <= 0:
        return [0.0, 1.0, 0.0]
    x0, x1 = min(box[0] for box in boxes) / page.width, max(box[2] for box in boxes) / page.width
    y = (boxes[0][1] + boxes[min(len(boxes) - 1, 5)][3]) / 2 / page.height
    return [round(min(max(share, 0.0), 1.0), 3) for share in (x0, x1, y)]


# Text -------------------------------------------------------------------------------------------------------------


def _span(text: str, citation: dict[str, Any]) -> tuple[int, int] | None:
    """Where the quote stands in the page's text of today; None where it does not any more."""
    start, end, quote = citation["start"], citation["end"], citation["quote"]
    if text[start:end] == quote:
        return start, end
    found = text.find(quote)
    return (found, found + len(quote)) if found >= 0 else None


def _marked(text: str, span: tuple[int, int] | None, zoom: float = 1.0) -> str:
    """A page's text as HTML that is nothing but letters, the quote marked; of a long page what lies around it."""
    size = min(max(zoom, 0.75), 2.0)
    start, end = span or (0, 0)
    first, last = 0, len(text)
    note = ""
    if len(text) > TEXT_SHOWN:
        first, last = max(0, start - TEXT_AROUND), min(len(text), end + TEXT_AROUND)
        if span is None:
            last = TEXT_SHOWN
        what = "The part around the quote" if span else "The beginning"
        note = f"{what}: characters {first + 1:,} to {last:,} of {len(text):,}."
    body = _letters(text[first:start]) if span else _letters(text[first:last])
    if span:
        body += f"<mark>{_letters(text[start:end])}</mark>{_letters(text[end:last])}"
    cut = f'<div class="source-cut">{note}</div>' if note else ""
    return f'{cut}<div class="source-text" style="font-size: {size}rem">{body}</div>'


def _letters(text: str) -> str:
    """Text as HTML."""
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text.translate(_STEERING)))


def _draw_quote(citation: dict[str, Any], document: Document | None, *, with_words: bool = True) -> None:
    """The quote as text, unless it is marked right above, and where it was copied from."""
    words = f'<div class="source-text source-quote">“{_letters(citation["quote"])}”</div>' if with_words else ""
    path = f"<br>{_letters(document.path)}" if document and document.path else ""
    st.html(f'{words}<div class="source-where">Page {citation["page"]:,}, copied letter for letter{path}</div>')


def _draw_removed(citation: dict[str, Any]) -> None:
    st.info(
        f"{plain(citation['document'])} was removed from your library, and its words with it. "
        "Add it again and ask again to see this page."
    )
