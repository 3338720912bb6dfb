"""What is there of every backend: all are asked side by side, and what they say is taken as true for a minute; and
whether their models fit this machine, which is found out when somebody wants to know.

One that does not answer in time does not hold the others up: it is listed as such, and what it says later counts from
then on. One that is asked anew is listed as it was, until it has answered. Knows the registry, no backend's inside.
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
class _Asked:
    """A backend as it was asked last, at its own address or at one that a profile names."""

    before: Detection | None  # what it said the time before, if it was asked then and answered
    fits: dict[str, Fit]  # by model
    started_at: float = field(default_factory=time.monotonic)
    found: Detection | None = None
    thread: threading.Thread = field(init=False)
    judge: threading.Thread | None = None

    @property
    def said(self) -> Detection | None:
        """What counts now; None: it has not answered."""
        return self.found or self.before


_lock = threading.Lock()
_asked: dict[tuple[str, str, str, str | None], _Asked] = {}  # by data folder, backend, its module and its address


def detect_all(
    config: Config, *, max_age_seconds: float = KEPT_SECONDS, wait_seconds: float | None = None
) -> list[Detection]:
    """What every backend says of itself, in the registry's order. Never raises for an absence.

    Args:
        max_age_seconds: What was said longer ago than this is asked anew.
        wait_seconds: For all of them together; None: `DEADLINE_SECONDS`, and only for those never asked before.
    """
    asked = [_ask(config, name, None, max_age_seconds) for name in REGISTRY]
    return [_said(name, one, wait_seconds) for name, one in zip(REGISTRY, asked, strict=True)]


def detect_at(
    config: Config, name: str, url: str, *, max_age_seconds: float = KEPT_SECONDS, wait_seconds: float | None = None
) -> Detection:
    """What a backend says of itself at an address of its own; kept and waited for as in `detect_all`."""
    return _said(name, _ask(config, name, url, max_age_seconds), wait_seconds)


def said(config: Config) -> dict[tuple[str, str, str, str | None], Detection | None]:
    """What has been said so far, to be compared with what was said later. Asks nobody."""
    with _lock:
        return {key: one.said for key, one in _asked.items() if key[0] == str(config.home)}


def is_complete(config: Config) -> bool:
    """Whether every backend has answered, or failed, since it was last asked."""
    with _lock:
        return not any(one.thread.is_alive() for key, one in _asked.items() if key[0] == str(config.home))


def fits_of(config: Config, name: str) -> tuple[dict[str, Fit], bool]:
    """Whether the models that a backend was found with fit this machine, as far as is known by now, and whether that
    is all: headers are read in a thread, dozens of them take their time."""
    asked = _ask(config, name, None, KEPT_SECONDS)
    function, found = getattr(backend(name), "fit", None), asked.found
    if function is None or found is None:
        return dict(asked.fits), function is None or not asked.thread.is_alive()
    with _lock:
        judge = asked.judge
        if judge is None:
            models = [model.name for model in found.models if model.reason is None]
            judge = asked.judge = threading.Thread(
                target=_judge, args=(config, function, models, asked.fits), name=f"docmind-fits-{name}", daemon=True
            )
            judge.start()
    judge.join(FITS_SECONDS)
    return dict(asked.fits), not judge.is_alive()


def _judge(config: Config, function: Callable[[Config, str], Fit], models: list[str], known: dict[str, Fit]) -> None:
    for model in models:
        with contextlib.suppress(DocMindError):  # it has vanished, or its header is damaged where no list looks
            known[model] = function(config, model)


def forget() -> None:
    """Ask anew the next time, as if for the first time."""
    with _lock:
        _asked.clear()


def _ask(config: Config, name: str, url: str | None, max_age_seconds: float) -> _Asked:
    """What was asked of a backend last, or now where that is too old."""
    key = (str(config.home), name, REGISTRY[name], url)
    with _lock:
        last = _asked.get(key)
        if last is not None and time.monotonic() - last.started_at <= max_age_seconds:
            return last
        now = _Asked(None, {}) if last is None else _Asked(last.found, dict(last.fits))
        now.thread = threading.Thread(
            target=_listen, args=(config, name, url, now), name=f"docmind-detect-{name}", daemon=True
        )
        now.thread.start()
        _asked[key] = now
        return now


def _listen(config: Config, name: str, url: str | None, asked: _Asked) -> None:
    try:
        module = backend(name)
        asked.found = module.detect(config) if url is None else module.detect(config, {"url": url})
    except DocMindError as error:
        asked.found = Detection(name, _label(name), False, error.reason, error.hint, None, None, ())
    except BaseException:
        asked.found = _missing(name, "backend_failed", "The log has the details; `docmind doctor` names it.")
        raise


def _said(name: str, asked: _Asked, wait_seconds: float | None) -> Detection:
    """What a backend has said, waited for if need be."""
    if asked.before is None or wait_seconds is not None:
        end = asked.started_at + (DEADLINE_SECONDS if wait_seconds is None else wait_seconds)
        asked.thread.join(max(0.0, end - time.monotonic()))
    return asked.said or _missing(name, "stalled", "It has not answered yet.")


def _missing(name: str, reason: str, hint: str) -> Detection:
    """What is said of a backend that has said nothing."""
    return Detection(name, _label(name), False, reason, hint, None, None, ())


def _label(name: str) -> str:
    """What a backend is called; its module may be what is being waited for."""
    return getattr(sys.modules.get(REGISTRY[name]), "LABEL", name)
