"""One message as it is drawn: the answer with its chips, what was searched, the proof in one line, the receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import embed
from docmind.backends.places import where_text_goes
from docmind.errors import DocMindError, DocumentNotFound
from docmind.events import FellBack, ModelWaiting, StepFinished, StepStarted, TextDelta
from docmind.parse.boxes import boxes_for
from docmind.wording import DOING, counted, left_out_words, step_line, waiting_line
from pages.parts.frame import show_error
from pages.parts.safe import answer as inert
from pages.parts.safe import answer_with_chips, plain

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from docmind.chats import Message
    from docmind.library import Library
    from docmind.runs import Run

NEAREST_FROM = 101  # numbers of the chips that lead to the nearest passages
UNPROVEN_FROM = 1001  # numbers of the chips that say what is missing: this and the sentence's place
LEFT_OUT_SHOWN = 12
AVATARS = {"user": ":material/person:", "assistant": ":material/auto_stories:"}
REASONS = {
    "cut_at_limit": "The answer reached its length limit.",
    "no_end_marker": "The model ended without saying that it had finished.",
    "interrupted": "DocMind was closed while this was being written.",
}
NOTES = {
    "context_cut": "The model's server left out the beginning of what it was given: the answer may miss something. "
    "Give the model a larger window, or ask for less.",
    "no_answer": "The model gave no answer, though it was asked twice. A larger model may.",
}


def bubble(role: str) -> DeltaGenerator:
    """Where a message of "user" or "assistant" is drawn."""
    return st.chat_message(role, avatar=AVATARS[role])


# A message of the library ------------------------------------------------------------------------------------------


def draw_message(message: Message) -> None:
    """A question or an answer that has ended."""
    with bubble(message.role):
        if message.role == "user":
            st.markdown(inert(message.text))
            return
        # In a container, as a fragment draws: what grew is replaced piece by piece, and does not vanish for a moment.
        with st.container():
            _draw_answer(message)


def _draw_answer(message: Message) -> None:
    for place, step in enumerate(message.details.get("steps", ())):
        _draw_step(step, message.details if place == 0 else {})
    _draw_attempts(message.details)
    if message.text:
        st.markdown(_with_chips(message))
    _draw_end(message)
    if message.finished != "failed":
        _draw_receipt(message)


def _with_chips(message: Message) -> str:
    """The text with its citations at the ends of sentences, and a mark where proof is missing."""
    ends: list[tuple[int, str]] = []
    for place, sentence in enumerate(message.sentences):
        chips = "".join(_chip(message, number, str(number), "blue") for number in sentence["citations"])
        if not chips and sentence["is_claim"] and sentence["support"] == "none":
            chips = _chip(message, UNPROVEN_FROM + place, "⚠", "orange")
        if chips:
            ends.append((_end_of_words(message.text, sentence["end"]), " " + chips))
    return answer_with_chips(message.text, ends)


def _chip(message: Message, number: int, text: str, colour: str) -> str:
    return f"[:{colour}-badge[{text}]](#cite-{message.message_id}-{number})"


def _end_of_words(text: str, end: int) -> int:
    """The offset behind the sentence's last character that shows."""
    return len(text[:end].rstrip())


def _draw_step(step: dict[str, Any], details: dict[str, Any]) -> None:
    """What was searched or read, one quiet line that opens."""
    asked = plain(step["input"], limit=80)
    line = step_line(step["tool"], asked, step["hits"], step.get("documents") or 0, step["seconds"])
    with st.expander(line, type="compact"):
        context = details.get("context") or {}
        given = (context.get("parts") or {}).get("evidence")
        left_out = context.get("left_out") or []
        lines = [f"The model was given {given:,} tokens of evidence."] if given else []
        if left_out:
            lines.append(f"Left out, since they did not fit time or window: {counted(len(left_out), 'passage')}.")
        pieces = len(step.get("evidence") or ())
        told = f"The model was given {counted(pieces, 'new piece')} of evidence." if pieces else "Nothing new."
        lines = lines or [told]
        st.caption(" ".join(lines))
        for left in left_out[:LEFT_OUT_SHOWN]:
            st.caption(f"{plain(left['document'], limit=60)}, page {left['page']} · {left['tokens']} tokens")


def _draw_attempts(details: dict[str, Any]) -> None:
    """Models that gave up before the one whose answer this is, and what they had written."""
    attempts = {attempt["model"]: attempt["text"] for attempt in details.get("attempts") or ()}
    for fallback in details.get("fallbacks") or ():
        _draw_fallback(fallback["from"], fallback["to"], fallback["message"], attempts.get(fallback["from"], ""))


def _draw_fallback(before: str, after: str, message: str, text: str) -> None:
    """One model gave up and the next went on; what was written stays, in a block of its own."""
    if text:
        with st.expander(f"Unfinished attempt by {plain(before, limit=60)}", type="compact"):
            st.markdown(inert(text))
    said = f"{plain(before, limit=60)} could not go on: {plain(message, limit=300)}"
    st.markdown(f":small[:orange[:material/alt_route:] {said} **{plain(after, limit=60)}** was asked instead.]")


def _draw_end(message: Message) -> None:
    """How it ended, where that needs a word, and the proof in one line."""
    details, reason = message.details, message.details.get("reason")
    if message.finished == "failed":
        show_error(DocMindError(details.get("message", "This could not be answered."), details.get("hint", "")))
    elif message.finished == "stopped":
        st.caption("Stopped. What was written so far is kept.")
    elif message.finished == "cut":
        told = f"{details.get('message', '')} {details.get('hint', '')}".strip() or str(reason)
        st.warning("Cut off. " + REASONS.get(str(reason), plain(told, limit=500)))
    elif reason in NOTES:
        st.caption(f":orange[⚠] {NOTES[reason]}")
    claims = [sentence for sentence in message.sentences if sentence["is_claim"]]
    quoted = sum(sentence["support"] == "quoted" for sentence in claims)
    unproven = sum(sentence["support"] == "none" for sentence in claims)
    parts = [f":green[✓ {quoted} quoted]"] if quoted else []
    parts += [f":orange[⚠ {unproven} without proof]"] if unproven else []
    if parts:
        st.caption(" · ".join(parts))
    nearest = details.get("nearest") or []
    if nearest:
        chips = " · ".join(
            f"[:gray-badge[{plain(near['document'], limit=40)}, page {near['page']}]]"
            f"(#cite-{message.message_id}-{NEAREST_FROM + place})"
            for place, near in enumerate(nearest)
        )
        st.caption(f"Nearest passages: {chips}")


def _draw_receipt(message: Message) -> None:
    """One muted line that opens: first token, speed, model, window used."""
    details = message.details
    timings, context = details.get("timings") or {}, details.get("context") or {}
    figures = []
    if timings.get("first_token_s") is not None:
        figures.append(f"{timings['first_token_s']:.1f} s")
    if timings.get("tokens_per_second"):
        figures.append(f"{timings['tokens_per_second']:.0f} tok/s")
    if details.get("model"):
        figures.append(plain(details["model"], limit=40))
    read, window = timings.get("prompt_tokens"), context.get("window")
    if read and window:
        figures.append(f"{read:,}/{window:,} {meter(read / window)}")
    if details.get("settings_left_out"):
        figures.append(plain(left_out_words(details["settings_left_out"], details.get("backend") or "it"), limit=120))
    if not figures:
        return
    with st.popover(f":gray[{' · '.join(figures)}]", type="tertiary", key=f"receipt-{message.message_id}"):
        st.markdown(_receipt_table(details, timings, context))


def meter(share: float) -> str:
    """A share of the window as four small boxes."""
    full = max(0, min(4, round(share * 4 + 0.49)))
    return "▮" * full + "▯" * (4 - full)


def _receipt_table(details: dict[str, Any], timings: dict[str, Any], context: dict[str, Any]) -> str:
    parts = context.get("parts") or {}
    rows = [
        ("First token", _seconds(timings.get("first_token_s"))),
        ("Search", _seconds(timings.get("retrieval_s"))),
        ("In all", _seconds(timings.get("total_s"))),
        ("Written", _tokens(timings.get("answer_tokens"))),
        ("Instructions and question", _tokens(parts.get("instructions_and_question"))),
        ("Evidence", _tokens(parts.get("evidence"))),
        ("Conversation before", _tokens(parts.get("conversation"))),
        ("of all these read before", _tokens(parts.get("cached"))),
        ("Kept for the answer", _tokens(parts.get("answer_limit"))),
        ("Window", _tokens(context.get("window"))),
        ("Calls of the model", str(timings.get("model_calls") or "–")),
        ("Backend", plain(details.get("backend") or "–")),
        ("Profile", plain(details.get("profile") or "–")),
    ]
    if details.get("choice"):
        rows.append(("Chosen", plain(details["choice"], limit=300)))
    return "| | |\n|---|---:|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


def _tokens(value: int | None) -> str:
    return "–" if value is None else f"{value:,} tokens"


def who_goes_on(message: Message) -> str:
    """Which model an unfinished answer would go on with, and where that is."""
    place, host = where_text_goes(message.details.get("url"))
    where = "" if place == "this device" else f", on {place}: {plain(host, limit=60)}"
    return f"{plain(message.details['model'], limit=60)} goes on where it ended{where}"


# An answer that is being written ------------------------------------------------------------------------------------


def draw_growing(run: Run) -> None:
    """What an answer has come to: its steps, what it waits for, its text so far."""
    steps: list[StepFinished] = []
    waiting, text, fell_back = "Starting …", list[str](), list[FellBack]()
    for event in run.events_after():
        match event:
            case StepStarted(tool, asked):
                waiting = f"{DOING.get(tool, 'Searching')} {_quoted(asked)}…"
                if not embed.is_loaded():
                    waiting = "Loading the search model, some seconds once after the start …"
            case StepFinished():
                steps.append(event)
                waiting = "Packing the evidence …"
            case ModelWaiting():
                waiting = waiting_line(event)
            case TextDelta(piece, replaces):
                text = [*([] if replaces else text), piece]
            case FellBack():
                fell_back.append(event)
                text, steps = [], steps[:1]
    for step in steps:
        line = step_line(step.tool, plain(step.input, limit=80), step.hits, step.documents, step.seconds)
        st.expander(line, type="compact").caption("The evidence is listed when the answer is complete.")
    for fell in fell_back:
        _draw_fallback(fell.before, fell.after, fell.message, fell.text)
    if text:
        st.markdown(inert("".join(text)))
    else:
        st.caption(waiting)


def _quoted(asked: str) -> str:
    return f"“{plain(asked, limit=80)}” " if asked else ""


# What a chip leads to -----------------------------------------------------------------------------------------------


def sources_of(library: Library, message: Message) -> list[dict[str, Any]]:
    """The citations of an answer, then its nearest passages, as the source pane takes them."""
    sources = list(message.citations)
    for place, near in enumerate(message.details.get("nearest") or []):
        source = {**near, "number": NEAREST_FROM + place, "quote": "", "boxes": [], "page_sha256": ""}
        try:
            page = library.page(near["document_id"], near["page"])
        except DocumentNotFound:  # removed since: the pane says so
            sources.append(source)
            continue
        boxes = boxes_for(page.boxes, near["start"], near["end"]) if page.boxes else []
        quote = page.text[near["start"] : near["end"]]
        sources.append(
            {**source, "quote": quote, "boxes": [list(map(float, b)) for b in boxes], "page_sha256": page.sha256}
        )
    return sources
