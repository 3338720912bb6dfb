"""The recipe works: the parrot of docs/add-a-backend.md passes the conformance suite, its HTTP model meets a server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from docmind.backends import Option
from docmind.errors import BackendError

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "docs" / "add-a-backend.md"

# Loaded by pytest before it collects: puts the page's files where their first lines say they belong.
PLUGIN = """
import contextlib, sys
import docmind.backends
docmind.backends.__path__.append({folder!r})
docmind.backends.REGISTRY.clear()
docmind.backends.REGISTRY["parrot"] = "docmind.backends.parrot"
import peers
exec(compile(open({entry!r}).read(), "peers.py", "exec"), vars(peers))
"""


def code_on_the_page():
    """The page's Python, by the path in its first line."""
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", RECIPE.read_text(encoding="utf-8"), re.M | re.S))


def test_the_backend_in_the_recipe_passes_the_conformance_suite(tmp_path):
    """Its text is taken from the page as it stands; only the test of a fresh process cannot know it."""
    blocks = code_on_the_page()
    del blocks["http_llm.py"]
    assert list(blocks) == [
        "docmind/backends/parrot.py", "docmind/backends/parrot_llm.py", "tests/backends/peers.py"
    ]  # fmt: skip
    for path, text in blocks.items():
        (tmp_path / Path(path).name.replace("peers", "entry")).write_text(text, encoding="utf-8")
    plugin = PLUGIN.format(folder=str(tmp_path), entry=str(tmp_path / "entry.py"))
    (tmp_path / "parrot_plugin.py").write_text(plugin, encoding="utf-8")
    path = [tmp_path, REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "backends"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "parrot_plugin", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "tests/backends/test_conformance.py", "-k", "not importing"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 15, run.stdout


# The model behind HTTP

CALL_OPTIONS = (
    Option("max_tokens", int, 512, "tokens", "The longest answer.", 1, 1 << 20, per_call=True),
    Option("stop", list, None, "texts", "Ends.", per_call=True),
    Option("first_token_seconds", float, 60.0, "seconds", "First.", 0, 86_400, per_call=True),
    Option("idle_seconds", float, 60.0, "seconds", "Next.", 0, 86_400, per_call=True),
    Option("total_seconds", float, None, "seconds", "All.", 0, 86_400, per_call=True),
)
DONE = {"done": True, "prompt_tokens": 5, "answer_tokens": 2}


class Handler(BaseHTTPRequestHandler):
    """Does what the server's `plan` says: a status, lines, and whether empty ones follow for ever."""

    def do_GET(self):
        """The listing."""
        self.send_response(self.server.plan["status"])
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self):
        """A chat."""
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        plan = self.server.plan
        self.send_response(plan["status"])
        self.send_header("Location", "http://elsewhere.example")
        self.end_headers()
        for line in plan["lines"]:
            self.wfile.write(json.dumps(line).encode() + b"\n")
        with contextlib.suppress(OSError):  # the client hangs up
            while plan["is_endless"] and not self.server.is_over.wait(0.01):
                self.wfile.write(b"{}\n")

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server():
    """A server that does as it is told."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.is_over = [], threading.Event()
        running.plan = {"status": 200, "lines": [{"text": "Two"}, {"text": " words"}, DONE], "is_endless": False}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.is_over.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def build(config):
    """Makes a model from the page's text."""
    names = {"__name__": "http_llm", "CALL_OPTIONS": CALL_OPTIONS}
    exec(code_on_the_page()["http_llm.py"], names)
    defaults = {option.name: option.default for option in CALL_OPTIONS}

    def build(url):
        return names["HttpLLM"](name="grey", context_window=1024, defaults=defaults, url=url, config=config)

    return build


@pytest.fixture
def llm(server, build):
    """A model of that server."""
    return build(f"http://127.0.0.1:{server.server_port}")


def reason(call):
    """Why a call fails; the error has a remedy."""
    with pytest.raises(BackendError) as caught:
        call()
    assert caught.value.hint
    return caught.value.reason


def test_the_http_model_of_the_recipe_answers(server, llm):
    """With the figures that the suite demands."""
    llm.warm_up()
    answer = llm.complete("Say two words.", max_tokens=7, stop=["x"])
    assert answer.text == "Two words"
    raw = answer.raw
    assert (raw["finish_reason"], raw["prompt_tokens"], raw["answer_tokens"]) == ("stop", 5, 2)
    assert raw["first_token_seconds"] >= 0
    assert server.asked == [
        {"messages": [{"role": "user", "content": "Say two words."}], "max_tokens": 7, "stop": ["x"]}
    ]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"lines": [{"text": "Two"}]}, "no_end_marker"),
        ({"lines": [{"text": "Two"}], "is_endless": True}, "stalled"),
        ({"lines": [], "status": 307}, "bad_response"),
        ({"lines": ["no object"]}, "bad_response"),
        ({"lines": [{"error": "full"}], "status": 503}, "backend_failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_goes_wrong_behind_the_http_model_has_a_reason(server, llm, plan, expected):
    """Empty objects keep a connection open and are no words."""
    server.plan.update(plan)
    assert reason(lambda: llm.complete("Hi", idle_seconds=0.3)) == expected
    if expected == "backend_failed":
        assert reason(llm.warm_up) == expected


def test_the_http_model_refuses_what_it_cannot_do(server, llm, build):
    """A text prompt, a prompt over the window, an address that is none; nothing is sent."""
    assert reason(lambda: llm.complete("Once", formatted=True)) == "unsupported"
    assert reason(lambda: llm.complete("one two three " * 2000)) == "context_too_long"
    assert reason(lambda: build("127.0.0.1:8080").complete("Hi")) == "invalid_option"
    assert server.asked == []


def test_an_absent_server_is_unreachable_for_the_http_model(build):
    """In a call and while warming up."""
    gone = build("http://127.0.0.1:9")
    assert reason(lambda: gone.complete("Hi")) == "unreachable"
    assert reason(gone.warm_up) == "unreachable"
