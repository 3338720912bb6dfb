"""Take the screenshots of docs/screenshots: every state of every page, light, dark and narrow, from the real app.

    python docs/screenshots.py [FOLDER]

Uses a data folder of its own with the sample document, and Chromium. Look at them after every change of a page. The
pictures of the agent and of a model that gives up are made with the tests' stand-in for Ollama, whose words are written
here.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from servers.hub import serve as serve_hub  # noqa: E402 - the line above finds them
from servers.ollama import Reply  # noqa: E402
from servers.ollama import serve as serve_ollama  # noqa: E402

WAIT_MILLISECONDS = 180_000
QUESTION = "How much larger than the average is a spring range?"
UNPROVEN = "How far apart are spring tides?"  # the small model gets it wrong, and is found out
AGENT_QUESTION = "When does a flat beach disappear fastest, and what should I do then?"
AGENT_ANSWER = (
    "Thought: The evidence says both.\nAnswer: Half of the whole range comes in the third and fourth hour. That is "
    "when a flat beach disappears fastest. Turn back when the sea starts to rise, not when it reaches you."
)
AGENT = (
    Reply(("Thought: I need the rules for walkers.\n",
           'Action: search_documents\nAction Input: {"query": "rules for a walk across flats"}')),
    Reply(tuple(f"{word} " for word in AGENT_ANSWER.split(" ")), pause_seconds=0.03),
)  # fmt: skip
BREAKS_OFF = Reply(("Thought: I see it.\nAnswer: ", "A spring range is "), end="reset")
REPOSITORY = "maker/Model-GGUF"
SIZES = {"light": (1280, 800), "dark": (1280, 800), "narrow": (480, 900)}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name,
        serve_ollama() as ollama,
        serve_hub() as hub,
        sync_playwright() as playwright,
    ):
        for quantization, size in (("Q2_K", 66_000_000), ("Q4_K_M", 98_000_000), ("Q8_0", 138_000_000)):
            hub.add(REPOSITORY, f"Model-{quantization}.gguf", model_file(size))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        home = Path(name) / "home"
        server, url = serve(home, ollama.url, hub.url)
        try:
            page = open_page(browser, url, "light")
            shoot(page, folder / "empty-light.png")
            page.get_by_role("button", name="Try with a sample").click()
            page.get_by_role("button", name=re.compile("What does")).first.wait_for()
            shoot(page, folder / "start-light.png")
            ask(page, QUESTION)
            page.get_by_text(re.compile("Searching|Searched|Loading")).first.wait_for()
            shoot(page, folder / "answering-light.png", settle=0)
            wait_for_answers(page, 1)
            page.locator('a[href^="#cite-"]').first.click()
            page.get_by_test_id("stImage").first.wait_for()
            shoot(page, folder / "answer-light.png")
            chat = page.url
            page.keyboard.press("Escape")
            ask(page, UNPROVEN)
            wait_for_answers(page, 2)
            shoot(page, folder / "unproven-light.png")
            ask(page, "Who is the king of France?")
            wait_for_answers(page, 3)
            shoot(page, folder / "not-in-documents-light.png")
            ollama.enqueue(*AGENT, BREAKS_OFF)
            page.get_by_role("button", name="New chat").click()
            page.get_by_test_id("stSidebar").get_by_role("combobox").first.click()
            page.get_by_role("option", name="Ollama").click()
            ask(page, AGENT_QUESTION)
            wait_for_answers(page, 1)
            shoot(page, folder / "agent-light.png")
            ask(page, QUESTION)
            wait_for_answers(page, 2)
            shoot(page, folder / "fallback-light.png")
            for theme in ("dark", "narrow"):
                other = open_page(browser, chat, theme)
                wait_for_answers(other, 3)
                other.locator('a[href^="#cite-"]').first.click()
                other.get_by_test_id("stImage").first.wait_for()
                shoot(other, folder / f"answer-{theme}.png")
                other.context.close()
            other = open_page(browser, f"{url}/models", "light")
            shoot_models(other, ollama, folder)
            other.context.close()
            for place in ("Documents", "Models", "Performance"):
                for theme in SIZES:
                    other = open_page(browser, f"{url}/{place.lower()}", theme)
                    other.get_by_test_id("stHeading").first.wait_for()
                    shoot(other, folder / f"{place.lower()}-{theme}.png", settle=4)
                    other.context.close()
        finally:
            server.terminate()
            server.wait()
            browser.close()


def shoot_models(page: Page, ollama: Any, folder: Path) -> None:
    """A model of the hub looked up and judged, and one that is being pulled."""
    source = page.get_by_role("textbox", name="Repository, or")
    source.scroll_into_view_if_needed()
    shoot(page, folder / "get-a-model-light.png")
    source.fill(REPOSITORY)
    source.press("Enter")
    page.get_by_role("button", name="Download 98 MB").wait_for()
    page.get_by_text("Or put a GGUF file").scroll_into_view_if_needed()
    shoot(page, folder / "download-fits-light.png")
    ollama.pull_pause_seconds = 4.0
    name = page.get_by_role("textbox", name="Pull a model")
    name.fill("gemma3:1b")
    name.press("Enter")
    page.get_by_text("163 MB of 815 MB").wait_for()
    page.get_by_role("button", name="Stop").scroll_into_view_if_needed()
    shoot(page, folder / "pull-running-light.png", settle=0.5)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Download 98 MB").wait_for(state="detached")


def model_file(size: int) -> bytes:
    """The header of a model of 135 million parameters, and nothing behind it."""
    values: dict[str, int | bytes] = {
        "general.architecture": b"llama", "llama.block_count": 30, "llama.embedding_length": 576,
        "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3, "llama.context_length": 8192,
    }  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for key, value in values.items():
        head += struct.pack("<Q", len(key)) + key.encode()
        head += struct.pack("<IQ", 8, len(value)) + value if isinstance(value, bytes) else struct.pack("<II", 4, value)
    return head + bytes(size - len(head))


def serve(home: Path, ollama_url: str, hub_url: str) -> tuple[subprocess.Popen[str], str]:
    """The app on a free port, and its address."""
    environment = os.environ | {"DOCMIND_HOME": str(home), "OLLAMA_HOST": ollama_url, "HF_ENDPOINT": hub_url,
                                "DOCMIND_MODEL_CACHES": "0", "LMSTUDIO_HOST": "127.0.0.1:9",
                                "PYTHONUNBUFFERED": "1"}  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.headless", "true",
         "--server.port", "0"], env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout
    for line in server.stdout:
        if found := re.search(r"http://[^\s]+:\d+", line):
            return server, found[0]
    raise SystemExit("the app did not start")


def open_page(browser: Browser, url: str, theme: str) -> Page:
    width, height = SIZES[theme]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if theme == "dark" else "light"
    )
    context.set_default_timeout(WAIT_MILLISECONDS)
    page = context.new_page()
    page.goto(url)
    page.get_by_test_id("stMain").get_by_test_id("stVerticalBlock").first.wait_for()
    return page


def ask(page: Page, question: str) -> None:
    box = page.get_by_test_id("stChatInputTextArea")
    box.wait_for()
    while not box.is_enabled():
        time.sleep(0.1)
    box.fill(question)
    box.press("Enter")


def wait_for_answers(page: Page, count: int) -> None:
    page.locator('[class*="st-key-receipt-"]').nth(count - 1).wait_for()


def shoot(page: Page, path: Path, settle: float = 1.5) -> None:
    """A picture, when nothing moves any more."""
    time.sleep(settle)
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots")
