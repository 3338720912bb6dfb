"""How tests wait: for a condition and never for a time, so that none of them depends on how fast the machine is."""

from __future__ import annotations

import time

import psutil

PATIENCE_SECONDS = 120  # more than a busy machine needs; a quiet one waits this long only for what is broken


def wait_until(condition, explain=None, seconds=PATIENCE_SECONDS):
    """Waits until a condition is true and gives what it said; `explain()` is shown when it never was."""
    end = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < end, explain() if explain else "waited in vain"
        time.sleep(0.05)
    return said


def is_gone(process):
    """Whether a process does nothing any more, whether or not its parent has taken note."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_in_page(page, function, argument=None):
    """Waits until a function of a browser's page says true. Playwright's own way needs eval, which our pages forbid."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(function, argument):
        assert time.monotonic() < end, f"never true: {function}"
        page.wait_for_timeout(50)
