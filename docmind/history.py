"""What of a chat the model is given again: its turns, each as it was read then, as far as time and window allow.

A turn stands in the prompt as it did when it was asked, its evidence included, so that the model's KV prefix is reused
and nothing is read twice: letter for letter up to its answer or the agent's second step, whose thoughts are not kept.
What it was shown is rebuilt from the library by place, so that the words of a removed document are gone here too. When
the turns do not fit any more, the older half goes at once, not one at a time, since each change at the front means that
all behind it is read anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from docmind import chats
from docmind.citations import Evidence
from docmind.errors import DocumentNotFound, LibraryDamaged
from docmind.prompts import LAST_THOUGHT, action_text, direct_question, observation_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llama_index.core.llms import ChatMessage

    from docmind.library import Library, Page

MAX_TURNS = 24  # looked at, however long the chat is
MESSAGE_TOKENS = 8  # what a chat template adds to a message, at most


@dataclass(frozen=True, slots=True)
class ReadStep:
    """A tool that was used for a turn, and where what it gave stands: [number, document, page, start, end, hash]."""

    tool: str
    arguments: dict[str, Any]
    places: tuple[Sequence[Any], ...]
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of the chat and its answer.

    Attributes:
        query: What was searched for: the question, or what a follow-up meant.
        asked: The question as the model was told it.
        answer: "" when there was none that helps to go on.
    """

    query: str
    asked: str
    answer: str
    steps: tuple[ReadStep, ...] = ()

    @property
    def evidence(self) -> list[Evidence]:
        """All that the model read for this turn."""
        return [piece for step in self.steps for piece in step.evidence]


@dataclass(frozen=True, slots=True)
class History:
    """The turns that go into the prompt, oldest first, and the pages their evidence stands on."""

    turns: tuple[Turn, ...] = ()
    pages: dict[tuple[str, int], Page] = field(default_factory=dict)
    tokens: int = 0

    @property
    def evidence(self) -> list[Evidence]:
        """What the model can read in these turns."""
        return [piece for turn in self.turns for piece in turn.evidence]


def turns_of(library: Library, chat_id: str | None) -> list[Turn]:
    """The answered turns of a chat, oldest first, without their evidence."""
    turns: list[Turn] = []
    question = ""
    for message in chats.messages(library, chat_id) if chat_id else ():
        if message.role == "user":
            question = message.text
        elif message.finished in ("complete", "stopped", "cut") and question:
            details = message.details
            steps = details.get("steps") or []
            has_answer = not details.get("not_in_documents") and details.get("reason") != "no_answer"
            turns.append(
                Turn(
                    str(steps[0]["input"]) if steps else question,
                    str(details.get("asked") or question),
                    message.text if has_answer else "",
                    tuple(
                        ReadStep(
                            str(step["tool"]),
                            dict(step.get("arguments") or {"query": step["input"]}),
                            tuple(step.get("evidence") or ()),
                        )
                        for step in steps
                    ),
                )
            )
    return turns


def fitting(
    library: Library,
    turns: Sequence[Turn],
    count_tokens: Callable[[list[str]], list[int]],
    *,
    within: frozenset[str] | None,
    limit_tokens: int,
    tokens_per_second: float | None,
    target_seconds: float,
    is_agent: bool,
) -> History:
    """The turns that fit, the newest last.

    Args:
        count_tokens: The model's own count for each text.
        within: Ids of the documents that may be read; None: all.
        limit_tokens: The most that may go in.
        tokens_per_second, target_seconds: How fast the model reads, and how long it may read what came before: it
            does so only when another chat was asked in between.
        is_agent: Whether turns are written as the agent's steps.
    """
    if tokens_per_second is not None and limit_tokens > 0:
        # A power of two: the measured speed varies a little, and a limit that moves would move the front of the prompt.
        limit_tokens = min(limit_tokens, 1 << int(math.log2(max(tokens_per_second * target_seconds, 1.0))))
    answered = [turn for turn in turns if turn.answer][-MAX_TURNS:]
    if not answered or limit_tokens <= 0:
        return History()
    pages: dict[tuple[str, int], Page] = {}
    names = {document.document_id: document.name for document in library.documents()}
    if within is not None:
        names = {document_id: name for document_id, name in names.items() if document_id in within}
    whole = [_with_evidence(library, turn, names, pages) for turn in answered]
    bare = [replace(turn, steps=()) for turn in answered]
    messages = [[message.content or "" for message in turn_messages(turn, is_agent)] for turn in (*whole, *bare)]
    counts = iter(count_tokens([text for texts in messages for text in texts]))
    sizes = [sum(next(counts) + MESSAGE_TOKENS for _ in texts) for texts in messages]
    kept: list[tuple[Turn, int]] = []
    for place, turn in enumerate(whole):
        kept.append((turn, sizes[place]))
        if sum(size for _, size in kept) <= limit_tokens:
            continue
        while kept and sum(size for _, size in kept) > limit_tokens // 2:
            kept.pop(0)
        if not kept and sizes[len(whole) + place] <= limit_tokens:  # it alone is too long: without its evidence
            kept = [(bare[place], sizes[len(whole) + place])]
    fit = tuple(turn for turn, _ in kept)
    places = {(piece.document_id, piece.page) for turn in fit for piece in turn.evidence}
    return History(fit, {key: pages[key] for key in places}, sum(size for _, size in kept))


def with_evidence(library: Library, turn: Turn) -> tuple[Turn, dict[tuple[str, int], Page]]:
    """A turn with what the model read for it, and the pages that stands on."""
    pages: dict[tuple[str, int], Page] = {}
    names = {document.document_id: document.name for document in library.documents()}
    return _with_evidence(library, turn, names, pages), pages


def _with_evidence(library: Library, turn: Turn, names: Mapping[str, str], pages: dict[tuple[str, int], Page]) -> Turn:
    """A turn with what the model read for it, as far as it is there unchanged and within reach.

    Args:
        names: Of the documents within reach, by id.
        pages: Those looked at already; more are added.
    """
    steps: list[ReadStep] = []
    for step in turn.steps:
        evidence: list[Evidence] = []
        for number, document_id, page, start, end, sha256 in step.places:
            key = (str(document_id), int(page))
            if key[0] not in names:
                continue
            try:
                stored = pages.get(key) or library.page(*key)
            except (DocumentNotFound, LibraryDamaged):  # removed, or not what it was: it is not told again
                continue
            if stored.sha256 == sha256:  # else it was read anew since, and stands elsewhere
                pages[key] = stored
                evidence.append(Evidence(number, key[0], names[key[0]], key[1], start, end, stored.text[start:end]))
        steps.append(replace(step, evidence=tuple(evidence)))
    return replace(turn, steps=tuple(steps))


def turn_messages(turn: Turn, is_agent: bool) -> list[ChatMessage]:
    """A turn as the model read it."""
    from llama_index.core.llms import ChatMessage, MessageRole

    if not is_agent:
        asked = direct_question(turn.asked, turn.evidence)
        return [ChatMessage(role=MessageRole.USER, content=asked), _said(turn.answer)]
    messages = [ChatMessage(role=MessageRole.USER, content=turn.asked)]
    for step in turn.steps:
        if step.evidence:
            messages.append(_said(action_text(step.tool, step.arguments)))
            messages.append(ChatMessage(role=MessageRole.USER, content=observation_text(step.evidence)))
    return [*messages, _said(f"Thought: {LAST_THOUGHT}\nAnswer: {turn.answer}")]


def _said(text: str) -> ChatMessage:
    from llama_index.core.llms import ChatMessage, MessageRole

    return ChatMessage(role=MessageRole.ASSISTANT, content=text)
