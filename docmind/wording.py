"""Words that the screen and the command line share. Knows events, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.backends.fits import Fit
    from docmind.events import ModelWaiting

DOING = {"search_documents": "Searching", "read_page": "Reading", "list_documents": "Looking through the names"}


def counted(number: int, word: str) -> str:
    """ "1 page", "2,300 pages"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; of one word at least."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def step_line(tool: str, asked: str, hits: int, documents: int, seconds: float) -> str:
    """A step of an answer that has ended, in one line; `asked` is put in as it is."""
    took = f" · {seconds:.1f} s"
    if tool == "read_page":
        return f"{'Read' if hits else 'Looked for'} {asked}{took}"
    if tool == "list_documents":
        return f"Looked through the names of {counted(documents, 'document')}{took}"
    where = f" in {counted(documents, 'document')}" if documents else ""
    return f"Searched “{asked}”: {counted(hits, 'passage')}{where}{took}"


# Why a backend or a model cannot be used, as a short state.
ABSENCES = {
    "not_installed": "not installed",
    "no_model": "no model found",
    "unreachable": "not running",
    "stalled": "no answer yet",
    "model_damaged": "damaged",
    "no_text_generation": "no chat",
    "unsafe_weights": "unsafe",
    "remote_code": "needs code",
    "key_missing": "needs a key",
    "key_rejected": "refuses the key",
    "local_only": "beyond this device",
}


def absence_words(reason: str | None) -> str:
    """A reason's code in a few words; those of backends to come are readable too."""
    return ABSENCES.get(reason or "", (reason or "not available").replace("_", " "))


def fit_words(fit: Fit) -> str:
    """Whether a model fits this machine, for a cell of a table."""
    if fit.verdict == "too_large":
        return "smaller window" if fit.largest_window else "too large"
    return {"on_gpu": "fits on GPU", "partly_on_gpu": "partly on GPU", "in_memory": "fits"}[fit.verdict]


def left_out_words(names: Sequence[str], label: str) -> str:
    """ "llama.cpp does not take temperature and top_k as set", for a receipt or a card."""
    return f"{label} does not take {listed(names)} as set"


def waiting_line(event: ModelWaiting) -> str:
    """What a model does that is not writing yet."""
    match event.phase:
        case "waiting":
            return f"{event.ahead} before you …"
        case "thinking":
            return "Thinking …"
        case "loading":
            share = f" {event.done} %" if event.total and event.done else ""
            return f"Loading the model{share} …" + (f" {event.seconds} s" if event.seconds else "")
        case "reading":
            return f"Reading {event.done:,} of {event.total:,} tokens …" if event.total else "Reading …"
