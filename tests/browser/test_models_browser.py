"""The Models page in a real browser: a pull that outlives its page, and a key that is seen nowhere."""

from __future__ import annotations

import pytest
from servers import ollama as ollamas
from servers import openai_compatible as openais
from waiting import wait_until

NEW = "gemma3:1b"
KEY = "sk-canary-0123456789"


@pytest.fixture
def ollama():
    """The stand-in for Ollama; its pulls come to no end."""
    with ollamas.serve() as server:
        server.pull_pause_seconds = 600.0
        yield server


@pytest.fixture
def locked():
    """A server that demands a key."""
    with openais.serve("vllm") as server:
        server.key = KEY
        yield server


def test_a_pull_goes_on_without_its_page_and_a_key_leaves_no_trace(app_server, page, ollama, locked):
    """It is stopped in another tab, of which the first one hears by itself."""
    environment = {"OLLAMA_HOST": ollama.url, "OPENAI_COMPATIBLE_URL": locked.url}
    server = app_server(environment=environment | {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"})
    page.goto(f"{server.url}/models")
    field = page.get_by_role("textbox", name="Pull a model")
    field.fill(NEW)
    field.press("Enter")
    page.get_by_text("of 815 MB").wait_for()
    page.get_by_role("link", name="Documents").click()
    page.get_by_role("heading", name="Documents").wait_for()
    page.get_by_role("link", name="Models").click()
    page.get_by_text("of 815 MB").wait_for()
    other = page.context.new_page()
    other.goto(f"{server.url}/models")
    other.get_by_text("of 815 MB").wait_for()
    other.get_by_role("button", name="Stop").click()
    page.get_by_text("is kept: the next time it goes on").wait_for()
    assert NEW not in ollama.models

    page.get_by_text("server · refuses the key").click()
    field = page.get_by_role("textbox", name="Key for")
    field.fill(KEY)
    field.press("Enter")
    page.get_by_text("The key is kept until DocMind ends").wait_for()
    wait_until(lambda: not page.get_by_role("textbox", name="Key for").count())
    assert KEY not in page.content()
    other.reload()
    other.get_by_text("A key is kept for").wait_for()
    assert KEY not in other.content()
    assert KEY not in server.output()
    home = [path for path in server.log.parent.rglob("*") if path.is_file()]
    assert not [path for path in home if KEY.encode() in path.read_bytes()]
    assert any(headers.get("authorization") == f"Bearer {KEY}" for headers in locked.headers)
