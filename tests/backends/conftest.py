"""The real starter model in a child process, shared where a test does not need one of its own."""

from __future__ import annotations

import gc
import importlib

import pytest
from llama_index.core.llms import ChatMessage

from docmind.backends import llama_cpp, lm_studio
from docmind.backends.openai_compatible_presets import PRESETS
from docmind.config import Config

# What talks to servers.
SERVED = ("ollama", "ollama_llm", "ollama_models", "openai_compatible", "openai_compatible_llm", "lm_studio",
          "lm_studio_llm", "lm_studio_socket")  # fmt: skip


@pytest.fixture(autouse=True)
def no_server_of_the_developer(monkeypatch):
    """A server that happens to run here is not asked: nothing listens on port 9."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("LMSTUDIO_HOST", "127.0.0.1:9")
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", "http://127.0.0.1:9")
    keys = ["OLLAMA_API_KEY", "OPENAI_COMPATIBLE_KEY", *(preset.key for preset in PRESETS if preset.key)]
    for name in (*keys, *lm_studio.TOKEN_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def patient(monkeypatch):
    """Waits for a connection and a listing that no busy machine exceeds: where something else is tried than these."""
    for name in SERVED:
        module = importlib.import_module(f"docmind.backends.{name}")
        for constant in ("CONNECT_SECONDS", "LISTING_SECONDS"):
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, 90.0)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A configuration over an empty data folder."""
    return Config(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def llm(config):
    """The starter, loaded, greedy. Unloaded at the end."""
    model = llama_cpp.build(config, llama_cpp.STARTER, {"temperature": 0.0})
    model.warm_up()
    yield model
    model.close()


@pytest.fixture
def unloaded(config):
    """The starter in a child that has not been started: other options make it another child than `llm`'s."""
    llama_cpp.close_all()
    gc.collect()
    llama_cpp.close_unused()  # a child of its own, that remembers no crash of another test
    model = llama_cpp.build(config, llama_cpp.STARTER, {"temperature": 0.0, "context_window": 2048})
    yield model
    model.close()


@pytest.fixture(scope="session")
def starter_path(config):
    """The path of the starter's GGUF."""
    return next(m.path for m in llama_cpp.models(config) if m.name == llama_cpp.STARTER)


@pytest.fixture
def ask():
    """Messages for a question."""

    def messages(text, *before):
        return [*before, ChatMessage(role="user", content=text)]

    return messages
