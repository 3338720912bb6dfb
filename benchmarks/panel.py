"""Idle cost of the live panel: what a page costs that only shows what the machine is doing, once a second.

    python benchmarks/panel.py [--seconds 60] [--chromium /usr/bin/chromium]

Three pages are served in turn, each in a new server, and looked at with Chromium: one with nothing live, one with the
strip of the sidebar, one with strip and whole panel, its five minutes of history full. After ten seconds of rest the
processor time of the server and of the browser is measured for so many seconds, as a share of one core, and the bytes
that came over the websocket. `reading_ms` is one call of `docmind.hardware.read`, by itself. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import machine
import psutil
from playwright.sync_api import sync_playwright

from docmind import hardware

REPOSITORY = Path(__file__).parents[1]
SETTLE_SECONDS = 10
READINGS = 200
FULL_HISTORY = """
import dataclasses
from pages.parts import panel
from pages.parts.frame import config
history = panel._history(str(config().home))
if not history.readings():
    now = history.sample()
    history._readings.clear()
    for second in range(299, -1, -1):
        earlier = now.at_seconds - second
        history._readings.append(dataclasses.replace(now, at_seconds=earlier, cpu_percent=second % 97))
"""
PAGES = {
    "nothing": "st.write('nothing')",
    "strip": FULL_HISTORY + "with st.sidebar:\n    panel.draw_strip()",
    "strip_and_panel": FULL_HISTORY + "with st.sidebar:\n    panel.draw_strip()\npanel.draw_panel()",
}


def reading_ms() -> float:
    """The median of one reading after another, in milliseconds."""
    before = hardware.read(Path.home())
    times = []
    for _ in range(READINGS):
        started = time.perf_counter()
        before = hardware.read(Path.home(), before=before)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


@contextlib.contextmanager
def served(script: str):
    """A server for one page; gives its process and address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.py"
        path.write_text(f"import streamlit as st\nst.set_page_config(layout='wide')\n{script}\n", encoding="utf-8")
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        command = [sys.executable, "-m", "streamlit", "run", str(path), "--server.port", str(port)]
        command += ["--server.headless", "true", "--server.address", "127.0.0.1", "--server.fileWatcherType", "none"]
        command += ["--browser.gatherUsageStats", "false", "--runner.postScriptGC", "false"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DOCMIND_HOME": str(Path(folder) / "home")}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            address = f"http://127.0.0.1:{port}"
            try:
                while True:
                    with contextlib.suppress(urllib.error.URLError):
                        urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).close()
                        break
                    time.sleep(0.2)
                yield psutil.Process(server.pid), address
            finally:
                server.terminate()


def cpu_seconds(processes) -> float:
    """Processor time of these processes so far."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def browsers() -> list[psutil.Process]:
    """The processes of the Chromium that was started here."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "chrom" in process.name():
                found.append(process)
    return found


def measure(script: str, seconds: float, chromium: str) -> dict[str, float]:
    """The idle cost of one page."""
    with served(script) as (server, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        received = [0]

        def count(payload) -> None:
            received[0] += len(payload)

        page.on("websocket", lambda websocket: websocket.on("framereceived", count))
        page.goto(address)
        page.wait_for_timeout(1000 * SETTLE_SECONDS)
        before = cpu_seconds([server]), cpu_seconds(browsers()), received[0]
        started = time.perf_counter()
        page.wait_for_timeout(1000 * seconds)
        elapsed = time.perf_counter() - started
        after = cpu_seconds([server]), cpu_seconds(browsers()), received[0]
        browser.close()
    return {
        "server_percent_of_a_core": round(100 * (after[0] - before[0]) / elapsed, 2),
        "browser_percent_of_a_core": round(100 * (after[1] - before[1]) / elapsed, 2),
        "websocket_bytes_per_second": round((after[2] - before[2]) / elapsed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="measured for each page")
    parser.add_argument("--chromium", default=os.environ.get("DOCMIND_CHROMIUM", "/usr/bin/chromium"))
    given = parser.parse_args()
    pages = {name: measure(script, given.seconds, given.chromium) for name, script in PAGES.items()}
    machine.write("panel", {"reading_ms": round(reading_ms(), 2), "seconds": given.seconds, **pages})


if __name__ == "__main__":
    main()
