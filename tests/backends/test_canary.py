"""A canary key: given to two servers, used in many ways that succeed and fail, then searched for everywhere.

It may be in the requests to its server and in the memory of the program, and nowhere else, raw or as base64.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import shutil
import subprocess
import traceback

import psutil
import pytest
from faults import QUESTION, WORDS
from llama_index.core.llms import ChatMessage
from servers import ollama, openai_compatible

from docmind import breaker, chats, keys, metrics
from docmind.answer import ask
from docmind.backends import backend
from docmind.backends.llama_cpp import STARTER
from docmind.cli import main
from docmind.config import Config
from docmind.errors import DocMindError
from docmind.library import Library
from docmind.log import start_logging
from docmind.profiles import Profile, save_profile

pytestmark = pytest.mark.usefixtures("patient", "end_models")

CANARY = "sk-canary-7f3c9a51e0b24d68"
HELLO = [ChatMessage(role="user", content="Hello")]


def disguises():
    """The key as it is, and as base64 would show it, whatever stands before it."""
    raw = CANARY.encode()
    for before in range(3):
        text = base64.b64encode(b"x" * before + raw)
        yield text[4 if before else 0 : -4]  # what does not depend on its neighbours
    yield base64.b16encode(raw)
    yield raw


def hits(text):
    """How often the key is in a text or in bytes."""
    data = text if isinstance(text, bytes) else str(text).encode("utf-8", "backslashreplace")
    return sum(data.count(form) for form in disguises())


def test_the_search_finds_what_it_is_to_find():
    """Raw, in a header, and in base64 at any offset."""
    assert hits(f"Authorization: Bearer {CANARY}")
    for before in range(6):
        assert hits(base64.b64encode(b"user:password"[:before] + CANARY.encode() + b"more"))
    assert not hits("sk-another-key")


@pytest.fixture
def library(shelf, tmp_path):
    """The made-up documents, with their log at its most talkative, as are those of the HTTP client."""
    home = tmp_path / "home"
    shutil.copytree(shelf.config.home, home, ignore=shutil.ignore_patterns("*.lock"))
    keys._known.clear()
    keys._given.clear()
    breaker.forget()
    yield Library(Config(home=home))
    keys._known.clear()
    keys._given.clear()


WIRES = {
    "ollama": ("qwen3:4b", ollama, ""),
    "openai-compatible": ("qwen3-4b", openai_compatible, "/v1"),
}
# A server, or a proxy's page for developers, that repeats what it was sent.
ECHO = f"Invalid header: Authorization: Bearer {CANARY}"
FAILURES = (
    {},
    {"status": 400, "error": ECHO},
    {"status": 401, "error": ECHO},
    {"status": 500, "error": ECHO},
    {"status": 500, "body": f"<html><pre>{ECHO}</pre></html>".encode()},
    {"status": 200, "body": ECHO.encode()},
    {"status": 307},
    {"deltas": ["Some ", "words "], "end": "error", "error": ECHO},
    {"deltas": ["Some ", "words "], "end": "reset"},
    {"deltas": ["Some "], "end": "nothing"},
    {"deltas": [ECHO.encode() + b"\n"], "end": "nothing"},
)


def reply(module, failure):
    """The stand-in's reply for a failure."""
    more = dict(failure)
    if more.get("status") == 307:
        elsewhere = f"http://127.0.0.1:9/{CANARY}"
        more |= {"location": elsewhere} if module is ollama else {"headers": {"Location": elsewhere}}
    return module.Reply(**{"deltas": [WORDS], **more})


def everything_in(folder):
    """The bytes of every file, by its path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["kept", "environment"])
def test_a_key_is_found_nowhere_but_with_its_server(library, how, monkeypatch, capsys, caplog):
    """Not in the data folder, the log, what is printed, a traceback, a chat, or what a model says of itself."""
    config = library.config
    start_logging(config)
    logging.getLogger("docmind").setLevel(logging.DEBUG)
    logging.getLogger("docmind").propagate = True
    for name in ("", "httpx", "httpcore", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    seen, asked_with_key = [], 0
    with contextlib.ExitStack() as running:
        for name, (model, module, suffix) in WIRES.items():
            if (how, name) == ("environment", "ollama"):
                continue  # over plain http this one takes none from there
            server = running.enter_context(module.serve())
            server.key = CANARY
            url = server.url + suffix
            if how == "kept":
                assert keys.keep_key(url, CANARY) == "this start"
            else:
                monkeypatch.setenv("OPENAI_COMPATIBLE_URL", url)
                monkeypatch.setenv("OPENAI_COMPATIBLE_KEY", CANARY)
            profile = Profile(name, name, model, fallbacks=(), options={"url": url}, source="user", idle_seconds=30.0)
            save_profile(config, profile)
            for number, failure in enumerate(FAILURES if how == "kept" else FAILURES[:4]):
                server.enqueue(reply(module, failure))
                try:
                    seen += [repr(event) for event in ask(library, QUESTION, profile=name, chat=f"{name} {number}")]
                except DocMindError as error:
                    seen += [repr(error), error.hint, "".join(traceback.format_exception(error))]
                breaker.forget()
            for number, failure in enumerate(FAILURES[:2]):
                server.enqueue(reply(module, failure))
                main(["ask", QUESTION, "--profile", name, "--debug", "--home", str(config.home)])
                main(["ask", QUESTION, "--profile", name, "--json", "--home", str(config.home), "--chat", f"c{number}"])
            llm = backend(name).build(config, model, {"url": url})
            llm.chat(HELLO, max_tokens=2)
            seen += [repr(llm), str(llm.model_dump()), llm.model_dump_json(), llm.to_json(), repr(vars(llm))]
            seen += [repr(llm._client()) if hasattr(llm, "_client") else ""]
            seen += [repr(backend(name).detect(config, {"url": url}))]
            asked_with_key += sum(headers.get("authorization") == f"Bearer {CANARY}" for headers in server.headers)
        if how == "kept":  # once: it loads a model
            main(["doctor", "--json", "--home", str(config.home)])
            backend("llama.cpp").build(config, STARTER).start()
            lines = [process.cmdline() for process in psutil.Process().children(recursive=True)]
            assert any("docmind.backends.llama_cpp_child" in line for line in lines)
            assert [line for line in lines if hits(line)] == []
        main(["profiles", "--json", "--home", str(config.home)])
        main(["keys", "--json", "--home", str(config.home)])
    seen += [repr(message) for chat in chats.list_chats(library) for message in chats.messages(library, chat.chat_id)]
    seen.append(metrics.as_csv(metrics.answers(library, 1000)))
    printed = capsys.readouterr()
    assert asked_with_key > 20
    assert "Traceback" in printed.err
    logged = caplog.text.splitlines()
    assert any("httpcore" in line for line in logged)
    # The redirect's Location, which httpcore tells at this level whoever asks it to, is what the server wrote.
    logged = [line for line in logged if "receive_response_headers.complete" not in line]
    files = everything_in(config.home)
    assert any(path.name == "library.sqlite3" for path in files)
    assert config.log in files
    assert {path for path, content in files.items() if hits(content)} == set()
    assert [text for text in [*seen, printed.out, printed.err, *logged] if hits(text)] == []


@pytest.mark.slow
def test_a_key_stands_in_no_command_line_and_nothing_of_it_is_printed(library, in_child):
    """Everybody on the machine can read those; asked as in a shell, with the key in the environment."""
    with openai_compatible.serve() as server:
        server.key = CANARY
        server.enqueue(openai_compatible.Reply([WORDS, 3600.0], end="nothing"))
        options = {"url": f"{server.url}/v1"}
        save_profile(library.config, Profile("p", "openai-compatible", "qwen3-4b", fallbacks=(), options=options))
        environment = in_child.environment | {
            "OPENAI_COMPATIBLE_KEY": CANARY, "OPENAI_COMPATIBLE_URL": f"{server.url}/v1",
            "DOCMIND_HOME": str(library.config.home),
        }  # fmt: skip
        command = [in_child.python, "-m", "docmind", "ask", QUESTION, "--profile", "p", "--debug"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
            server.wait_for(lambda: server.chats)
            process = psutil.Process(asking.pid)
            lines = [one.cmdline() for one in (process, *process.children(recursive=True))]
            process.terminate()
            out, err = asking.communicate(timeout=120)
        assert server.headers[-1]["authorization"] == f"Bearer {CANARY}"
    assert [text for text in [*lines, out, err] if hits(text)] == []
    assert {path for path, content in everything_in(library.config.home).items() if hits(content)} == set()
