"""What a person sees of a long answer: 2,000 words made at 200 a second, drawn by the real app in Chromium.

    python benchmarks/stream.py

A word stands for a token. `shown_of_made` is the mean over time, after the first second, of words on the screen ÷ words
made by then; `toward_the_end` the same over the last fifth of the answer ÷ over the second fifth: 1 is no slowdown.
`websocket_bytes_of_text` is what the browser received ÷ the bytes of the answer; the browser's CPU is in cores.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import machine
import psutil
import scripted
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
# Counts what is drawn at every frame: the highest number among the last words of the page.
WATCH = """() => { window.seen = []; let last = 0;
  const look = () => {
    const blocks = document.querySelectorAll('[data-testid="stChatMessage"] [data-testid="stMarkdownContainer"]');
    const text = blocks.length ? blocks[blocks.length - 1].textContent : '';
    const found = text.slice(-60).match(/w(\\d+)/g);
    const n = found ? +found[found.length - 1].slice(1) : last;
    if (n !== last) { last = n; window.seen.push([Date.now() / 1000, n]); }
    requestAnimationFrame(look);
  }; look(); }"""


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home" / "models").mkdir(parents=True)
        (folder / "home" / "models" / "starter.toml").write_text(
            'backend = "scripted"\nmodel = "words"\nmax_output_tokens = 100000\n'
        )
        (folder / "tides.txt").write_text("The tide in Ellmere rises 4.2 metres. The harbour is deep.")
        (folder / "sitecustomize.py").write_text(
            "import docmind.backends\ndocmind.backends.REGISTRY['scripted'] = 'scripted'\n"
        )
        environment = {
            **os.environ, "DOCMIND_HOME": str(folder / "home"), "SCRIPTED_STARTED": str(folder / "started"),
            "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "benchmarks"))),
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "docmind", "add", str(folder / "tides.txt")], env=environment, check=True
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.headless", "true",
             "--server.port", str(port)], env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            result = measure(f"http://127.0.0.1:{port}/", chromium, folder / "started")
        finally:
            server.terminate()
            server.wait()
    machine.write("stream", result)


def measure(url: str, chromium: str | None, started_file: Path) -> dict[str, object]:
    """One answer, watched from the browser."""
    received: list[int] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("websocket", lambda ws: ws.on("framereceived", lambda data: received.append(len(data))))
        page.goto(url)
        box = page.get_by_test_id("stChatInputTextArea")
        box.wait_for(timeout=120_000)
        time.sleep(20)  # the preloading is over
        page.evaluate(WATCH)
        received.clear()
        processes = [p for p in psutil.process_iter(["name"]) if "chrom" in (p.info["name"] or "")]
        before, started = _cpu_seconds(processes), time.monotonic()
        box.fill("How high does the tide in Ellmere rise?")
        box.press("Enter")
        deadline = time.monotonic() + 300
        while page.evaluate("window.seen.length ? window.seen[window.seen.length - 1][1] : 0") < scripted.WORDS:
            if time.monotonic() > deadline:
                raise SystemExit("the answer did not come to its end")
            page.wait_for_timeout(250)
        seconds = time.monotonic() - started
        cores = (_cpu_seconds(processes) - before) / seconds
        seen = page.evaluate("window.seen")
        browser.close()
    first = float(started_file.read_text())
    shares = _shares(seen, first)
    fifth = len(shares) // 5
    text_bytes = sum(len(f"w{n} ") for n in range(1, scripted.WORDS + 1))
    return {
        "words": scripted.WORDS,
        "words_per_second": scripted.WORDS_PER_SECOND,
        "shown_of_made": round(statistics.fmean(shares), 4),
        "toward_the_end": round(statistics.fmean(shares[-fifth:]) / statistics.fmean(shares[fifth : 2 * fifth]), 4),
        "seconds_behind_at_the_end": round(seen[-1][0] - first - scripted.WORDS / scripted.WORDS_PER_SECOND, 2),
        "updates_drawn": len(seen),
        "websocket_bytes": sum(received),
        "websocket_bytes_of_text": round(sum(received) / text_bytes, 1),
        "browser_cores": round(cores, 2),
    }


def _shares(seen: list[list[float]], first: float) -> list[float]:
    """Shown ÷ made, every 50 ms from the first second to the last word made."""
    shares, place = [], 0
    end = first + scripted.WORDS / scripted.WORDS_PER_SECOND
    moment = first + 1
    while moment < end:
        while place + 1 < len(seen) and seen[place + 1][0] <= moment:
            place += 1
        shown = seen[place][1] if seen[place][0] <= moment else 0
        shares.append(shown / ((moment - first) * scripted.WORDS_PER_SECOND))
        moment += 0.05
    return shares


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
