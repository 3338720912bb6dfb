"""Light and dark: every text can be read on every ground it stands on, and nothing is fetched for it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

CONFIG = tomllib.loads((Path(__file__).parents[1] / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
AA = 4.5  # WCAG 2.2, 1.4.3, for text below 18 pt
AA_GRAPHICS = 3.0  # 1.4.11, for what is no text: a bar, a switch
MUTED = 0.6  # the opacity of captions


def channels(colour):
    """Of #rrggbb, 0 to 255."""
    return [int(colour[index : index + 2], 16) for index in (1, 3, 5)]


def luminance(colour):
    """Source: WCAG 2.2, relative luminance."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in
              (channel / 255 for channel in colour)]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """From 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_can_be_read_on_every_ground(name):
    """Body, muted and grey text and links, on the page, in widgets and in the sidebar; white on the accent."""
    theme = CONFIG["theme"][name]
    grounds = [part[ground] for part in (theme, theme["sidebar"]) for ground in
               ("backgroundColor", "secondaryBackgroundColor")]  # fmt: skip
    for ground in map(channels, grounds):
        text = channels(theme["textColor"])
        muted = [MUTED * front + (1 - MUTED) * back for front, back in zip(text, ground, strict=True)]
        for colour in (text, muted, channels(theme["linkColor"]), channels(theme["grayTextColor"])):
            assert contrast(colour, ground) >= AA, (colour, ground)
    accent = channels(theme["primaryColor"])
    assert contrast(accent, [255, 255, 255]) >= AA
    assert contrast(accent, channels(theme["backgroundColor"])) >= AA_GRAPHICS
    assert contrast(channels(theme["grayTextColor"]), channels(theme["grayBackgroundColor"])) >= AA


def test_fonts_and_theme_come_from_this_machine():
    """No font is loaded from an address, nor is the theme."""

    def values(table):
        for value in table.values():
            yield from values(value) if isinstance(value, dict) else [value]

    assert not [value for value in values(CONFIG["theme"]) if isinstance(value, str) and "//" in value]
    assert "fontFaces" not in CONFIG["theme"]
    assert CONFIG["theme"]["baseFontSize"] == 16


def test_the_server_asks_nobody_and_is_reached_by_nobody():
    """What the server would do by default is off: telemetry, links to search engines, listening everywhere."""
    assert CONFIG["browser"]["gatherUsageStats"] is False
    assert CONFIG["client"]["showErrorLinks"] is False
    assert CONFIG["server"]["address"] == "127.0.0.1"
    assert "port" not in CONFIG["server"]  # a port that is set is not stepped over when it is taken
    assert set(CONFIG["server"]["allowedHosts"]) == {"localhost", "127.0.0.1", "::1"}
