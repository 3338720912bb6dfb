"""What Ollama is asked to do with its models: pull, delete, load, unload; and the warning about who can reach it."""

from __future__ import annotations

import socket
import threading
import time

import psutil
import pytest
from servers.ollama import serve

from docmind.backends import ollama, ollama_models
from docmind.errors import BackendError, BackendUnavailable, ModelNotFound

NEW = "gemma3:1b"


@pytest.fixture
def server():
    """The stand-in, with its usual models and a library of one."""
    with serve() as running:
        yield running


@pytest.fixture
def pull(server, config):
    """Pulls a model; the steps that were reported."""

    def pull(model=NEW, stop=None, progress=lambda _: None):
        steps = []

        def step(told):
            steps.append(told)
            progress(told)

        ollama.pull(config, model, {"url": server.url}, progress=step, stop=stop or threading.Event())
        return steps

    return pull


def failure(call, kind=BackendError):
    """The error a call ends with; it has a remedy."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    return caught.value


def test_a_pull_reports_the_bytes_of_all_layers(server, pull, config):
    """And the model is there when the server has said so."""
    steps = pull()
    assert NEW in [model.name for model in ollama.models(config, {"url": server.url})]
    doing = list(dict.fromkeys(step.doing for step in steps))
    assert doing == ["looking it up", "downloading", "checking", "finishing"]
    loading = [step for step in steps if step.doing == "downloading"]
    assert [step.done for step in loading] == sorted(step.done for step in loading)
    assert loading[-1].done == loading[-1].total == 815_000_000 + 12_500


def test_a_stopped_pull_ends_within_a_second_and_the_next_goes_on(server, pull):
    """What was fetched is kept by the server, and said by it."""
    server.pull_pause_seconds = 0.02
    stop = threading.Event()
    at = []

    def progress(told):
        if told.done > 300_000_000:
            at.append(time.monotonic())
            stop.set()

    pull(stop=stop, progress=progress)
    assert time.monotonic() - at[0] < 1
    server.wait_for_hang_up()
    assert NEW not in server.models
    first = next(step for step in pull() if step.doing == "downloading")
    assert first.done > 200_000_000
    assert NEW in server.models


def test_a_pull_that_hangs_can_be_stopped(server, pull):
    """Nothing comes, and still."""
    server.pull_end = "silence"
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    pull(stop=stop)
    assert time.monotonic() - started < 30
    assert NEW not in server.models


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("nothing", "no_end_marker"),
        ("reset", "no_end_marker"),
        ("write /models/blobs/sha256-1-partial: no space left on device", "disk_full"),
        ("digest mismatch, file must be downloaded again: want sha256:1, got sha256:2", "wrong_checksum"),
        ('Get "https://registry.ollama.ai/v2/": dial tcp: lookup registry.ollama.ai: no such host', "unreachable"),
        ("pull model manifest: 412: this model requires a newer version of Ollama", "unsupported"),
        ("something new", "backend_failed"),
        ("\u001b[31m" + "x" * 5000, "backend_failed"),
    ],
    ids=["nothing", "reset", "disk", "digest", "registry", "old", "other", "odd"],
)  # fmt: skip
def test_a_pull_that_fails_says_why_and_the_next_goes_on(server, pull, end, reason):
    """Only the server's own success is one."""
    server.pull_end = end
    error = failure(pull)
    assert error.reason == reason
    assert "\x1b" not in str(error)
    server.pull_end = "success"
    assert next(step for step in pull() if step.doing == "downloading").done > 0
    assert NEW in server.models


def test_a_model_that_the_library_has_not_is_an_error(server, pull):
    """With where its names are."""
    assert "ollama.com/library" in failure(lambda: pull("nothing:1b"), ModelNotFound).hint


def test_a_pull_that_says_nothing_for_long_is_given_up(server, pull, monkeypatch):
    """After a quarter of an hour, for a real one."""
    monkeypatch.setattr(ollama_models, "_IDLE_SECONDS", 0.3)
    server.pull_end = "silence"
    assert failure(pull).reason == "stalled"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"status": 3}\n{"digest": {}, "total": "x"}\n', b""])
def test_what_is_no_pull_is_never_a_success(server, pull, body):
    """Whatever listens there."""
    server.instead["/api/pull"] = (200, body)
    assert failure(pull).reason in ("bad_response", "no_end_marker")


@pytest.mark.parametrize("name", ["", "a b", "x\ny", "n" * 300, "\ud800", "x;y"])
def test_an_odd_name_is_asked_for_nowhere(server, pull, config, name):
    """Before anything is sent."""
    for call in (lambda: pull(name), lambda: ollama.delete(config, name, {"url": server.url}),
                 lambda: ollama.unload(config, name, {"url": server.url})):  # fmt: skip
        assert failure(call).reason == "invalid_option"
    assert server.requests == []


def test_a_deleted_model_is_gone(server, config):
    """ ":latest" may be left out; one that is not there names those that are."""
    ollama.delete(config, "qwen3:4b", {"url": server.url})
    assert "qwen3:4b" not in server.models
    error = failure(lambda: ollama.delete(config, "qwen3:4b", {"url": server.url}), ModelNotFound)
    assert "llama3.2:latest" in error.hint
    ollama.delete(config, "llama3.2", {"url": server.url})
    assert "llama3.2:latest" not in server.models


def test_loading_and_unloading_show_in_the_list_with_their_memory(server, config):
    """With the window that a call would have; of the memory the part on graphics cards."""
    server.gpu_share = 0.75
    steps = []
    options = {"url": server.url, "context_window": 2048}
    ollama.load(config, "qwen3:4b", options, progress=steps.append, stop=threading.Event())
    assert server.loaded == {"qwen3:4b": 2048}
    assert [step.doing for step in steps] == ["loading"]
    listed = {model.name: model for model in ollama.models(config, options)}
    in_all = 2_600_000_000 + 2048 * 100_000
    assert (listed["qwen3:4b"].loaded, listed["qwen3:4b"].memory_bytes) == (True, in_all)
    assert listed["qwen3:4b"].gpu_bytes == int(0.75 * in_all)
    assert (listed["llama3.2:latest"].memory_bytes, listed["llama3.2:latest"].gpu_bytes) == (None, None)
    ollama.unload(config, "qwen3:4b", options)
    assert server.loaded == {}
    assert failure(lambda: ollama.unload(config, "none", options), ModelNotFound)


def test_a_load_can_be_stopped(config):
    """At once; the server goes on with it."""
    with serve(load_seconds=20.0) as slow:
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        started = time.monotonic()
        ollama.load(config, "qwen3:4b", {"url": slow.url}, progress=lambda _: None, stop=stop)
        assert time.monotonic() - started < 15
        slow.wait_for_hang_up()


def test_a_model_that_is_not_kept_is_not_loaded(server, config):
    """The option that says so is named."""
    options = {"url": server.url, "keep_alive": "0"}
    error = failure(lambda: ollama.load(config, "qwen3:4b", options, progress=print, stop=threading.Event()))
    assert (error.reason, "keep_alive" in error.hint) == ("invalid_option", True)


def test_a_server_that_is_not_there_says_how_to_start_it(config):
    """Whatever it is asked to do."""
    options = {"url": "http://127.0.0.1:9"}
    stop = threading.Event()
    for call in (lambda: ollama.pull(config, NEW, options, progress=print, stop=stop),
                 lambda: ollama.delete(config, NEW, options), lambda: ollama.unload(config, NEW, options)):  # fmt: skip
        error = failure(call, BackendUnavailable)
        assert (error.reason, "ollama.com/download" in error.hint) == ("unreachable", True)


# Who can reach it


def shared_addresses():
    """This machine's own addresses in a network."""
    return [found.address for addresses in psutil.net_if_addrs().values() for found in addresses
            if found.family == socket.AF_INET and not found.address.startswith("127.")]  # fmt: skip


def test_a_server_on_the_loopback_address_is_nobody_elses(server, config):
    """No warning."""
    assert ollama.detect(config, {"url": server.url}).hint is None


@pytest.mark.skipif(not shared_addresses(), reason="this machine is in no network")
def test_a_server_that_listens_everywhere_gives_a_warning(config):
    """It is available all the same; with the other warning where both are true. Nothing is sent to the network."""
    with serve(host="0.0.0.0") as open_server:
        found = ollama.detect(config, {"url": open_server.url})
        assert (found.available, found.reason) == (True, None)
        assert shared_addresses()[0] in found.hint
        assert "127.0.0.1" in found.hint
        open_server.version = "0.1.0"
        both = ollama.detect(config, {"url": open_server.url}).hint
    assert "security fault" in both
    assert "no password" in both


@pytest.mark.parametrize("url", ["http://192.0.2.1:11434", "https://ollama.example", "http://[2001:db8::1]:11434"])
def test_a_server_on_another_machine_is_not_looked_at(url):
    """Who can reach that one is not ours to find out."""
    assert ollama_models.reachable_at(url) is None


@pytest.mark.skipif(not shared_addresses(), reason="this machine is in no network")
def test_a_server_asked_at_this_machines_own_address_is_reachable_there():
    """Without trying: it was just reached there."""
    assert ollama_models.reachable_at(f"http://{shared_addresses()[0]}:11434") == shared_addresses()[0]
