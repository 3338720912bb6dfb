"""The document that comes with DocMind, for whoever has none at hand. docs/sample holds the script that wrote it."""

from __future__ import annotations

from pathlib import Path


def sample_path() -> Path:
    """A PDF of three pages about tides, with numbers that can be checked."""
    return Path(__file__).parent / "data" / "How tides work.pdf"
