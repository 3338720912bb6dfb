"""What can happen while a question is answered. Knows nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["waiting", "loading", "reading", "thinking"]


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A tool begins: what it is asked."""

    tool: str
    input: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A tool ended: how many passages in how many documents, in how many seconds."""

    tool: str
    input: str
    hits: int
    documents: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelWaiting:
    """The model is not writing yet.

    Attributes:
        phase: "waiting" for another question's answer, "loading" the model, "reading" the prompt, or "thinking".
        ahead: Questions before this one, while waiting.
        done, total: Tokens of the prompt, while reading; percent, while loading.
        seconds: How long it has been loading.
    """

    phase: Phase
    ahead: int = 0
    done: int = 0
    total: int = 0
    seconds: int = 0


@dataclass(frozen=True, slots=True)
class TextLeaves:
    """Question and passages are about to be sent beyond this device.

    Attributes:
        place: "your network" or "the internet".
        host: The machine they go to.
    """

    place: str
    host: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer as shown.

    Attributes:
        replaces: What was shown before turned out to be no part of the answer (thoughts, a long mark): this stands in
            its place.
    """

    text: str
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class FellBack:
    """A model gave up, and the next one goes on.

    Attributes:
        before, after: Backend and model, "backend · model".
        reason: A code of docs/reasons.md.
        message: What happened, in words.
        text: What the first one had written; it stays as an attempt, and the text that follows begins anew.
    """

    before: str
    after: str
    reason: str
    message: str
    text: str
