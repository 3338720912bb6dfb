"""Stop strings: where an answer ends although the model would write on.

Kept free of every package: the models' child processes use it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopStrings:
    """Cuts a stream of text at the first stop string, which may arrive in pieces."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops, self._held = stops, ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown by now, and whether a stop string was met (it is not part of the text)."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        # Hold back the longest end that could be the beginning of a stop string.
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def rest(self) -> str:
        """What was held back and turned out to be no stop string."""
        return self._held
