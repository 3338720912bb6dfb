"""What each backend talks to under the conformance suite: how it is started, watched and made to fail.

A new backend gets one entry in `PEERS`: a context manager that yields a `Peer`. Its words need a pace, about 10 ms
each: the suite looks on while an answer is written, and stops it in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import tiny_model
from servers import clouds, openai_compatible
from servers import lm_studio as lm_studio_server
from servers.ollama import serve

from docmind.backends import backend, llama_cpp
from docmind.keys import forget_key, keep_key

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60.0  # seconds: generous, the machine may be busy


@dataclass
class Peer:
    """A backend with something real behind it.

    Attributes:
        llm: A model of it, greedy, ready to be called.
        model: Its name.
        options: What `build` needs to reach this peer; among them `context_window`, which the suite asks for.
        package: What must be installed for it; None: nothing.
        working: How many calls are being computed behind the backend.
        window: Tokens of the window that the last call was really given.
        break_off: Makes answers that are already being written end without their end; None: nothing can.
        mend: Undoes it: the next call gets a whole answer.
        reject_key: A context in which no key is right; None: it has no keys.
        down: A context in which nothing listens; it gives a model that was built while something did, and the options
            that lead there. None: the backend starts what it needs by itself.
    """

    llm: Any
    model: str
    options: dict[str, Any]
    package: str | None
    working: Callable[[], int]
    window: Callable[[], int]
    break_off: Callable[[], None] | None
    mend: Callable[[], None] = lambda: None
    reject_key: Callable[[], contextlib.AbstractContextManager] | None = None
    down: Callable[[], contextlib.AbstractContextManager] | None = None

    def wait_until_idle(self):
        """Wait until nothing is computed any more."""
        end = time.monotonic() + PATIENCE
        while self.working():
            assert time.monotonic() < end, "the model went on"
            time.sleep(0.02)


@contextlib.contextmanager
def llama_cpp_peer(config):
    """The bundled starter in its child process."""
    options = {"temperature": 0.0, "context_window": 8000}
    llm = llama_cpp.build(config, llama_cpp.STARTER, options)
    llm.warm_up()
    yield Peer(
        llm,
        llama_cpp.STARTER,
        options,
        "llama_cpp",
        working=lambda: 0 if llm._child.is_idle else 1,
        window=lambda: llm._child.load["window"],
        break_off=lambda: psutil.Process(llm.process_id).kill(),
    )
    llm.close()


@contextlib.contextmanager
def ollama_peer(config):
    """The stand-in, which repeats the words of the question."""
    with serve(pace_seconds=0.012) as server:
        options = {"url": server.url, "temperature": 0.0, "context_window": 8000}

        @contextlib.contextmanager
        def reject_key():
            server.key = "right"
            yield
            server.key = None

        @contextlib.contextmanager
        def down():
            with serve() as other:
                gone = backend("ollama").build(config, "qwen3:4b", {"url": other.url})
            yield gone, {"url": other.url}

        def set_breaking_off(is_breaking_off):
            server.is_breaking_off = is_breaking_off

        yield Peer(
            backend("ollama").build(config, "qwen3:4b", options),
            "qwen3:4b",
            options,
            "ollama",
            working=lambda: server.answering,
            window=lambda: server.chats[-1]["options"]["num_ctx"],
            break_off=lambda: set_breaking_off(True),
            mend=lambda: set_breaking_off(False),
            reject_key=reject_key,
            down=down,
        )


@contextlib.contextmanager
def lm_studio_peer(config):
    """The stand-in, which repeats the words of the question."""
    model = "qwen/qwen3-4b-2507"
    with lm_studio_server.serve(pace_seconds=0.012) as server:
        options = {"url": server.url, "temperature": 0.0, "context_window": 8000}

        @contextlib.contextmanager
        def reject_key():
            server.key = "right"
            yield
            server.key = None

        @contextlib.contextmanager
        def down():
            with lm_studio_server.serve() as other:
                gone = backend("lm-studio").build(config, model, {"url": other.url})
            yield gone, {"url": other.url}

        def set_breaking_off(is_breaking_off):
            server.is_breaking_off = is_breaking_off

        yield Peer(
            backend("lm-studio").build(config, model, options),
            model,
            options,
            "lmstudio",
            working=lambda: server.answering,
            window=lambda: server.loaded[model].window,
            break_off=lambda: set_breaking_off(True),
            mend=lambda: set_breaking_off(False),
            reject_key=reject_key,
            down=down,
        )


@contextlib.contextmanager
def openai_compatible_peer(config):
    """The stand-in as llama-server; the real one is in test_openai_compatible.py."""
    with openai_compatible.serve(pace_seconds=0.012, window=8000) as server:
        options = {"url": f"{server.url}/v1", "temperature": 0.0, "context_window": 8000}

        @contextlib.contextmanager
        def reject_key():
            server.key = "right"
            yield
            server.key = None

        @contextlib.contextmanager
        def down():
            with openai_compatible.serve() as other:
                gone = backend("openai-compatible").build(config, "qwen3-4b", {"url": other.url})
            yield gone, {"url": other.url}

        def set_breaking_off(is_breaking_off):
            server.is_breaking_off = is_breaking_off

        yield Peer(
            backend("openai-compatible").build(config, "qwen3-4b", options),
            "qwen3-4b",
            options,
            package=None,
            working=lambda: server.answering,
            window=lambda: server.window,
            break_off=lambda: set_breaking_off(True),
            mend=lambda: set_breaking_off(False),
            reject_key=reject_key,
            down=down,
        )


@contextlib.contextmanager
def transformers_peer(config):
    """A model of random weights in its child process."""
    tiny_model.make(config.home / "models" / "tiny")
    options = {"temperature": 0.0, "context_window": 8000}
    llm = backend("transformers").build(config, "tiny", options)
    llm.warm_up()
    yield Peer(
        llm,
        "tiny",
        options,
        "transformers",
        working=lambda: 0 if llm._child.is_idle else 1,
        window=lambda: llm._child.load["window"],
        break_off=lambda: psutil.Process(llm.process_id).kill(),
    )
    llm.close()


@contextlib.contextmanager
def cloud_peer(name, config):
    """A stand-in under the cloud's own package."""
    config.home.mkdir(parents=True, exist_ok=True)
    with clouds.reached(name, config.home, pace_seconds=0.012) as (server, options):
        options |= {"context_window": 8000, "temperature": 0.0}

        @contextlib.contextmanager
        def reject_key():
            server.key = "another"
            yield
            server.key = clouds.KEY

        @contextlib.contextmanager
        def down():
            with clouds.reached(name, config.home) as (_, elsewhere):
                elsewhere["context_window"] = 8000
                gone = backend(name).build(config, clouds.MODEL, elsewhere)
            keep_key(elsewhere["url"], clouds.KEY)
            yield gone, elsewhere
            forget_key(elsewhere["url"])

        def set_breaking_off(is_breaking_off):
            server.is_breaking_off = is_breaking_off

        llm = backend(name).build(config, clouds.MODEL, options)
        yield Peer(
            llm,
            clouds.MODEL,
            options,
            backend(name).CLOUD.modules[0],
            working=lambda: server.answering,
            window=lambda: llm.context_window,
            break_off=lambda: set_breaking_off(True),
            mend=lambda: set_breaking_off(False),
            reject_key=reject_key,
            down=down,
        )


PEERS = {
    "llama.cpp": llama_cpp_peer,
    "ollama": ollama_peer,
    "lm-studio": lm_studio_peer,
    "openai-compatible": openai_compatible_peer,
    "transformers": transformers_peer,
    **{name: functools.partial(cloud_peer, name) for name in clouds.FORMATS},
}


async def ticks_at_each_word(llm, messages):
    """How often a ticker on the same loop has ticked, at each word of an answer."""
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    seen = [ticks async for response in await llm.astream_chat(messages, max_tokens=30) if response.delta]
    ticker.cancel()
    return seen
