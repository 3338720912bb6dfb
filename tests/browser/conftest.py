"""The app as a person starts it, a Chromium to look at it with, and a proxy that sees whom a page calls."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parents[2]
PAGES = ("chat", "documents", "models", "performance")


@dataclass
class Served:
    """A server in a process of its own.

    Attributes:
        url: Without a slash at the end; "" when it ended before it printed one.
        process: Its process.
        log: Everything it printed goes there.
    """

    url: str
    process: subprocess.Popen
    log: Path

    @property
    def port(self):
        """The port it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    def output(self):
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def request(self, path="/", method="GET", *, host=None, headers=(), address="127.0.0.1"):
        """One request with exactly these headers, and Host (None: the server's own; "": none), answered in full."""
        connection = http.client.HTTPConnection(address, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if host != "":
                connection.putheader("Host", host or f"127.0.0.1:{self.port}")
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            # The body of an accepted websocket has no end.
            answer.text = "" if answer.status == 101 else answer.read().decode("utf-8", "replace")
            return answer
        finally:
            connection.close()

    def websocket(self, *, host=None, headers=()):
        """The answer to a websocket's first request: 101 when it is accepted."""
        wanted = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", "streamlit"),
        ]
        return self.request("/_stcore/stream", host=host, headers=[*wanted, *headers])


@pytest.fixture(scope="session")
def serve():
    """A context manager that runs a server as long as it is open. `app_server` is the same for one test.

    serve(*arguments, home, folder=REPOSITORY, command=None, port=0, environment=None, is_awaited=True):
    `streamlit run app.py` of that folder with these arguments (or another command), on a free port (None: whichever it
    finds), its data in `home`. The server answers when the context is entered, or has ended.
    """

    @contextlib.contextmanager
    def start(*arguments, home, folder=REPOSITORY, command=None, port=0, environment=None, is_awaited=True):
        home = Path(home)
        home.mkdir(parents=True, exist_ok=True)
        log = home.parent / f"{home.name}-server-{time.monotonic_ns()}.log"
        if command is None:
            command = [sys.executable, "-P", "-m", "streamlit", "run", str(folder / "app.py")]
            command += ["--server.headless", "true"]
        if port is not None:
            command = [*command, "--server.port", str(port)]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMLIT_", "DOCMIND_"))}
        own |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "DOCMIND_HOME": str(home)}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=home,  # not the checkout: it must work from anywhere
                env=own | (environment or {}),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        served = Served("", process, log)
        try:
            if is_awaited:
                _wait_for(served)
            yield served
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            # What it started itself, if it left anything: nothing of a test outlives it.
            with contextlib.suppress(ProcessLookupError, AttributeError):
                os.killpg(process.pid, signal.SIGKILL)

    return start


def _wait_for(served):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while served.process.poll() is None:
        printed = re.search(r"URL: (http://[^\s/]+:\d+)", served.output())
        if printed:
            served.url = printed[1]
            # A share or a test may forbid the answer; that there is one is enough.
            with contextlib.suppress(OSError):
                served.request("/_stcore/health", host=f"127.0.0.1:{served.port}")
                return
        assert time.monotonic() < deadline, f"no answer: {served.output()}"
        time.sleep(0.05)


@pytest.fixture
def app_server(serve, tmp_path):
    """Starts the app: `app_server(*arguments, …)` gives a `Served`, stopped when the test ends. See `serve`.

    Its data folder is this test's DOCMIND_HOME (tmp_path / "home"), unless another is given.
    """
    with contextlib.ExitStack() as stack:

        def start(*arguments, home=None, **options):
            return stack.enter_context(serve(*arguments, home=home or tmp_path / "home", **options))

        yield start


@pytest.fixture
def checkout(tmp_path):
    """Makes a folder with the real app.py and its configuration, and pages of the test's own: `checkout(chat=code)`."""

    def make(**code):
        folder = tmp_path / "checkout"
        (folder / "pages").mkdir(parents=True)
        shutil.copy(REPOSITORY / "app.py", folder)
        shutil.copytree(REPOSITORY / ".streamlit", folder / ".streamlit")
        for name in PAGES:
            default = f"import streamlit as st\nst.write('the page {name}')\n"
            (folder / "pages" / f"{name}.py").write_text(code.get(name, default), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="module")
def browser():
    """A Chromium; names under .docmind.test lead to this machine. Skips, saying so, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for found in map(shutil.which, names) if found), None)
    with api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium here: no browser tests")
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP *.docmind.test 127.0.0.1"]
        launched = playwright.chromium.launch(executable_path=path, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    """A page of a fresh profile, 1280 × 800; waits up to `PATIENCE_SECONDS` for what it is told to wait for.

    `page.asked` are the addresses it has asked for.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield _open_page(context)
    context.close()


def _open_page(context):
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    return page


@pytest.fixture
def asked_of_others():
    """What a page asked of anybody but a server: `asked_of_others(page, url)`."""

    def find(page, url):
        own = (url, url.replace("http:", "ws:"), "data:", "blob:")
        return [asked for asked in page.asked if not asked.startswith(own)]

    return find


# What Chromium itself calls, whatever the page is; it has no switch that turns all of it off.
CHROMIUM_CALLS = re.compile(
    r"[A-Z]+ (https?://)?(content-autofill|update|optimizationguide-pa|edgedl\.me)\.(googleapis|gvt1)\.com[:/]"
    r"|[A-Z]+ (https?://)?(clients\d|accounts|safebrowsing)\.google\.com[:/]"
)


class Sink:
    """A proxy that answers nobody and remembers the hosts that were asked for, but for Chromium's own calls."""

    def __init__(self):
        self.hosts = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(10)
                with contextlib.suppress(OSError):
                    line = connection.recv(4096).split(b"\r\n")[0].decode("latin-1")
                    if not CHROMIUM_CALLS.match(line):
                        self.hosts.add(line)
                    connection.sendall(b"HTTP/1.1 502 Sink\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self):
        """Stop listening."""
        # A thread that waits in accept() is not woken by close() alone.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def sink(browser):
    """Makes pages that reach the app directly and everybody else through a proxy that only listens.

    `sink()` gives `(page, sink)`; `sink.hosts` are the first lines of what was asked of the proxy: empty is good.
    """
    with contextlib.ExitStack() as stack:

        def make(**options):
            proxy = Sink()
            stack.callback(proxy.close)
            context = browser.new_context(proxy={"server": proxy.address, "bypass": "127.0.0.1,localhost"}, **options)
            stack.callback(context.close)
            return _open_page(context), proxy

        yield make
