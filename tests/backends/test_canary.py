"""A canary key: given to three servers, used in many ways that succeed and fail, then searched for everywhere.

It may be in the requests to its server and in the memory of the program, and nowhere else, raw or as base64.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import shutil
import subprocess
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest
from faults import QUESTION, WORDS
from llama_index.core.llms import ChatMessage
from servers import lm_studio, ollama, openai_compatible

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

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.usefixtures("patient", "end_models")

CANARY = "sk-canary-7f3c9a51e0b24d68"
# The form of LM Studio's API tokens. What stands before the colon is the client's name; what comes after it is secret
# by itself, and is sent by itself.
PASSKEY = "51e0b24d68Canary7f3c"
LM_CANARY = f"sk-lm-Canary9a:{PASSKEY}"
SECRETS = (CANARY, LM_CANARY, PASSKEY)
HELLO = [ChatMessage(role="user", content="Hello")]


def disguises(secret):
    """A key as it is, and as base64 would show it, whatever stands before it."""
    raw = secret.encode()
    for before in range(3):
        text = base64.b64encode(b"x" * before + raw)
        yield text[4 if before else 0 : -4]  # what does not depend on its neighbours
    yield base64.b16encode(raw)
    yield raw


FORMS = tuple(form for secret in SECRETS for form in disguises(secret))


def hits(text):
    """How often a key is in a text or in bytes."""
    data = text if isinstance(text, bytes) else str(text).encode("utf-8", "backslashreplace")
    return sum(data.count(form) for form in FORMS)


@pytest.mark.parametrize("secret", SECRETS)
def test_the_search_finds_what_it_is_to_find(secret):
    """Raw, in a header, and in base64 at any offset."""
    assert hits(f"Authorization: Bearer {secret}")
    for before in range(6):
        assert hits(base64.b64encode(b"user:password"[:before] + secret.encode() + b"more"))
    assert not hits("sk-another-key, sk-lm-Canary9a:")


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


@dataclass(frozen=True)
class Wire:
    """A kind of server, the key for it, and where a person may put its address and its key."""

    model: str
    module: ModuleType
    key: str = CANARY
    suffix: str = ""
    address: str = ""
    variable: str = ""  # "": over plain http it takes none from the environment


WIRES = {
    "ollama": Wire("qwen3:4b", ollama),
    "openai-compatible": Wire(
        "qwen3-4b", openai_compatible, CANARY, "/v1", "OPENAI_COMPATIBLE_URL", "OPENAI_COMPATIBLE_KEY"
    ),
    "lm-studio": Wire("qwen/qwen3-4b-2507", lm_studio, LM_CANARY, "", "LMSTUDIO_HOST", "LM_API_TOKEN"),
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
# The same over LM Studio's websocket, which has more places for it: the shaking of hands (`instead`), the introduction
# (`turned_away`), messages on a channel and beside it, and the end of the connection.
INTRODUCTION = json.dumps({"authVersion": 1, "clientIdentifier": "Canary9a", "clientPasskey": PASSKEY})
LM_ECHO = f"Invalid introduction: {INTRODUCTION}, {LM_CANARY}"
GOODBYE = (1002).to_bytes(2, "big") + f"not understood: {LM_CANARY}".encode()  # RFC 6455, section 5.5.1
LM_FAILURES = (
    {},
    {"end": "error", "error": {"title": LM_ECHO}},
    {"turned_away": {"title": LM_ECHO}},
    {"end": "error", "error": {"rootTitle": LM_ECHO, "title": "out of memory", "cause": LM_ECHO, "stack": LM_ECHO}},
    *({"end": "error", "error": {"title": f"{why}: {LM_ECHO}"}} for why in ("API token", "crashed", "context length")),
    {"end": "error", "error": {"title": LM_ECHO, "displayData": {"code": "generic.noModelMatchingQuery"}}},
    {"end": "error", "error": {"title": LM_ECHO, "displayData": {"code": "generic.domainMismatch"}}},
    *({"instead": (status, {}, f"<pre>{LM_ECHO}</pre>".encode())} for status in (200, 401, 403, 500)),
    {"instead": (307, {"Location": f"http://127.0.0.1:9/{LM_CANARY}"}, b"")},
    {"deltas": ["Some ", "words "], "end": "error", "error": {"title": LM_ECHO}},
    {"deltas": ["Some ", "words "], "end": "reset"},
    {"deltas": ["Some "], "end": "close"},
    {"deltas": ["Some ", LM_ECHO.encode()], "end": "silence"},
    {"deltas": [json.dumps({"type": "communicationWarning", "warning": LM_ECHO}).encode()], "end": "silence"},
    {"deltas": [json.dumps({"channelId": number, "said": LM_ECHO}).encode() for number in range(20)], "end": "silence"},
    {"deltas": [bytearray([0x88, len(GOODBYE), *GOODBYE])], "end": "silence"},
    {"stop_reason": LM_ECHO},
)


def failures(name):
    """What goes wrong with a server, one after the other; the first is that nothing does."""
    return LM_FAILURES if name == "lm-studio" else FAILURES


@contextlib.contextmanager
def failing(server, name, failure):
    """A server that answers the next question with a failure, until the block ends."""
    more = dict(failure)
    if name == "lm-studio":
        instead, server.turned_away = more.pop("instead", None), more.pop("turned_away", None)
        if instead is not None:
            server.instead["/llm"] = instead
        server._replies.clear()  # what the one before did not come to
    elif more.get("status") == 307:
        elsewhere = f"http://127.0.0.1:9/{CANARY}"
        more |= {"location": elsewhere} if name == "ollama" else {"headers": {"Location": elsewhere}}
    words = [] if more.get("end") == "error" else [WORDS]  # after words it is an answer that broke off
    server.enqueue(WIRES[name].module.Reply(**{"deltas": words, **more}))
    yield
    if name == "lm-studio":
        server.turned_away = None
        server.instead.clear()


@contextlib.contextmanager
def told(said):
    """Whatever goes wrong in the block is written down, as a page, a log or a terminal might show it."""
    try:
        yield
    except DocMindError as error:
        said += [repr(error), error.hint, "".join(traceback.format_exception(error))]


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
    seen = []
    with contextlib.ExitStack() as running:
        for name, wire in WIRES.items():
            if how == "environment" and not wire.variable:
                continue
            server = running.enter_context(wire.module.serve())
            server.key = wire.key
            url = server.url + wire.suffix
            if how == "kept":
                assert keys.keep_key(url, wire.key) == "this start"
            else:
                monkeypatch.setenv(wire.address, url)
                monkeypatch.setenv(wire.variable, wire.key)
            options = {"url": url}
            profile = Profile(name, name, wire.model, fallbacks=(), options=options, source="user", idle_seconds=30.0)
            save_profile(config, profile)
            tried = failures(name) if how == "kept" else failures(name)[:4]
            llm = backend(name).build(config, wire.model, options)
            times_repeated = 0
            for number, failure in enumerate(tried):
                said = []
                with failing(server, name, failure), told(said):
                    said += [repr(event) for event in ask(library, QUESTION, profile=name, chat=f"{name} {number}")]
                with failing(server, name, failure), told(said):
                    said += [repr(backend(name).detect(config, options))]
                    said += [repr(llm.chat(HELLO, max_tokens=2))]  # also where the listing fails
                times_repeated += any("(key)" in text for text in said)
                seen += said
                breaker.forget()
            for number, failure in enumerate(tried[:2]):
                for more in (["--debug"], ["--json", "--chat", f"c{number}"]):
                    with failing(server, name, failure):
                        main(["ask", QUESTION, "--profile", name, "--home", str(config.home), *more])
            seen += [repr(llm), str(llm.model_dump()), llm.model_dump_json(), llm.to_json(), repr(vars(llm))]
            seen += [repr(llm._client()) if hasattr(llm, "_client") else ""]
            seen += [repr(backend(name).detect(config, options))]
            assert len(server.keys_sent) > len(tried)
            assert set(server.keys_sent) == {wire.key}
            assert times_repeated >= len(tried) / 2  # else the failures are none, and this finds nothing
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
@pytest.mark.parametrize(("name", "last"), [("openai-compatible", "nothing"), ("lm-studio", "silence")])
def test_a_key_stands_in_no_command_line_and_nothing_of_it_is_printed(library, in_child, name, last):
    """Everybody on the machine can read those; asked as in a shell, with the key in the environment."""
    wire = WIRES[name]
    with wire.module.serve() as server:
        server.key = wire.key
        server.enqueue(wire.module.Reply([WORDS, 3600.0], end=last))
        options = {"url": server.url + wire.suffix}
        save_profile(library.config, Profile("p", name, wire.model, fallbacks=(), options=options))
        environment = in_child.environment | {
            wire.variable: wire.key, wire.address: options["url"], "DOCMIND_HOME": str(library.config.home),
        }  # fmt: skip
        command = [in_child.python, "-m", "docmind", "ask", QUESTION, "--profile", "p", "--debug"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
            server.wait_for(lambda: server.predictions if name == "lm-studio" else server.chats)
            process = psutil.Process(asking.pid)
            lines = [one.cmdline() for one in (process, *process.children(recursive=True))]
            process.terminate()
            out, err = asking.communicate(timeout=120)
        assert server.keys_sent[-1] == wire.key
    assert [text for text in [*lines, out, err] if hits(text)] == []
    assert {path for path, content in everything_in(library.config.home).items() if hits(content)} == set()
