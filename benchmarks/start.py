"""Cold start: from the command to the first paint and to a question box that can be typed into, in Chromium.

    python benchmarks/start.py [--rounds N] [--out]

Beside an empty Streamlit app with a question box, started in turns in the same run, each in a new process with a new
browser profile. The time runs from the start of the process; the page is opened as soon as the port answers, as a
person's browser is. --out keeps the result in results/start.json.
"""

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import machine
from playwright.sync_api import Browser, sync_playwright

REPOSITORY = Path(__file__).parents[1]
EMPTY = "import streamlit as st\n\nst.chat_input('Ask')\n"
SERVER = (
    "--server.address 127.0.0.1 --server.headless true --server.fileWatcherType none --browser.gatherUsageStats false"
)
PATIENCE_SECONDS = 120
# Notes when the question box is there and can be used, to the frame.
WATCH = """
const look = () => {
  const box = document.querySelector('[data-testid=stChatInputTextArea]');
  if (box && !box.disabled) window.questionBox = performance.now(); else requestAnimationFrame(look);
};
look();
"""


def start(browser: Browser, script: Path, folder: Path) -> dict[str, float]:
    """Seconds from the start of the process of one new server, seen by one new visitor."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "streamlit", "run", str(script), "--server.port", str(port), *SERVER.split()]
    started = time.time()  # the page's clock, too
    server = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"DOCMIND_HOME": str(folder / "home")}, stdout=subprocess.DEVNULL
    )
    context = browser.new_context()
    try:
        while not answers(port):
            if server.poll() is not None or time.time() - started > PATIENCE_SECONDS:
                raise SystemExit(f"{script} does not start: its status is {server.poll()}")
            time.sleep(0.01)
        answered = time.time()
        context.add_init_script(WATCH)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/", timeout=PATIENCE_SECONDS * 1000)
        page.locator("[data-testid=stChatInputTextArea]:enabled").wait_for(timeout=PATIENCE_SECONDS * 1000)
        page.wait_for_timeout(100)  # the next frame, in which WATCH sees it, has passed
        origin, paint, box = (
            milliseconds / 1000
            for milliseconds in page.evaluate(
                "[performance.timeOrigin, performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                " window.questionBox]"
            )
        )
    finally:
        context.close()
        server.terminate()
        server.wait()
    return {
        "server_answers_seconds": answered - started,
        "first_paint_seconds": origin + paint - started,
        "question_box_seconds": origin + box - started,
        "first_paint_in_the_browser_seconds": paint,
        "question_box_in_the_browser_seconds": box,
    }


def answers(port: int) -> bool:
    """Whether a server is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/_stcore/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", action="store_true", help="keep the result in results/start.json")
    arguments = parser.parse_args()
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for number in range(arguments.rounds + 1):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            empty = folder / "empty.py"
            empty.write_text(EMPTY, encoding="utf-8")
            pair = start(browser, empty, folder), start(browser, REPOSITORY / "app.py", folder)
            if number:  # the first writes the byte code
                rows.append(pair)
        chromium = browser.version
        browser.close()
    result = {
        "empty_app": medians([empty for empty, _ in rows]),
        "docmind": medians([ours for _, ours in rows]),
        "ratio": {
            name: round(statistics.median(ours[name] / empty[name] for empty, ours in rows), 2)
            for name in ("server_answers_seconds", "first_paint_seconds", "question_box_seconds")
        },
        "rounds": arguments.rounds,
        "streamlit": metadata.version("streamlit"),
        "chromium": chromium,
    }
    if arguments.out:
        machine.write("start", result)
    else:
        print(json.dumps(result, indent=2))


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each time."""
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


if __name__ == "__main__":
    main()
