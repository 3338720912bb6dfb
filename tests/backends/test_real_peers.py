"""A real `mlx_lm.server` on the starter. Slow: the model is converted first, and writes five words a second.

    pip install "mlx[cpu]" mlx-lm gguf accelerate
    pytest -m slow tests/backends/test_real_peers.py

llama.cpp's own server is another real peer, and fast enough for every run (test_openai_compatible.py).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import starter_folder
from waiting import PATIENCE_SECONDS, wait_until

from docmind.answer import ask as ask_documents
from docmind.backends import openai_compatible
from docmind.config import Config
from docmind.library import Library

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def is_healthy(url):
    """Whether it answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return json.load(answer)["status"] == "ok"
    except OSError:
        return False


@pytest.fixture(scope="module", params=["without a hub cache", "with a hub cache"])
def mlx(request, starter_path, tmp_path_factory):
    """The address of `mlx_lm.server`, and the model it was started with."""
    for package in ("mlx_lm", "gguf", "accelerate"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("mlx")
    starter_folder.make(starter_path, folder / "hf")
    if request.param == "with a hub cache":
        (folder / "home" / "hub").mkdir(parents=True)
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mlx_lm"]
    convert = ["convert", "--hf-path", str(folder / "hf"), "--mlx-path", str(folder / "mlx"), "--dtype", "float32"]
    subprocess.run([*command, *convert], check=True, capture_output=True, env=environment)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = ["server", "--model", str(folder / "mlx"), "--host", "127.0.0.1", "--port", str(port)]
    log = (folder / "log").open("wb")
    with log, subprocess.Popen([*command, *serve], stdout=log, stderr=log, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_healthy(url), lambda: (folder / "log").read_text())
            yield url, str(folder / "mlx")
        finally:
            process.kill()


@pytest.fixture
def llm(mlx, config, patient):
    """The starter behind it."""
    url, _ = mlx
    (model,) = [m.name for m in openai_compatible.detect(config, {"url": url}).models if m.reason is None][:1]
    return openai_compatible.build(config, model, {"url": url, "temperature": 0.0, "context_window": 4096})


def test_it_is_recognised(mlx, config, patient):
    """Also while it fails to list its models because there is no cache of the hub."""
    url, _ = mlx
    found = openai_compatible.detect(config, {"url": url})
    assert found.available, found
    assert "MLX" in (found.version or "")
    assert [model.reason for model in found.models]


def test_it_answers_word_by_word(llm, ask):
    """The pieces are the answer."""
    responses = list(llm.stream_chat(ask("What is the capital of France?"), max_tokens=30))
    text = responses[-1].message.content
    assert "Paris" in text
    assert "".join(response.delta or "" for response in responses) == text
    assert len([response for response in responses if response.delta]) > 2


def test_a_limit_is_told_from_an_end(llm, ask):
    """It is cut, and not complete."""
    answer = llm.chat(ask("What is the capital of France?"), max_tokens=5)
    assert answer.raw["finish_reason"] == "length"


def test_an_answer_ends_in_front_of_a_stop_string(llm, ask):
    """The server itself would cut "Paris" out of the text where the model writes " Paris", and write on."""
    question = ask("What is the capital of France?")
    whole = llm.chat(question, max_tokens=30).message.content
    answer = llm.chat(question, max_tokens=30, stop=["Paris"])
    assert answer.raw["finish_reason"] == "stop"
    assert answer.message.content == whole[: whole.index("Paris")]


def test_it_can_be_stopped_and_asked_again(llm, ask):
    """Within seconds, though it would go on for minutes."""
    started, responses = 0.0, []
    for response in llm.stream_chat(ask("Tell a long story about the sea."), max_tokens=2000):
        responses.append(response)
        if response.delta and not started:
            started = time.monotonic()
            llm.stop()
    assert responses[-1].raw["finish_reason"] == "stopped"
    assert "Paris" in llm.chat(ask("What is the capital of France?"), max_tokens=30).message.content


def test_a_document_is_asked(mlx, shelf, llm, tmp_path):
    """With its proof, as by any other model."""
    url, _ = mlx
    config = Config(home=tmp_path / "home")
    shutil.copytree(shelf.config.home, config.home, ignore=shutil.ignore_patterns("*.lock"))
    folder = config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlx.toml").write_text(
        f'backend = "openai-compatible"\nmodel = {json.dumps(llm.metadata.model_name)}\nagent = "direct"\n'
        f"fallbacks = []\nmax_output_tokens = 60\ntemperature = 0.0\ncontext_window = 4096\n"
        f'first_token_seconds = {PATIENCE_SECONDS}\nidle_seconds = {PATIENCE_SECONDS}\n[options]\nurl = "{url}"\n',
        encoding="utf-8",
    )
    question = "How many people does the pilot station employ?"
    answer = list(ask_documents(Library(config), question, profile="mlx"))[-1]
    assert answer.finished in ("complete", "cut"), answer
    assert "26" in answer.text
    assert answer.citations
