"""Where nothing may go: to another host a server points to, or to a proxy named in the environment.

Each case has a real listener on another port of this machine that must hear nothing, not even a connection.
"""

from __future__ import annotations

import random
import select
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.llms import ChatMessage
from servers import lm_studio, ollama, openai_compatible

from docmind import keys
from docmind.backends import backend
from docmind.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("patient")
KEY = "sk-canary-that-goes-nowhere-else"
LM_STUDIO_KEY = "sk-lm-canary00:thatgoesnowhereelse0"  # the form of its API tokens; any other is not sent
HELLO = [ChatMessage(role="user", content="What did the harbour cost? 3.7 million euros.")]
STATUSES = (301, 302, 303, 307, 308)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(scope="module")
def listener():
    """A port of this machine that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening


@pytest.fixture
def sink(listener):
    """Its address; at the end of a test nobody has knocked, so not a byte can have come."""
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    knocked, _, _ = select.select([listener], [], [], 0)
    if knocked:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            pytest.fail(f"this reached another host: {connection.recv(4096)!r}")


@pytest.fixture(autouse=True)
def no_known_keys():
    """No key of another test."""
    keys._known.clear()
    yield
    keys._known.clear()


# What is asked of a server


def _progress(_progress):
    """Nobody looks."""


@dataclass(frozen=True)
class Wire:
    """A kind of server, and the requests that are made of it, each with the paths it asks."""

    model: str
    serve: Callable[..., Any]
    suffix: str
    paths: dict[str, tuple[str, ...]]
    key: str = KEY

    def options(self, server):
        """What leads to a server; one that does not answer is not waited for long."""
        return {"url": server.url + self.suffix, "first_token_seconds": 30.0}

    def ask(self, name, what, config, options, before=lambda: None):
        """Make a request; `before` is called when all that comes before it is done."""
        module = backend(name)
        if what in ("chat", "warm-up"):
            llm = module.build(config, self.model, options)
            before()
            return llm.chat(HELLO, max_tokens=3) if what == "chat" else llm.warm_up()
        before()
        if what == "listing":
            found = module.detect(config, options)
            if not found.available:
                raise BackendError("absent", found.hint or "", reason=found.reason)
            return found
        if what == "pull":
            return module.pull(config, "gemma3:1b", options, progress=_progress, stop=threading.Event())
        return getattr(module, what)(config, self.model, options)


WIRES = {
    "ollama": Wire("qwen3:4b", ollama.serve, "", {
        "listing": ("/api/version", "/api/tags", "/api/ps"), "chat": ("/api/chat",), "warm-up": ("/api/chat",),
        "pull": ("/api/pull",), "delete": ("/api/delete",), "unload": ("/api/chat",),
    }),
    "openai-compatible": Wire("qwen3-4b", openai_compatible.serve, "/v1", {
        "listing": ("/v1/models",), "chat": ("/v1/chat/completions",), "warm-up": ("/v1/models", "/health"),
    }),
    "lm-studio": Wire("qwen/qwen3-4b-2507", lm_studio.serve, "", {
        "listing": ("/system",), "chat": ("/llm",), "warm-up": ("/llm",),
    }, LM_STUDIO_KEY),
}  # fmt: skip
REQUESTS = [(name, what) for name, wire in WIRES.items() for what in wire.paths]


def locations(sink, dice):
    """How a server can point elsewhere."""
    host = sink.removeprefix("http:")
    return dice.choice([f"{sink}/api/chat", host, f"{host}/v1", f"http://user:password@{host[2:]}/", f"{sink}/?a=b#c"])


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(("name", "what"), REQUESTS)
@pytest.mark.parametrize("has_key", [False, True], ids=["no key", "key"])
def test_a_redirect_leads_nobody_to_another_host(sink, config, name, what, status, has_key):
    """Neither a question nor a key nor a name of a model; the refusal has a reason."""
    wire = WIRES[name]
    where = locations(sink, random.Random(f"{name} {what} {status} {has_key}"))
    with wire.serve() as server:
        if has_key:
            server.key = wire.key
            keys.keep_key(server.url, wire.key)

        def point_elsewhere():
            for path in wire.paths[what]:
                headers = {"Location": where, "Refresh": f"0; url={where}"}
                server.instead[path] = (status, headers, b"") if name == "lm-studio" else (status, b"", headers)

        with pytest.raises(BackendError) as caught:
            wire.ask(name, what, config, wire.options(server), point_elsewhere)
        if has_key:  # of the three connections that list at once, the two that are let in may be still on their way
            server.wait_for(lambda: wire.key in server.keys_sent)
    assert caught.value.reason == "bad_response"
    assert caught.value.hint


@pytest.mark.parametrize("variable", [*PROXIES, "all of them"])
@pytest.mark.parametrize(("name", "what"), REQUESTS)
def test_a_proxy_in_the_environment_is_asked_nothing(sink, config, name, what, variable, monkeypatch):
    """The request goes to the server itself, and is answered there."""
    for proxy in PROXIES:
        monkeypatch.delenv(proxy, raising=False)
    for proxy in PROXIES if variable == "all of them" else (variable,):
        monkeypatch.setenv(proxy, sink)
    for exception in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(exception, raising=False)
    wire = WIRES[name]
    with wire.serve() as server:
        server.key = wire.key
        keys.keep_key(server.url, wire.key)
        wire.ask(name, what, config, wire.options(server))
        assert wire.key in server.keys_sent
