"""What of a chat the model is given again: its turns, each as it was read then, as far as time and window allow.

A turn stands in the prompt letter for letter as it did when it was asked, its evidence included, so that the model's
KV prefix is reused and nothing is read twice; what it was shown is rebuilt from the library by place, so that the words
of a removed document are gone here too. When the turns do not fit any more, the older half goes at once, not one at a
time, since each change at the front means that all behind it is read anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docmind import chats
from docmind.citations import Evidence
from docmind.errors import DocumentNotFound, LibraryDamaged
from docmind.prompts import LAST_THOUGHT, action_text, direct_question, observation_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llama_index.core.llms import ChatMessage

    from docmind.library import Library, Page

MESSAGE_TOKENS = 8  # what a chat template adds to a message, at most


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of the chat and its answer.

    Attributes:
        query: What was searched for: the question, or what a follow-up meant.
        asked: The question as the model was told it.
        steps: Tool, input, and the evidence it gave.
    """

    query: str
    asked: str
    answer: str
    steps: tuple[tuple[str, str, tuple[Evidence, ...]], ...] = ()

    @property
    def evidence(self) -> list[Evidence]:
        """All that the model read for this turn."""
        return [piece for _, _, pieces in self.steps for piece in pieces]


@dataclass(frozen=True, slots=True)
class History:
    """The turns that go into the prompt, oldest first, and the pages their evidence stands on."""

    turns: tuple[Turn, ...]
    pages: dict[tuple[str, int], Page]
    tokens: int = 0

    @property
    def evidence(self) -> list[Evidence]:
        """What the model can read in these turns."""
        return [piece for turn in self.turns for piece in turn.evidence]


def turns_of(library: Library, chat_id: str | None) -> tuple[list[Turn], dict[tuple[str, int], Page]]:
    """The answered turns of a chat, oldest first, and the pages of their evidence that are still there unchanged."""
    pages: dict[tuple[str, int], Page] = {}
    turns: list[Turn] = []
    question = ""
    for message in chats.messages(library, chat_id) if chat_id else ():
        if message.role == "user":
            question = message.text
        elif message.finished in ("complete", "stopped", "cut") and question:
            steps = message.details.get("steps") or []
            query = str(steps[0]["input"]) if steps else question
            is_answer = bool(message.text) and not message.details.get("not_in_documents")
            turns.append(
                Turn(
                    query,
                    str(message.details.get("asked") or question),
                    message.text if is_answer else "",
                    tuple(
                        (str(step["tool"]), str(step["input"]), _evidence(library, step.get("evidence") or [], pages))
                        for step in steps
                    ),
                )
            )
    return turns, pages


def _evidence(
    library: Library, places: Sequence[Sequence[Any]], pages: dict[tuple[str, int], Page]
) -> tuple[Evidence, ...]:
    """The pieces at these places: [number, document, page, start, end, hash of the page]."""
    found: list[Evidence] = []
    for number, document_id, page, start, end, sha256 in places:
        key = (str(document_id), int(page))
        try:
            stored = pages.get(key) or library.page(*key)
            name = library.document(key[0]).name
        except (DocumentNotFound, LibraryDamaged):  # removed, or not what it was: it is not told again
            continue
        if stored.sha256 == sha256:  # else it was read anew since, and stands elsewhere
            pages[key] = stored
            found.append(Evidence(number, key[0], name, key[1], start, end, stored.text[start:end]))
    return tuple(found)


def fitting(
    turns: Sequence[Turn],
    pages: dict[tuple[str, int], Page],
    count_tokens: Callable[[list[str]], list[int]],
    *,
    limit_tokens: int,
    tokens_per_second: float | None,
    target_seconds: float,
    is_agent: bool,
) -> History:
    """The turns that fit, the newest last.

    Args:
        count_tokens: The model's own count for each text.
        limit_tokens: The most that may go in.
        tokens_per_second, target_seconds: How fast the model reads, and how long it may read what came before: it
            does so only when another chat was asked in between.
        is_agent: Whether turns are written as the agent's steps.
    """
    answered = [turn for turn in turns if turn.answer]
    if tokens_per_second is not None and limit_tokens > 0:
        # A power of two: the measured speed varies a little, and a limit that moves would move the front of the prompt.
        limit_tokens = min(limit_tokens, 1 << int(math.log2(max(tokens_per_second * target_seconds, 1.0))))
    if not answered or limit_tokens <= 0:
        return History((), {})
    bare = [Turn(turn.query, turn.asked, turn.answer) for turn in answered]
    texts = [message.content or "" for turn in (*answered, *bare) for message in turn_messages(turn, is_agent)]
    counts = iter(count_tokens(texts))
    sizes = [sum(next(counts) + MESSAGE_TOKENS for _ in turn_messages(turn, is_agent)) for turn in (*answered, *bare)]
    kept: list[tuple[Turn, int]] = []
    for place, turn in enumerate(answered):
        kept.append((turn, sizes[place]))
        if sum(size for _, size in kept) <= limit_tokens:
            continue
        while kept and sum(size for _, size in kept) > limit_tokens // 2:
            kept.pop(0)
        if not kept and sizes[len(answered) + place] <= limit_tokens:  # it alone is too long: without its evidence
            kept = [(bare[place], sizes[len(answered) + place])]
    fit = tuple(turn for turn, _ in kept)
    places = {(piece.document_id, piece.page) for turn in fit for piece in turn.evidence}
    return History(fit, {key: pages[key] for key in places}, sum(size for _, size in kept))


def turn_messages(turn: Turn, is_agent: bool) -> list[ChatMessage]:
    """A turn as the model read it."""
    from llama_index.core.llms import ChatMessage, MessageRole

    if not is_agent:
        asked = direct_question(turn.asked, turn.evidence)
        return [ChatMessage(role=MessageRole.USER, content=asked), _said(turn.answer)]
    messages = [ChatMessage(role=MessageRole.USER, content=turn.asked)]
    for tool, given, pieces in turn.steps:
        if pieces:
            messages.append(_said(action_text(tool, {"query": given})))
            messages.append(ChatMessage(role=MessageRole.USER, content=observation_text(pieces)))
    return [*messages, _said(f"Thought: {LAST_THOUGHT}\nAnswer: {turn.answer}")]


def _said(text: str) -> ChatMessage:
    from llama_index.core.llms import ChatMessage, MessageRole

    return ChatMessage(role=MessageRole.ASSISTANT, content=text)
