"""What is there of every backend: all are asked side by side, and what they say is taken as true for a minute; and
whether their models fit this machine, which is found out when somebody wants to know.

One that does not answer in time does not hold the others up: it is listed as such, and what it says later counts from
then on. Knows the registry, no backend's inside.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from docmind.backends import REGISTRY, Detection, backend
from docmind.errors import DocMindError

if TYPE_CHECKING:
    from collections.abc import Callable

    from docmind.backends.fits import Fit
    from docmind.config import Config

KEPT_SECONDS: Final = 60.0
DEADLINE_SECONDS = 1.0  # how long a page waits for all of them together
FITS_SECONDS: Final = 0.1  # how long a page waits for whether models fit
PATIENT_SECONDS: Final = 10.0  # how long a command waits, or an answer that has no model otherwise


@dataclass(slots=True)
class _Look:
    """One round of asking."""

    started_at: float = field(default_factory=time.monotonic)
    found: dict[str, Detection] = field(default_factory=dict)
    threads: dict[str, threading.Thread] = field(default_factory=dict)
    fits: dict[str, dict[str, Fit]] = field(default_factory=dict)  # by backend and model
    judges: dict[str, threading.Thread] = field(default_factory=dict)


_lock = threading.Lock()
_looks: dict[tuple[object, ...], _Look] = {}  # by data folder and registry


def detect_all(
    config: Config, *, max_age_seconds: float = KEPT_SECONDS, wait_seconds: float | None = None
) -> list[Detection]:
    """What every backend says of itself, in the registry's order. Never raises for an absence.

    Args:
        max_age_seconds: All are asked anew when the last round is older.
        wait_seconds: For all of them together; None: `DEADLINE_SECONDS`.
    """
    look = _look(config, max_age_seconds)
    end = look.started_at + (DEADLINE_SECONDS if wait_seconds is None else wait_seconds)
    for thread in look.threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    return [look.found.get(name) or _missing(name, thread.is_alive()) for name, thread in look.threads.items()]


def is_complete(config: Config) -> bool:
    """Whether every backend has answered, or failed, since it was last asked."""
    return not any(thread.is_alive() for thread in _look(config).threads.values())


def fits_of(config: Config, name: str) -> tuple[dict[str, Fit], bool]:
    """Whether the models that a backend was found with fit this machine, as far as is known by now, and whether that
    is all: headers are read in a thread, dozens of them take their time."""
    look = _look(config)
    function, found = getattr(backend(name), "fit", None), look.found.get(name)
    if function is None or found is None:
        return {}, True
    with _lock:
        judge = look.judges.get(name)
        if judge is None:
            known = look.fits[name] = {}
            models = [model.name for model in found.models if model.reason is None]
            judge = look.judges[name] = threading.Thread(
                target=_judge, args=(config, function, models, known), name=f"docmind-fits-{name}", daemon=True
            )
            judge.start()
    judge.join(FITS_SECONDS)
    return dict(look.fits[name]), not judge.is_alive()


def _judge(config: Config, function: Callable[[Config, str], Fit], models: list[str], known: dict[str, Fit]) -> None:
    for model in models:
        with contextlib.suppress(DocMindError):  # it has vanished, or its header is damaged where no list looks
            known[model] = function(config, model)


def forget() -> None:
    """Ask anew the next time."""
    with _lock:
        _looks.clear()


def _look(config: Config, max_age_seconds: float = KEPT_SECONDS) -> _Look:
    """The round that counts; a new one is begun where the last is too old."""
    key = (config.home, *REGISTRY.items())
    with _lock:
        look = _looks.get(key)
        if look is None or time.monotonic() - look.started_at > max_age_seconds:
            look = _looks[key] = _Look()
            for name in REGISTRY:
                thread = threading.Thread(
                    target=_ask, args=(config, name, look.found), name=f"docmind-detect-{name}", daemon=True
                )
                look.threads[name] = thread
                thread.start()
        return look


def _ask(config: Config, name: str, found: dict[str, Detection]) -> None:
    try:
        found[name] = backend(name).detect(config)
    except DocMindError as error:
        found[name] = Detection(name, _label(name), False, error.reason, error.hint, None, None, ())


def _missing(name: str, is_asked_still: bool) -> Detection:
    """What is said of a backend that has said nothing."""
    reason = "stalled" if is_asked_still else "backend_failed"
    hint = "It has not answered yet." if is_asked_still else "The log has the details; `docmind doctor` names it."
    return Detection(name, _label(name), False, reason, hint, None, None, ())


def _label(name: str) -> str:
    """What a backend is called; its module may be what is being waited for."""
    return getattr(sys.modules.get(REGISTRY[name]), "LABEL", name)
