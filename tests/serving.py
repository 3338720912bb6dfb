"""A small script under a real Streamlit, and a real browser to look at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WAIT_SECONDS = 60


@contextlib.contextmanager
def served(script, folder, environment=(), options=()):
    """Serves a script (its text) from a folder until the block ends; gives its address."""
    path = Path(folder) / "small_app.py"
    path.write_text(script, encoding="utf-8")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(path), "--server.port", str(port)]
    command += ["--server.headless", "true", "--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"]
    command += ["--server.fileWatcherType", "none", *options]
    with (Path(folder) / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **dict(environment)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + WAIT_SECONDS
        while not _is_up(address):
            log_text = (Path(folder) / "server.log").read_text(encoding="utf-8", errors="replace")
            assert server.poll() is None, log_text
            assert time.monotonic() < deadline, log_text
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def _is_up(address):
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def browsing(address, **context_options):
    """A browser page at the address; every address it asked for is in `page.asked`. Skips where there is no browser."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for found in map(shutil.which, names) if found), None)
    with api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium here: no browser tests")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_context(viewport={"width": 1366, "height": 768}, **context_options).new_page()
            page.set_default_timeout(WAIT_SECONDS * 1000)
            page.asked = []
            page.on("request", lambda request: page.asked.append(request.url))
            page.goto(address)
            yield page
        finally:
            browser.close()


def other_hosts(page, address):
    """Addresses a page asked for that are not its own server's."""
    own = (address, address.replace("http:", "ws:"), "data:", "blob:")
    return [asked for asked in page.asked if not asked.startswith(own)]
