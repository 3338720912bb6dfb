"""OpenAI-compatible servers over a real socket: what is found, what is asked, and what is made of one that misbehaves.

The stand-in fails in every way that counts; at the end of the file is llama.cpp's own server on the bundled model.
"""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from llama_index.core.llms import ChatMessage
from servers import llama_server
from servers.http_by_hand import PATIENCE
from servers.openai_compatible import OWNERS, Reply, serve
from waiting import wait_until

from docmind.backends import openai_compatible, openai_compatible_llm
from docmind.backends.openai_compatible_presets import OTHER, PRESETS
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelNotFound

HELLO = [ChatMessage(role="user", content="Hello")]
LONG = [ChatMessage(role="user", content="The committee met again on Tuesday. " * 200)]


def preset(name):
    """A preset by its name."""
    return next(preset for preset in PRESETS if preset.name == name)


@pytest.fixture(autouse=True)
def nothing_remembered():
    """What another test's server refused or counted says nothing here, where ports are used again."""
    openai_compatible_llm._refused.clear()


@pytest.fixture
def server():
    """The stand-in, as llama-server."""
    with serve() as running:
        yield running


@pytest.fixture
def build(server, config):
    """Builds a model of the stand-in."""

    def build(model="qwen3-4b", **options):
        return openai_compatible.build(config, model, {"url": server.url, **options})

    return build


@pytest.fixture
def llm(build):
    """A model that may wait for a second."""
    return build(idle_seconds=1.0)


def failure(call, kind=BackendError):
    """The error a call ends with; it has a remedy."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    return caught.value


def shown(models):
    """What matters of a list of models."""
    return [(m.name, m.context_window, m.loaded, m.reason) for m in models]


# Finding


@pytest.mark.parametrize(
    ("kind", "window", "version"),
    [("llama-server", 8192, "llama-server b7000-abc"), ("vllm", 8192, "vLLM 0.11.0"), ("mlx", None, "MLX"),
     ("llama-swap", 8192, "llama-swap"), ("instructlab", None, "InstructLab"), ("trtllm", None, "TensorRT-LLM 1.1.0"),
     ("tabbyapi", 8192, "TabbyAPI"), ("lm-studio-rest", 8192, "LM Studio (REST)"), ("other", None, "another server")],
)  # fmt: skip
def test_each_server_is_recognised_by_its_answers_and_asked_for_its_window(config, kind, window, version):
    """Without a preset; what it does not say is unknown, and the hint says how to give it."""
    with serve(kind) as server:
        found = openai_compatible.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.version) == (True, None, version)
    assert found.url == f"{server.url}/v1"
    assert shown(found.models) == [("qwen3-4b", window, True, None)]
    assert (found.hint is None) == (window is not None)
    assert window is not None or "context_window = " in found.hint


@pytest.mark.parametrize("kind", ["llama-swap", "tabbyapi", "lm-studio-rest"])
def test_a_model_that_is_not_loaded_has_no_window_yet_and_is_not_loaded_by_looking(config, kind):
    """What it was trained for is not what it will be given."""
    with serve(kind, models=["small", "large"]) as server:
        found = openai_compatible.detect(config, {"url": server.url})
    assert shown(found.models) == [("large", None, False, None), ("small", 8192, True, None)]
    assert "large" in found.hint
    assert server.loaded == {"small"}
    assert server.chats == []


@pytest.mark.parametrize(("kind", "host"), [("groq", "api.groq.com"), ("together", "api.together.ai")])
def test_a_service_lists_its_models_with_their_windows(config, kind, host):
    """As an address of its own it is known by that; here a preset says it."""
    with serve(kind, models=["qwen3", "embed-1", "old-1"]) as server:
        found = openai_compatible.detect(config, {"url": server.url, "preset": kind})
    listed = {name: reason for name, _, _, reason in shown(found.models)}
    assert listed["qwen3"] is None
    assert ("old-1" in listed) == (kind == "together")
    assert kind == "groq" or listed["embed-1"] == "no_text_generation"
    assert {model.context_window for model in found.models} == {8192}
    assert openai_compatible._by_address(f"https://{host}/v1").name == kind


def test_a_router_is_asked_only_for_the_models_that_run(server, config):
    """llama-server with many models starts one when it is asked for it."""
    entries = [{"id": "a", "owned_by": "llamacpp", "status": {"value": "loaded"}},
               {"id": "b", "owned_by": "llamacpp", "status": {"value": "unloaded"}}]  # fmt: skip
    server.instead["/v1/models"] = (200, json.dumps({"data": entries}).encode())
    server.instead["/props?model=a"] = (200, b'{"default_generation_settings": {"n_ctx": 512}}')
    found = openai_compatible.detect(config, {"url": server.url})
    assert shown(found.models) == [("a", 512, True, None), ("b", None, False, None)]
    assert [path for path, _ in server.requests] == ["/v1/models", "/props?model=a"]


def test_mlx_without_a_hub_cache_is_there_all_the_same(config):
    """Its list of models fails then: the head of an answer, and nothing in it."""
    with serve("mlx") as server:
        server.instead["/v1/models"] = (200, b"")
        assert openai_compatible.detect(config, {"url": server.url}).reason == "bad_response"
    bare = b"HTTP/1.0 200 OK\r\nServer: BaseHTTP/0.6 Python/3.12.3\r\nContent-type: application/json\r\n\r\n"
    with answering({"/v1/models": bare, "/health": bare + b'{"status": "ok"}'}) as url:
        found = openai_compatible.detect(config, {"url": url})
    assert (found.available, found.version) == (True, "MLX")
    assert [model.name for model in found.models] == ["default_model"]


class answering:
    """The address of a server that sends fixed bytes for a path and hangs up, as Python's own http.server does."""

    def __init__(self, answers):
        self._answers = answers

    def __enter__(self):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def _serve(self):
        for _ in self._answers:
            connection, _ = self._listening.accept()
            with connection, connection.makefile("rb") as head:
                path, length = head.readline().split()[1].decode(), 0
                while line := head.readline().strip().lower():
                    length = int(line.partition(b":")[2]) if line.startswith(b"content-length:") else length
                head.read(length)  # what is not read would reset the connection
                connection.sendall(self._answers[path])

    def __exit__(self, *_):
        self._thread.join(PATIENCE)
        self._listening.close()
        assert not self._thread.is_alive()


@pytest.fixture
def at_home(monkeypatch):
    """Puts stand-ins where servers usually listen on this machine; nothing listens at the other usual places."""
    monkeypatch.delenv("OPENAI_COMPATIBLE_URL")
    monkeypatch.setattr(openai_compatible, "PROBE_SECONDS", PATIENCE)

    def put(**urls):
        moved = tuple(
            found if found.is_remote or found.url is None
            else replace(found, url=urls.get(found.name.replace("-", "_"), "http://127.0.0.1:9/v1"))
            for found in PRESETS
        )  # fmt: skip
        monkeypatch.setattr(openai_compatible, "PRESETS", moved)

    return put


def test_servers_on_this_machine_are_found_by_themselves(config, at_home):
    """The first of a fixed order, with models, is used; the others are named."""
    with serve("vllm") as second, serve("lm-studio-rest", models=[]) as empty, serve("tabbyapi") as third:
        at_home(vllm=f"{second.url}/v1", llama_server=f"{empty.url}/v1", tabbyapi=f"{third.url}/v1")
        found = openai_compatible.detect(config)
        assert (found.available, found.url) == (True, f"{second.url}/v1")
        assert f"TabbyAPI at {third.url}/v1" in found.hint
        assert f"{empty.url}/v1" in found.hint
        assert openai_compatible.build(config, "qwen3-4b").chat(HELLO, max_tokens=2).raw["finish_reason"] == "length"


def test_another_program_on_a_usual_port_is_nobody(config, at_home):
    """A page, or a refusal without a word, is no model server; one that wants a key is."""
    with serve("other") as page, serve("vllm") as locked:
        page.instead["/v1/models"] = (403, b"")
        at_home(llama_server=f"{page.url}/v1")
        found = openai_compatible.detect(config)
        assert (found.available, found.reason, found.url) == (False, "unreachable", f"{page.url}/v1")
        assert found.hint.endswith(f"Run: {PRESETS[0].start}")
        page.instead["/v1/models"] = (200, b"<html>It works!</html>")
        assert openai_compatible.detect(config).reason == "unreachable"
        locked.key = "right"
        at_home(llama_server=f"{page.url}/v1", vllm=f"{locked.url}/v1")
        found = openai_compatible.detect(config)
    assert found.reason == "key_rejected"
    assert "VLLM_API_KEY" in found.hint


def test_nobody_waits_for_a_usual_port_that_says_nothing(config, at_home, monkeypatch):
    """It is given a moment."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at_home(llama_server=f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        monkeypatch.setattr(openai_compatible, "PROBE_SECONDS", 0.3)
        assert openai_compatible.detect(config).reason == "unreachable"


def test_the_address_in_the_environment_is_asked_instead(server, config, monkeypatch):
    """Without the option."""
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", server.url)
    assert openai_compatible.detect(config).url == f"{server.url}/v1"


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://box/", "http://box/v1"),
        ("http://0.0.0.0:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://[::]:8000", "http://[::1]:8000/v1"),
        ("https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1"),
        ("https://example.com/v1beta/openai/", "https://example.com/v1beta/openai"),
        ("https://example.com/llama", "https://example.com/llama/v1"),
    ],
)
def test_an_address_is_taken_as_it_is_given_to_openais_clients(said, address):
    """With or without the version."""
    assert openai_compatible.address(said) == address


@pytest.mark.parametrize(
    "said",
    ["ftp://box", "http://box:port", "http://[::1", "http://127.0.0.1:99999", "http://\x00", "http://xn--", "\ud800",
     "http://me:secret@box", "http://box/v1?key=secret"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_address_is_refused(said, config):
    """With the form it should have; and it is no reason to raise while looking around."""
    assert failure(lambda: openai_compatible.build(config, "qwen3-4b", {"url": said})).reason == "invalid_option"
    found = openai_compatible.detect(config, {"url": said})
    assert (found.available, found.reason) == (False, "invalid_option")


@pytest.mark.parametrize("name", ["groq", "together"])
def test_a_service_is_never_reached_by_its_name_alone(config, name):
    """The address in the profile is what people are shown before anything is sent."""
    found = openai_compatible.detect(config, {"preset": name})
    assert (found.available, found.reason, found.url) == (False, "invalid_option", preset(name).url)
    assert preset(name).url in found.hint
    assert failure(lambda: openai_compatible.build(config, "m", {"preset": name})).reason == "invalid_option"


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>It works!</html>"), (502, b"<html><h1>502 Bad Gateway</h1></html>"), (200, b"[" * 100_000),
     (200, b'{"data": {}}'), (200, b'{"data": ['), (200, b'{"data": "' + b"x" * (9 << 20) + b'"}'),
     (404, b"404 page not found"), (307, b""), (200, b"\xff\xfe\x00"), (200, b"")],
    ids=["html", "bad gateway", "deep", "no list", "cut", "giant", "other server", "redirect", "bytes", "empty"],
)  # fmt: skip
def test_a_list_that_is_none_is_an_absence(server, config, status, body):
    """Whatever listens there; nothing is raised."""
    server.instead["/v1/models"] = (status, body)
    found = openai_compatible.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.models) == (False, "bad_response", ())
    assert found.hint


@pytest.mark.parametrize("entry", ["x", None, {}, {"id": 3}, {"id": "a\nb"}, {"id": "n" * 999}, {"id": "\ud800\x1b"}])
def test_an_odd_entry_does_not_hide_the_others(server, config, entry):
    """Nor do odd values."""
    good = {"id": "good", "meta": [], "aliases": 7, "status": "?", "owned_by": ["llamacpp"]}
    server.instead["/v1/models"] = (200, json.dumps({"data": [entry, good]}).encode())
    server.instead["/props"] = (200, b'{"default_generation_settings": {"n_ctx": -5}, "build_info": {}}')
    assert shown(openai_compatible.models(config, {"url": server.url, "preset": "llama-server"})) == [
        ("good", None, True, None)
    ]


def test_a_server_without_models_is_an_absence(config):
    """With what to do."""
    with serve(models=[]) as empty:
        found = openai_compatible.detect(config, {"url": empty.url})
    assert (found.available, found.reason) == (False, "no_model")


# Building: the window


def test_a_window_that_nobody_knows_is_not_guessed(config):
    """The error says how to give it, and then it works."""
    with serve("mlx") as server:
        refused = failure(lambda: openai_compatible.build(config, "qwen3-4b", {"url": server.url}))
        given = openai_compatible.build(config, "qwen3-4b", {"url": server.url, "context_window": 4096})
        assert given.chat(HELLO, max_tokens=2).raw["context_window"] == 4096
    assert refused.reason == "window_unknown"
    assert "context_window = " in refused.hint
    assert server.chats[0]["messages"]


@pytest.mark.parametrize(
    ("wanted", "window", "left_out"), [(None, 8192, None), (2048, 2048, None), (16_384, 8192, ["context_window"])]
)
def test_the_servers_window_wins_over_a_larger_one(build, wanted, window, left_out):
    """And that is said."""
    model = build(context_window=wanted)
    raw = model.chat(HELLO, max_tokens=2).raw
    assert (model.metadata.context_window, raw["context_window"]) == (window, window)
    assert raw.get("settings_left_out") == left_out


def test_another_name_of_a_model_is_its_name(build):
    """llama-server lists what else it answers to."""
    assert build("qwen3-4b.gguf").metadata.model_name == "qwen3-4b"


# What is sent


@pytest.mark.parametrize("kind", OWNERS)
def test_each_server_is_told_only_what_it_knows_under_its_own_names(config, kind):
    """The stand-in refuses the rest; what was not sent is said."""
    ours = {"top_p": 0.9, "top_k": 11, "min_p": 0.1, "repeat_penalty": 1.2, "seed": 3, "stop": ["\n"],
            "grammar": "root ::= [a-z]+", "temperature": 0.5, "max_tokens": 5}  # fmt: skip
    with serve(kind) as server:
        options = {"url": server.url, "preset": kind, "context_window": 8192}
        raw = openai_compatible.build(config, "qwen3-4b", options).chat(HELLO, **ours).raw
    (chat,) = server.chats
    theirs = {"repetition_penalty": "repeat_penalty"}
    sent = {theirs.get(name, name): value for name, value in chat.items()}
    assert {name: sent[name] for name in ours if name in sent} == {n: v for n, v in ours.items() if n in sent}
    assert set(raw.get("settings_left_out", [])) == set(ours) - set(sent)
    assert {"temperature", "max_tokens", "top_p", "seed", "stop"} <= set(sent)
    assert chat["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("kind", ["groq", "together", "trtllm", "vllm"])
def test_what_a_server_refuses_is_left_out_and_remembered(config, kind):
    """In the words of each; the next call does not try again, and another model does."""
    with serve(kind, models=["a", "b"]) as server:
        server.refuses = {"top_p", "seed"}
        options = {"url": server.url, "preset": kind, "context_window": 8192, "top_p": 0.5, "seed": 1}
        for _ in range(2):
            answer = openai_compatible.build(config, "a", options).chat(HELLO, max_tokens=3)
            assert answer.message.content == "Hello Hello Hello"
            assert answer.raw["settings_left_out"] == ["top_p", "seed"]
        first = len(server.chats)
        assert first in (3, 4)  # some name all they refuse, others one at a time
        assert {"top_p", "seed"} & set(server.chats[-1]) == set()
        openai_compatible.build(config, "b", options).chat(HELLO, max_tokens=3)
        assert "top_p" in server.chats[first]


def test_the_newer_name_of_a_limit_is_used_where_the_old_one_is_refused(server, llm):
    """An answer without a limit would be something else."""
    server.refuses = {"max_tokens"}
    raw = llm.chat(HELLO, max_tokens=4).raw
    assert (raw["finish_reason"], raw["answer_tokens"]) == ("length", 4)
    assert "settings_left_out" not in raw


def test_figures_that_a_server_will_not_send_are_done_without(server, llm):
    """An old one does not know `stream_options`."""
    server.refuses = {"stream_options"}
    raw = llm.chat(HELLO, max_tokens=4).raw
    assert (raw["finish_reason"], raw["answer_tokens"]) == ("length", None)
    assert "settings_left_out" not in raw


@pytest.mark.parametrize(
    "said",
    ["Field 'seed': type must be number, but is string", "`seed` must be less than 5", "unsupported",
     "'messages' is unsupported", "property 'foo' is unsupported, did you mean 'seed'?"],
)  # fmt: skip
def test_other_refusals_are_not_tried_again(server, llm, said):
    """The question cannot be left out, and a wrong value is the person's to mend."""
    server.enqueue(Reply(status=400, error={"message": said}))
    failure(lambda: llm.chat(HELLO, seed=3, stop=["x"]))
    assert len(server.chats) == 1


# Where things go


def test_nothing_goes_to_a_proxy_named_in_the_environment(server, build, config, monkeypatch):
    """Neither lists nor prompts."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert openai_compatible.detect(config, {"url": server.url}).available
        assert build().chat(HELLO).message.content
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("what", ["/v1/models", "/v1/chat/completions"])
def test_a_redirect_is_refused_and_names_the_other_host(server, llm, config, status, what):
    """Neither the prompt nor the key is sent there."""
    with serve() as other:
        location = {"Location": f"{other.url}{what}"}
        if what == "/v1/models":
            with answering({what: f"HTTP/1.1 {status} X\r\nLocation: {location['Location']}\r\n\r\n".encode()}) as url:
                found = openai_compatible.detect(config, {"url": url})
            assert found.reason == "bad_response"
        else:
            server.enqueue(Reply(status=status, headers=location))
            refused = failure(lambda: llm.chat(HELLO))
            assert refused.reason == "bad_response"
            assert other.url in str(refused)
        assert other.requests == []


KEYS = {"GROQ_API_KEY": "groq", "VLLM_API_KEY": "vllm", "OPENAI_COMPATIBLE_KEY": "general"}


@pytest.mark.parametrize(
    ("name", "url", "named", "key"),
    [
        ("groq", "https://api.groq.com/openai/v1", None, "groq"),
        ("groq", "https://api.groq.com:443/openai/v1", None, "groq"),
        ("groq", "http://api.groq.com/openai/v1", None, None),
        ("groq", "https://api.groq.com.evil.example/v1", None, None),
        ("groq", "https://api.groq.com:8443/openai/v1", None, None),
        ("groq", "http://127.0.0.1:8080/v1", None, "general"),
        ("vllm", "http://127.0.0.1:8000/v1", None, "vllm"),
        ("vllm", "http://localhost:1/v1", None, "vllm"),
        ("vllm", "https://box.example/v1", None, None),
        ("vllm", "https://box.example/v1", "https://box.example", "vllm"),
        ("vllm", "http://192.168.0.5/v1", "http://192.168.0.5/v1", None),
        ("other", "http://127.0.0.1:8080/v1", None, "general"),
        ("other", "http://127.0.0.1:8080/v1", "https://box.example/v1", None),
        ("other", "https://box.example/v1", "https://box.example/v1", "general"),
        ("other", "https://other.example/v1", "https://box.example/v1", None),
        ("other", "https://other.example/v1", None, None),
    ],
)
def test_a_key_goes_only_where_it_is_meant_to(monkeypatch, name, url, named, key):
    """Over https or to this machine, and to no address that only a profile names."""
    for variable, value in KEYS.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", named or "")
    assert openai_compatible.key_for(preset(name), url) == key


@pytest.mark.parametrize("value", ["schlüssel", "two\nlines", "  "])
def test_a_key_that_cannot_be_sent_is_none(monkeypatch, value):
    """A header holds printable ASCII."""
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", "")
    monkeypatch.setenv("OPENAI_COMPATIBLE_KEY", value)
    assert openai_compatible.key_for(OTHER, "http://127.0.0.1:1/v1") is None


def test_the_key_is_sent_with_every_request(server, config, monkeypatch):
    """Lists and chats alike."""
    server.key = "right"
    monkeypatch.setenv("OPENAI_COMPATIBLE_URL", server.url)
    monkeypatch.setenv("OPENAI_COMPATIBLE_KEY", "wrong")
    assert openai_compatible.detect(config).reason == "key_rejected"
    monkeypatch.setenv("OPENAI_COMPATIBLE_KEY", " right ")
    assert openai_compatible.build(config, "qwen3-4b").chat(HELLO, max_tokens=1).message.content == "Hello"


# Streams that go wrong


@pytest.mark.parametrize(
    ("end", "reason"),
    [("nothing", "no_end_marker"), ("done_only", "no_end_marker"), ("half_line", "no_end_marker"),
     ("reset", "no_end_marker"), ("html", "bad_response"), ("endless_line", "bad_response"),
     ("endless_event", "bad_response"), ("error", "backend_failed"), ("json", "backend_failed"),
     ("comments", "stalled"), ("empty_chunks", "stalled"), ("silence", "stalled")],
)  # fmt: skip
@pytest.mark.parametrize("deltas", [(), ("Some", " words")], ids=["at once", "after words"])
def test_a_stream_that_goes_wrong_is_no_answer(server, build, end, reason, deltas):
    """Nor another exception, nor for ever; the next call works."""
    server.enqueue(Reply(deltas, end=end))
    llm = build(first_token_seconds=1.0, idle_seconds=1.0)
    assert failure(lambda: llm.chat(HELLO)).reason == reason
    assert llm.chat(HELLO).raw["finish_reason"] == "length"
    server.wait_for(lambda: server.answering == 0)


@pytest.mark.parametrize(
    ("finish_reason", "ends"),
    [("stop", "stop"), ("eos", "stop"), ("length", "length"), ("content_filter", "filtered"),
     ("tool_calls", "unsupported"), ("function_call", "unsupported"), ("abort", "no_end_marker"),
     ("", "no_end_marker"), (None, "no_end_marker")],
)  # fmt: skip
def test_only_two_reasons_complete_an_answer(server, llm, finish_reason, ends):
    """`[DONE]` comes after all of them."""
    server.enqueue(Reply(finish_reason=finish_reason))
    if ends in ("stop", "length"):
        assert llm.chat(HELLO).raw["finish_reason"] == ends
    else:
        assert failure(lambda: llm.chat(HELLO)).reason == ends


def event(delta, **choice):
    """One event of a stream, as a server writes it."""
    return b"data: " + json.dumps({"choices": [{"delta": delta, **choice}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("lines", "text"),
    [([event({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Two "}]})], "Two Hello"),
     ([event({"content": "A", "index": 0}), event({"content": "B"}, index=1)], "AHello")],
    ids=["parts", "a second choice"],
)  # fmt: skip
def test_contents_of_other_forms_are_read_and_second_choices_are_not(server, llm, lines, text):
    """Mistral's thinking models write parts; two answers in one would be none."""
    server.enqueue(Reply(("Hello",), lines=tuple(lines)))
    assert llm.chat(HELLO).message.content == text


@pytest.mark.parametrize("content", [5, {"text": "x"}, ["x"]])
def test_a_content_that_is_no_text_is_no_answer(server, llm, content):
    """Leaving it out would pass a piece for the whole."""
    server.enqueue(Reply(lines=(event({"content": content}),)))
    assert failure(lambda: llm.chat(HELLO)).reason == "bad_response"


@pytest.mark.parametrize("error", [{"message": "x", "code": float("nan")}, {"message": "\ud800"}, "\ud800"])
def test_an_error_that_cannot_be_read_is_an_error_too(server, llm, error):
    """And none of ours."""
    server.enqueue(Reply(("Well",), end="error", error=error))
    assert failure(lambda: llm.chat(HELLO)).reason == "backend_failed"


def test_an_answer_is_cut_at_a_stop_string_that_the_server_passes_over(server, llm):
    """mlx_lm.server does; what follows is neither shown nor waited for, and the server is left."""
    server.is_heeding_stop = False
    server.enqueue(Reply(["I look", " it up. Obs", "erve. Obser", "vation", ": 26", " people"], end="silence"))
    responses = list(llm.stream_chat(HELLO, stop=["Observation:", "never"]))
    assert responses[-1].message.content == "I look it up. Observe. "
    assert "".join(response.delta or "" for response in responses) == "I look it up. Observe. "
    assert responses[-1].raw["finish_reason"] == "stop"
    assert responses[-1].raw["answer_tokens"] is None
    server.wait_for(lambda: server.answering == 0)


def test_a_server_that_makes_nonsense_of_stop_strings_is_not_told_them(config):
    """They are heeded here."""
    with serve("mlx") as server:
        server.enqueue(Reply(["Two words", " and more"]))
        model = openai_compatible.build(config, "qwen3-4b", {"url": server.url, "context_window": 4096})
        answer = model.chat(HELLO, stop=[" words"])
    assert answer.message.content == "Two"
    assert "stop" not in server.chats[0]
    assert "settings_left_out" not in answer.raw


def test_the_beginning_of_a_stop_string_is_text_when_the_answer_ends_there(server, llm):
    """It was held back, not lost."""
    server.is_heeding_stop = False
    server.enqueue(Reply(["An Obs"]))
    responses = list(llm.stream_chat(HELLO, stop=["Observation:"]))
    assert [response.delta for response in responses if response.delta] == ["An ", "Obs"]
    assert responses[-1].message.content == "An Obs"


def test_stop_strings_that_a_server_refuses_are_heeded_here(server, llm):
    """So nothing was left out."""
    server.refuses = {"stop"}
    server.enqueue(Reply(["Two words", " and more"]))
    answer = llm.chat(HELLO, stop=[" words"])
    assert answer.message.content == "Two"
    assert "stop" not in server.chats[-1]
    assert "settings_left_out" not in answer.raw


@pytest.mark.parametrize("end", ["reset_later", "silence_later"])
def test_what_happens_after_the_end_costs_only_the_figures(server, llm, monkeypatch, end):
    """The answer is complete when a choice says so."""
    monkeypatch.setattr(openai_compatible_llm, "_USAGE_SECONDS", 0.3)
    server.enqueue(Reply(end=end))
    answer = llm.chat(HELLO)
    assert (answer.message.content, answer.raw["finish_reason"]) == ("Hello there.", "stop")
    assert (answer.raw["prompt_tokens"], answer.raw["answer_tokens"]) == (None, None)
    server.wait_for(lambda: server.answering == 0)


def test_a_message_in_place_of_a_stream_is_read_too(llm):
    """Some servers do not stream; an error may come the same way."""
    whole = {"choices": [{"index": 0, "message": {"content": "All at once."}, "finish_reason": "stop"}]}
    wrong = {"error": {"message": "CUDA out of memory", "code": 500}}
    with answering_chat(whole) as url, answering_chat(wrong) as other:
        assert chat_at(url, llm).message.content == "All at once."
        assert failure(lambda: chat_at(other, llm)).reason == "out_of_memory"


def answering_chat(body):
    """A server that answers a chat with one JSON object."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    return answering({"/v1/chat/completions": head + json.dumps(body, indent=1).encode()})


def chat_at(url, llm):
    """The same model at another address."""
    return llm.model_copy(update={"url": f"{url}/v1"}).chat(HELLO)


@pytest.mark.parametrize(
    "line",
    [b'data: {"choices": []}', b'data: {"choices": [{"delta": null}]}', b"data: {}", b'data: {"choices": [[1]]}',
     b'data: {"choices": [{"delta": {"reasoning_content": {}}, "finish_reason": 3}]}', b": comment",
     b"event: message", b"id: 7", b"retry: 1000", b"data:", b"", b'data: {"usage": {"prompt_tokens": "x"}}',
     b'data: {"error": null}'],
)  # fmt: skip
def test_an_event_without_words_is_passed_over(server, llm, line):
    """Also one that has values of another kind."""
    server.enqueue(Reply(lines=(line + b"\r\n\r\n",)))
    assert llm.chat(HELLO).message.content == "Hello there."


@pytest.mark.parametrize("line", [b"data: []", b"data: 7", b"data: nonsense", b"data: " + b"[" * 50_000, b"\xff", b"x"])
def test_a_line_that_is_no_event_is_an_error(server, llm, line):
    """An answer of something else."""
    server.enqueue(Reply(lines=(line + b"\n\n",)))
    assert failure(lambda: llm.chat(HELLO)).reason == "bad_response"


def test_an_event_may_come_in_pieces_and_on_several_lines(server, llm):
    """As the format allows."""
    pieces = (b'data: {"choices": [{"delta":\r\n', b'data:  {"content": "\xc3', b'\xa4"}}]}\r\n\r', b"\n")
    server.enqueue(Reply(["!"], lines=pieces))
    assert llm.chat(HELLO).message.content == "ä!"


def test_half_a_character_can_be_stored(server, llm):
    """A lone surrogate would stop the database."""
    server.enqueue(Reply(["b"], lines=(b'data: {"choices": [{"delta": {"content": "a\\ud83d"}}]}\n\n',)))
    assert llm.chat(HELLO).message.content.encode("utf-8") == b"a?b"


@pytest.mark.parametrize(
    ("status", "said", "reason", "kind"),
    [
        (401, {"message": "Invalid API Key"}, "key_rejected", BackendError),
        (403, "forbidden", "key_rejected", BackendError),
        (429, {"message": "Rate limit reached"}, "rate_limited", BackendError),
        (413, {"message": "Request too large", "code": "rate_limit_exceeded"}, "rate_limited", BackendError),
        (400, {"message": "request (9 tokens) exceeds the available context size (4 tokens)"}, "context_too_long",
         ContextTooLong),
        (400, {"message": "This model's maximum context length is 4 tokens."}, "context_too_long", ContextTooLong),
        (400, {"message": "The decoder prompt (length 9) is longer than the maximum model length of 4."},
         "context_too_long", ContextTooLong),
        (400, {"message": "x", "code": "context_length_exceeded"}, "context_too_long", ContextTooLong),
        (400, {"message": "max_tokens must be at least 1, got -8."}, "context_too_long", ContextTooLong),
        (500, "CUDA error: out of memory", "out_of_memory", BackendError),
        (404, {"message": "The model `x` does not exist."}, "model_missing", ModelNotFound),
        (400, {"message": "no models loaded"}, "model_missing", ModelNotFound),
        (404, "File Not Found", "bad_response", BackendError),
        (400, {"message": "Failed to initialize samplers: failed to parse grammar"}, "invalid_grammar", BackendError),
        (501, {"message": "This server does not support chat."}, "unsupported", BackendError),
        (500, "something else", "server_failed", BackendError),
        (503, {"message": "over capacity"}, "server_failed", BackendError),
        (400, {"message": "odd"}, "backend_failed", BackendError),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)  # fmt: skip
@pytest.mark.parametrize("where", ["status", "event"])
def test_a_refusal_is_the_right_error(server, llm, status, said, reason, kind, where):
    """As a status, and in the middle of a stream with the same code, with the server's words."""
    if where == "event":
        said = {"message": said} if isinstance(said, str) else said
        server.enqueue(Reply(("Well",), end="error", error={"code": status} | said))
    else:
        server.enqueue(Reply(status=status, error=said))
    refused = failure(lambda: llm.chat(HELLO), kind)
    assert refused.reason == reason
    if reason == "model_missing" and where == "status":
        assert "qwen3-4b" in refused.hint


@pytest.mark.parametrize(("after", "hint"), [("12", "in 12 seconds"), ("Wed, 21 Oct", "after Wed"), (None, "Wait")])
def test_how_long_to_wait_is_said(server, llm, after, hint):
    """Where the server says it."""
    server.enqueue(Reply(status=429, error="slow down", headers={"Retry-After": after} if after else {}))
    assert hint in failure(lambda: llm.chat(HELLO)).hint
    assert len(server.chats) == 1


@pytest.mark.parametrize("body", [b"<html><h1>502 Bad Gateway</h1></html>", b""], ids=["html", "empty"])
def test_a_proxys_page_is_told_from_the_servers_words(server, llm, body):
    """And shown in one short line; nothing is sent twice."""
    server.enqueue(Reply(status=502, body=body))
    refused = failure(lambda: llm.chat(HELLO))
    assert refused.reason == ("bad_response" if body else "server_failed")
    assert "\n" not in str(refused)
    assert len(server.chats) == 1


@pytest.mark.parametrize("kind", ["llama-server", "vllm", "groq", "lm-studio-rest"])
def test_a_prompt_the_server_finds_too_long_is_told_in_its_words(config, kind):
    """Our own count may be too small, or the server may have been started anew with less."""
    with serve(kind) as server:
        model = openai_compatible.build(config, "qwen3-4b", {"url": server.url, "preset": kind})
        server.window = 64
        assert failure(lambda: model.chat(LONG), ContextTooLong).reason == "context_too_long"


# Thinking, counting, figures


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_shown_apart_and_are_no_part_of_the_answer(server, llm, name):
    """Phase "thinking", nothing in the content."""
    server.enqueue(Reply(["Yes", "."], thinking=("Let me ", "see"), thinking_field=name))
    responses = list(llm.stream_chat(HELLO))
    thoughts = [r for r in responses if r.raw["phase"] == "thinking"]
    assert [r.additional_kwargs["thinking_delta"] for r in thoughts] == ["Let me ", "see"]
    assert all((r.delta, r.message.content) == ("", "") for r in thoughts)
    assert responses[-1].message.content == "Yes."
    assert responses[-1].raw["answer_tokens"] == 4


def test_the_figures_are_the_servers_own_where_it_has_a_clock(server, llm):
    """What was kept of the prompt is no part of the reading speed."""
    timings = {"cache_n": 900, "prompt_n": 100, "prompt_ms": 500.0, "predicted_per_second": 12.5}
    server.enqueue(Reply(usage={"prompt_tokens": 1000}, timings=timings))
    raw = llm.chat(HELLO).raw
    assert (raw["prompt_tokens"], raw["cached_tokens"], raw["prefill_seconds"]) == (1000, 900, 0.5)
    assert raw["tokens_per_second"] == 12.5
    assert llm.prefill_tokens_per_second == 200


def test_another_server_says_what_it_kept_in_the_usage(config):
    """And the speed is by our own clock."""
    with serve("vllm") as server:
        server.enqueue(
            Reply(["a ", "b ", "c"], pause_seconds=0.02, usage={"prompt_tokens_details": {"cached_tokens": 7}})
        )
        raw = openai_compatible.build(config, "qwen3-4b", {"url": server.url}).chat(HELLO).raw
    assert (raw["cached_tokens"], raw["prefill_seconds"]) == (7, None)
    assert 0 < raw["tokens_per_second"] < 100


def test_figures_that_are_none_are_unknown(server, llm):
    """Numbers from a server are not believed blindly."""
    usage = {"prompt_tokens": -3, "completion_tokens": 1e9, "prompt_tokens_details": [1]}
    server.enqueue(Reply(usage=usage, timings={"cache_n": "x", "prompt_ms": 1e400, "predicted_per_second": None}))
    raw = llm.chat(HELLO).raw
    assert raw["finish_reason"] == "stop"
    assert {raw[name] for name in ("prompt_tokens", "answer_tokens", "cached_tokens", "prefill_seconds")} == {None}


def test_a_prompt_the_server_cut_is_noticed(server, llm):
    """By a count far below ours."""
    server.enqueue(Reply(usage={"prompt_tokens": 300}))
    raw = llm.chat(LONG).raw
    assert raw["counted_tokens"] > 1000
    assert raw["context_cut"] is True


# Loading and stopping


def test_a_server_that_loads_is_waited_for_by_a_call(server, build):
    """Within the time for the first word, and it is said."""
    model = build()
    server.is_loading = True
    phases = []
    for response in model.stream_chat(HELLO, max_tokens=2):
        phases.append(response.raw["phase"])
        if phases[-1] == "loading":
            server.is_loading = False
    assert phases[:2] == ["reading", "loading"]
    assert response.raw["finish_reason"] == "length"
    server.is_loading = True
    assert failure(lambda: model.chat(HELLO, first_token_seconds=1.0)).reason == "stalled"


def test_a_proxy_that_says_so_of_a_model_behind_it_is_asked_twice_a_second(server, llm):
    """It is healthy itself; each time the whole prompt goes there."""
    server.enqueue(*[Reply(status=503, error={"message": "Loading model"})] * 1000)
    assert failure(lambda: llm.chat(HELLO, first_token_seconds=1.2)).reason == "stalled"
    assert 1 <= len(server.chats) <= 3


def test_a_server_that_loads_is_there_in_a_moment(server, build, config):
    """It cannot say its window yet; warming up waits for it."""
    model = build()
    server.is_loading = True
    found = openai_compatible.detect(config, {"url": server.url})
    assert (found.available, found.reason) == (False, "loading")
    assert failure(build, BackendUnavailable).reason == "loading"
    model.start()
    server.wait_for(lambda: any(path == "/health" for path, _ in server.requests))
    server.is_loading = False
    assert model.warm_up()["load_seconds"] > 0
    assert server.chats == []


@pytest.mark.parametrize("kind", ["llama-swap", "lm-studio-rest"])
def test_a_model_that_is_loaded_on_demand_is_loaded_by_warming_up(config, kind):
    """By the shortest question there is."""
    with serve(kind, models=["small", "large"]) as server:
        model = openai_compatible.build(config, "large", {"url": server.url, "context_window": 4096})
        assert not model.is_loaded
        assert model.warm_up()["load_seconds"] > 0
        assert model.is_loaded
        assert server.loaded == {"small", "large"}
        assert server.chats[0]["max_tokens"] == 1


@pytest.mark.parametrize("phase", ["loading", "reading", "thinking", "writing"])
def test_a_stop_closes_the_connection_in_every_phase(server, build, phase):
    """That is what stops the server; it would go on for an hour."""
    model = build()
    server.is_loading = phase == "loading"
    if phase == "reading":
        server.enqueue(Reply(first_pause_seconds=3600.0))
    else:
        thinking = ("hm",) if phase == "thinking" else ()
        server.enqueue(Reply(() if thinking else ("Well", ","), thinking=thinking, end="silence"))

    def stop_when_asked():
        server.wait_for(lambda: server.chats)  # otherwise there is nothing to hang up
        model.stop()

    responses = []
    for response in model.stream_chat(HELLO):
        responses.append(response)
        if response.raw["phase"] == phase and not response.raw.get("finish_reason"):
            threading.Thread(target=stop_when_asked).start()
    assert responses[-1].raw["finish_reason"] == "stopped"
    assert responses[-1].message.content == ("Well," if phase == "writing" else "")
    if phase != "loading":
        server.wait_for_hang_up()


def test_a_server_that_dies_is_noticed_at_once(config):
    """Before its first word, with the command that starts one."""
    with serve() as server:
        model = openai_compatible.build(config, "qwen3-4b", {"url": server.url})
    assert failure(lambda: model.chat(HELLO), BackendUnavailable).reason == "unreachable"
    assert "Run: llama-server" in failure(lambda: model.chat(HELLO)).hint


# The stand-in itself


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "top_a": 1},
        {"model": "m", "messages": [{"role": "robot", "content": "x"}], "stream": True},
        {"model": "m", "messages": [{"role": "user", "content": 7}], "stream": True},
        {"model": "m", "messages": [], "stream": True},
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "stream": True},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": "many"},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "min_p": "small"},
        [],
    ],
    ids=["field", "role", "content", "no messages", "no stream", "no model", "limit", "extra", "list"],
)  # fmt: skip
def test_the_stand_in_is_strict(request_):
    """A request that a real server would misunderstand fails the test that sent it."""
    with pytest.raises(AssertionError), serve() as server, httpx.Client(trust_env=False) as client:
        assert client.post(f"{server.url}/v1/chat/completions", json=request_, timeout=PATIENCE).status_code == 400


def test_openais_own_client_reads_the_same_from_the_stand_in(server, llm):
    """Another client than ours, which was written for the real protocol, finds the stand-in to speak it."""
    from openai import OpenAI

    reply = Reply(("Two", " words", "."), thinking=("Hm",))
    server.enqueue(reply, reply)
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        chunks = list(
            client.chat.completions.create(
                model="qwen3-4b", messages=[{"role": "user", "content": "Hello"}], stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
    ours = llm.chat(HELLO)
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ours.message.content == "Two words."
    )
    assert chunks[-1].usage.prompt_tokens == ours.raw["prompt_tokens"]
    assert server.chats[0]["messages"] == server.chats[1]["messages"]


# llama.cpp's own server on the bundled model

COUNT = [ChatMessage(role="user", content="Count: one, two, three, four, five, six, seven.")]
STORY = [ChatMessage(role="user", content="Write a very long story about a sailor who never comes home.")]


@pytest.fixture(scope="module")
def real():
    """Its address; each of its two slots has a window of 2,048 tokens."""
    with llama_server.serve(window=2048) as url:
        yield url


@pytest.fixture
def real_llm(real, config):
    """The bundled model on it, greedy."""
    return openai_compatible.build(config, "starter", {"url": real, "temperature": 0.0})


def slots_at_work(url):
    """How many of its slots are computing, by its own word."""
    return sum(slot["is_processing"] for slot in httpx.get(f"{url}/slots", trust_env=False, timeout=PATIENCE).json())


def test_the_real_server_is_recognised_with_the_window_of_a_slot(real, config, real_llm):
    """Not with that of all slots together, nor with what the model was trained for."""
    found = openai_compatible.detect(config, {"url": real})
    assert (found.available, found.hint) == (True, None)
    assert found.version.startswith("llama-server")
    (model,) = found.models
    assert (model.name, model.context_window, model.quantization, model.loaded) == ("starter", 2048, "Q4_1", True)
    assert 90_000_000 < model.size_bytes < 100_000_000
    assert real_llm.metadata.context_window == 2048


def test_the_real_server_streams_and_proves_its_end(real_llm):
    """With its own figures; asked again it has kept the prompt."""
    responses = list(real_llm.stream_chat(COUNT, max_tokens=12))
    again = real_llm.chat(COUNT, max_tokens=12)
    last = responses[-1].raw
    assert len([response for response in responses if response.delta]) > 6
    assert responses[-1].message.content == again.message.content == "".join(r.delta for r in responses)
    assert (last["finish_reason"], last["answer_tokens"]) == ("length", 12)
    assert last["prompt_tokens"] > 20
    assert last["tokens_per_second"] > 0
    assert last["prefill_seconds"] > 0
    assert again.raw["cached_tokens"] > 10
    assert "settings_left_out" not in last


def test_the_real_server_takes_every_argument_it_is_said_to_know(real_llm):
    """A grammar most visibly."""
    answer = real_llm.chat(
        COUNT, max_tokens=20, top_p=0.9, top_k=20, min_p=0.05, repeat_penalty=1.1, seed=1, stop=["never"],
        grammar='root ::= "yes" | "no"',
    )  # fmt: skip
    assert answer.message.content in ("yes", "no")
    assert answer.raw["finish_reason"] == "stop"
    assert "settings_left_out" not in answer.raw
    assert failure(lambda: real_llm.chat(COUNT, grammar="root ::= (")).reason == "invalid_grammar"


@pytest.mark.parametrize("how", ["stop", "close"])
def test_the_real_server_stops_when_it_is_left(real, real_llm, how):
    """Its slots say so; it would write for minutes. (While it reads it notices later.)"""
    stream = real_llm.stream_chat(STORY, max_tokens=1900)
    next(response for response in stream if response.delta)
    assert slots_at_work(real) == 1
    if how == "stop":
        real_llm.stop()
        assert list(stream)[-1].raw["finish_reason"] == "stopped"
    else:
        stream.close()
    wait_until(lambda: slots_at_work(real) == 0)


def test_the_real_servers_refusal_of_a_long_prompt_is_understood(real_llm):
    """As when it was started anew with a smaller window than it had."""
    model = real_llm.model_copy(update={"context_window": 100_000})
    refused = failure(lambda: model.chat([*LONG, *LONG, *LONG]), ContextTooLong)
    assert "2048" in str(refused)
    assert "-c" in refused.hint
    assert failure(lambda: real_llm.chat([*LONG, *LONG, *LONG]), ContextTooLong).reason == "context_too_long"


def test_the_real_server_answers_two_at_once_without_mixing_them(real_llm):
    """Each gets what its grammar allows."""
    words = ["red", "blue"]
    with ThreadPoolExecutor(2) as threads:
        answers = threads.map(
            lambda word: real_llm.chat(COUNT, max_tokens=12, grammar=f'root ::= "{word} "{{3}}').message.content, words
        )
        assert [set(answer.split()) for answer in answers] == [{"red"}, {"blue"}]


def test_the_real_servers_refusal_of_a_key_is_understood(config, monkeypatch):
    """And the right one opens it."""
    with llama_server.serve(key="right") as url:
        monkeypatch.setenv("OPENAI_COMPATIBLE_URL", url)
        monkeypatch.setenv("LLAMA_API_KEY", "wrong")
        options = {"preset": "llama-server"}  # which says whose key it is
        refused = failure(lambda: openai_compatible.build(config, "starter", options))
        assert refused.reason == "key_rejected"
        assert "LLAMA_API_KEY" in refused.hint
        monkeypatch.setenv("LLAMA_API_KEY", "right")
        assert openai_compatible.build(config, "starter", options).chat(COUNT, max_tokens=1).message.content
