"""An answer that was cut goes on: the same evidence, the same model, and no words twice. Knows no backend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from docmind import chats, history
from docmind.errors import DocMindError
from docmind.prompts import direct_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.llms import ChatMessage

    from docmind.chats import Message
    from docmind.citations import Evidence
    from docmind.history import Turn
    from docmind.library import Library, Page

CONTINUE: Final = "Your answer was cut off. Go on exactly where it ends, and repeat nothing of it."
LEAST_OVERLAP: Final = 8  # characters of the end that are said again; fewer may be chance
LEAST_BEGUN_ANEW: Final = 24  # characters; an answer that only says its beginning again
LONGEST_WORD: Final = 40  # characters; more without a blank is a language that writes none


def unfinished(library: Library, chat_id: str | None) -> tuple[str, Message]:
    """The question and the answer of a chat's last turn, when it can go on.

    Raises:
        DocMindError: It cannot (`nothing_to_continue`).
    """
    question, last = "", None
    for message in chats.messages(library, chat_id) if chat_id else ():
        if message.role == "user":
            question = message.text
        last = message
    if last is None or not can_continue(last):
        raise DocMindError(
            "There is no unfinished answer in this chat.", "Ask a question.", reason="nothing_to_continue"
        )
    return question, last


def can_continue(message: Message) -> bool:
    """Whether a message is an answer that ended too early and has words to go on from."""
    is_cut = message.role == "assistant" and message.finished in ("cut", "stopped")
    return is_cut and bool(message.text.strip()) and bool(message.details.get("model"))


def read_for(library: Library, chat_id: str) -> tuple[Turn, list[Evidence], dict[tuple[str, int], Page]]:
    """The chat's last turn, all evidence its model could read, that of earlier turns included, and the pages of it.

    Raises:
        DocMindError: What the answer was written from is not there any more (`nothing_to_continue`).
    """
    *before, last = history.turns_of(library, chat_id)
    turn, pages = history.with_evidence(library, last)
    if sum(len(step.places) for step in last.steps) > len(turn.evidence):
        raise DocMindError(
            "What this answer was written from has changed or was removed.", "Ask again.", reason="nothing_to_continue"
        )
    evidence = turn.evidence
    for earlier in reversed(before):  # numbers go on within a conversation: smaller ones are of turns it still had
        known, more = history.with_evidence(library, earlier)
        first = min((piece.number for piece in evidence), default=1 << 30)
        evidence = [*(piece for piece in known.evidence if piece.number < first), *evidence]
        pages = more | pages
    return turn, evidence, pages


def messages(turn: Turn, written: str, system_prompt: str, before: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The prompt: as it was, what was written, and the word to go on."""
    from llama_index.core.llms import ChatMessage, MessageRole

    return [
        *direct_messages(turn.asked, turn.evidence, system_prompt, before),
        ChatMessage(role=MessageRole.ASSISTANT, content=written),
        ChatMessage(role=MessageRole.USER, content=CONTINUE),
    ]


def to_go_on_from(text: str) -> str:
    """A text without the word in which it was cut: nobody knows how much of that was missing."""
    text = text.rstrip()
    if re.search(r"[.!?:;,)\]\"”»…。！？]\Z", text):
        return text
    last = re.search(r"\S+\Z", text)
    whole = text[: last.start()].rstrip() if last is not None and len(last[0]) <= LONGEST_WORD else text
    return whole or text


def joined(written: str, text: str, *, is_all: bool) -> str:
    """What was written, with what a model wrote to go on; what it says again is left out.

    While all of the new text could be such a repetition, nothing of it is taken.

    Args:
        written: As `to_go_on_from` gives it.
        text: The new text so far.
        is_all: Whether that is all.
    """
    known = " ".join(written.split())
    repeated, said = 0, ""
    for match in re.finditer(r"\S+", text):
        said = " ".join(text[: match.end()].split())
        if said not in known:
            break
        if known.endswith(said) and len(said) >= LEAST_OVERLAP:
            repeated = match.end()
    else:
        if not is_all or (len(said) >= LEAST_BEGUN_ANEW and known.startswith(said)):
            return written
    rest = text[repeated:]
    if not rest.strip():
        return written
    lines = re.match(r"\s*\n", rest)
    if lines is not None:  # a list goes on with its next line
        return written + lines[0].rstrip(" \t") + rest[lines.end() :]
    rest = rest.strip(" \t") if is_all else rest.lstrip(" \t")
    return written + rest if rest[0] in ".,;:!?)]’”" or written.endswith("\n") else f"{written} {rest}"
