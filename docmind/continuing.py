"""An answer that was cut goes on: the same evidence, the same model, and no words twice. Knows no backend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from docmind import chats, history
from docmind.errors import DocMindError
from docmind.prompts import direct_messages

if TYPE_CHECKING:
    from llama_index.core.llms import ChatMessage

    from docmind.chats import Message
    from docmind.history import Turn
    from docmind.library import Library, Page

CONTINUE: Final = "Your answer was cut off. Go on exactly where it ends, and repeat nothing of it."
LEAST_REPEATED: Final = 24  # characters; fewer stand in two places of a text by chance
LEAST_OVERLAP: Final = 8  # characters, where what is repeated is the end itself


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


def turn_of(library: Library, chat_id: str) -> tuple[Turn, dict[tuple[str, int], Page]]:
    """The chat's last turn with what the model read for it, and the pages that stands on."""
    return history.with_evidence(library, history.turns_of(library, chat_id)[-1])


def messages(turn: Turn, written: str, system_prompt: str) -> list[ChatMessage]:
    """The prompt: as it was, what was written, and the word to go on."""
    from llama_index.core.llms import ChatMessage, MessageRole

    return [
        *direct_messages(turn.asked, turn.evidence, system_prompt, []),
        ChatMessage(role=MessageRole.ASSISTANT, content=written),
        ChatMessage(role=MessageRole.USER, content=CONTINUE),
    ]


def to_go_on_from(text: str) -> str:
    """A text without the word in which it was cut: nobody knows how much of that was missing."""
    text = text.rstrip()
    if re.search(r"[.!?:;,)\]\"”»…。！？]\Z", text):
        return text
    whole = re.sub(r"\S+\Z", "", text).rstrip()
    return whole or text


def joined(written: str, text: str, *, is_all: bool) -> str:
    """What was written, with what a model wrote to go on; what it says again is left out.

    While all of the new text could be such a repetition, nothing of it is taken.

    Args:
        written: As `to_go_on_from` gives it.
        text: The new text so far.
        is_all: Whether that is all.
    """
    text = text.lstrip()
    known = " ".join(written.split())
    spans = [match.end() for match in re.finditer(r"\S+", text)]
    repeated = 0
    for end in spans:
        said = " ".join(text[:end].split())
        if said not in known:
            break
        is_the_end = known.endswith(said)
        if len(said) >= (LEAST_OVERLAP if is_the_end else LEAST_REPEATED):
            repeated = end
    else:
        if not is_all:
            return written
    rest = text[repeated:]
    if not rest.strip():
        return written
    if rest[0] in ".,;:!?)]’”" or written.endswith("\n"):
        return written + rest
    return f"{written}{rest}" if rest[0].isspace() else f"{written} {rest}"
