"""A circuit breaker per backend: one that failed again and again rests, while another model can answer.

Where there is no other it is asked all the same: the person chose it. Knows profiles, no backend's inside.
Source of the pattern: M. Nygard, Release It!, 2nd edition, section 5.2.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from docmind.errors import BackendUnavailable

if TYPE_CHECKING:
    from docmind.errors import BackendError
    from docmind.profiles import Profile

FAILURES: Final = 3  # in a row, after which it rests
REST_SECONDS: Final = 30.0  # then one question tries it again, and the next failure begins a new rest
# What says that the software behind it is in trouble; another question to the same model may well go the same way.
TROUBLE: Final = frozenset(
    {"bad_response", "crashed", "crash_loop", "load_stalled", "no_end_marker", "out_of_memory", "rate_limited",
     "server_failed", "stalled", "unreachable"}
)  # fmt: skip

_lock = threading.Lock()
_failures: dict[tuple[str, str], tuple[int, float]] = {}  # by backend and address: how many in a row, when the last


def note(profile: Profile, error: BackendError | None) -> None:
    """Remember how an attempt ended; None is an answer. What the person did wrong does not count."""
    with _lock:
        if error is None:
            _failures.pop(_key(profile), None)
        elif error.reason in TROUBLE:
            count, _ = _failures.get(_key(profile), (0, 0.0))
            _failures[_key(profile)] = count + 1, time.monotonic()


def resting(profile: Profile) -> BackendUnavailable | None:
    """Why a profile's backend is not asked just now; None: it is."""
    with _lock:
        count, last = _failures.get(_key(profile), (0, 0.0))
    left = last + REST_SECONDS - time.monotonic()
    if count < FAILURES or left <= 0:
        return None
    return BackendUnavailable(
        f"{profile.backend} failed {count} times in a row and rests for {left:.0f} seconds.",
        "See what is wrong with it on the Models page, or choose another model.",
        reason="resting",
    )


def forget() -> None:
    """Begin anew: the person looked for backends again."""
    with _lock:
        _failures.clear()


def _key(profile: Profile) -> tuple[str, str]:
    return profile.backend, str(profile.options.get("url", ""))
