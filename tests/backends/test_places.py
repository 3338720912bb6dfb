"""Whose machine reads the text."""

from __future__ import annotations

import pytest

from docmind.backends.places import where_text_goes


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (None, "this device"),
        ("http://127.0.0.1:11434", "this device"),
        ("http://localhost:1234/v1", "this device"),
        ("http://[::1]:8080", "this device"),
        ("http://192.168.1.20:11434", "your network"),
        ("http://10.0.0.4", "your network"),
        ("http://workstation:11434", "your network"),
        ("http://nas.local:11434", "your network"),
        ("https://api.example.com/v1", "the internet"),
        ("http://8.8.8.8:11434", "the internet"),
        ("http://127.0.0.1.example.com", "the internet"),
        ("http://localhost@example.com", "the internet"),
        ("8.8.8.8:11434", "the internet"),
        ("localhost:11434", "this device"),
        ("http://", "the internet"),
        ("http://[::1", "the internet"),
        ("http://localhost.:11434", "this device"),
        ("http://model.localhost:8080", "this device"),
        ("http://[::ffff:127.0.0.1]:8080", "this device"),
        ("http://[::ffff:8.8.8.8]:8080", "the internet"),
        ("http://127.0.0.1.:8080", "this device"),
    ],
)
def test_where_text_goes_follows_from_the_address(url, place):
    """Shown before anything is sent."""
    assert where_text_goes(url)[0] == place
