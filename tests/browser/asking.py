"""How a person asks in the browser."""

from __future__ import annotations

from waiting import wait_until


def ask(page, question):
    """Types a question into the box, as soon as it takes one, and sends it."""
    box = page.get_by_test_id("stChatInputTextArea")
    box.wait_for()
    wait_until(box.is_enabled)
    box.fill(question)
    box.press("Enter")
