"""The Ollama backend over a real socket: what it finds, what it asks, and what it makes of a server that misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import sys
import threading

import httpx
import pytest
from llama_index.core.llms import ChatMessage
from servers.http_by_hand import PATIENCE
from servers.ollama import Model, Reply, serve, starter_writer

from docmind.backends import ollama
from docmind.backends.places import allow
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelNotFound
from docmind.settings import change_settings

pytestmark = pytest.mark.usefixtures("end_models")

CLOUD = Model("gpt-oss:120b-cloud", 131_072, 384, architecture="gptoss", remote_host="https://ollama.com:443")
HELLO = [ChatMessage(role="user", content="Hello")]
LONG = [ChatMessage(role="user", content="The committee met again on Tuesday. " * 200)]


@pytest.fixture
def server():
    """The stand-in, with its usual models."""
    with serve() as running:
        yield running


@pytest.fixture
def build(server, config):
    """Builds a model of the stand-in."""

    def build(model="qwen3:4b", **options):
        return ollama.build(config, model, {"url": server.url, **options})

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


# Finding


def test_the_models_are_listed_with_all_that_is_known(server, config, build):
    """Size, quantization, window, whether it is in memory, and why one cannot answer."""
    server.models[CLOUD.name] = CLOUD
    build().warm_up()
    found = ollama.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.hint) == (True, None, None)
    assert (found.url, found.version) == (server.url, "0.33.2")
    listed = {m.name: (m.context_window, m.size_bytes, m.quantization, m.loaded, m.reason) for m in found.models}
    assert listed == {
        "gpt-oss:120b-cloud": (131_072, 384, "Q4_K_M", False, "cloud_model"),
        "llama3.2:latest": (131_072, 2_000_000_000, "Q4_K_M", False, None),
        "nomic-embed-text:latest": (2048, 274_000_000, "F16", False, "no_text_generation"),
        "qwen3:4b": (40_960, 2_600_000_000, "Q4_K_M", True, None),
    }
    assert ollama.models(config, {"url": server.url}) == found.models


def test_an_embedding_model_is_known_by_its_architecture_where_abilities_are_not_said(config):
    """Old servers have no `capabilities`."""
    with serve([Model("old-embed", architecture="bert", capabilities=None), Model("x", capabilities=None)]) as old:
        reasons = {model.name: model.reason for model in ollama.models(config, {"url": old.url})}
    assert reasons == {"old-embed": "no_text_generation", "x": None}


def test_the_address_is_read_from_the_environment_as_ollama_reads_it(server, config, monkeypatch):
    """Without the option."""
    monkeypatch.setenv("OLLAMA_HOST", server.url.removeprefix("http://"))
    assert ollama.detect(config).url == server.url


@pytest.mark.parametrize(
    ("said", "address"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:5000", "http://127.0.0.1:5000"),
        (":5000", "http://127.0.0.1:5000"),
        ("box", "http://box:11434"),
        ("box:5000", "http://box:5000"),
        ("http://box", "http://box:80"),
        ("https://box/ollama/", "https://box:443/ollama"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("[::]", "http://[::1]:11434"),
        (' "box" ', "http://box:11434"),
    ],
)
def test_an_address_may_be_written_in_many_ways(said, address, monkeypatch):
    """The same table as Ollama's own."""
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert ollama.address(said) == address


@pytest.mark.parametrize(
    "said",
    ["ftp://box", "http://box:port", "http://[::1", "http://127.0.0.1:99999", "http://\x00", "http://xn--", "\ud800",
     "http://box/\x01"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_address_is_refused(said, config):
    """With the form it should have; and it is no reason to raise while looking around."""
    assert failure(lambda: ollama.build(config, "qwen3:4b", {"url": said})).reason == "invalid_option"
    found = ollama.detect(config, {"url": said})
    assert (found.available, found.reason) == (False, "invalid_option")


def test_no_models_is_an_absence_with_the_command(config):
    """A fresh installation."""
    with serve([]) as empty:
        found = ollama.detect(config, {"url": empty.url})
    assert (found.available, found.reason) == (False, "no_model")
    assert "ollama pull" in found.hint


def test_an_old_server_is_usable_with_a_warning(config):
    """Its memory can be read by anyone who reaches it."""
    with serve(version="0.17.0") as old:
        found = ollama.detect(config, {"url": old.url})
    assert found.available
    assert "0.17.1" in found.hint


def test_a_missing_package_does_not_hide_the_models(server, config, monkeypatch):
    """One command, and they can be used."""
    monkeypatch.setitem(sys.modules, "ollama", None)
    found = ollama.detect(config, {"url": server.url})
    assert (found.available, found.reason, len(found.models)) == (False, "not_installed", 3)
    assert ollama.INSTALL in found.hint


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>It works!</html>"),
        (502, b"<html><h1>502 Bad Gateway</h1></html>"),
        (200, b"[1, 2]"),
        (200, b"[" * 100_000),
        (200, b'{"models": ['),
        (200, b'{"models": "' + b"x" * (9 << 20) + b'"}'),
        (200, b'{"models": 1e999999, "n": ' + b"9" * 5000 + b"}"),
        (404, b"404 page not found"),
        (307, b""),
        (200, b"\xff\xfe\x00"),
    ],
    ids=["html", "bad gateway", "list", "deep", "cut", "giant", "number", "other server", "redirect", "bytes"],
)
def test_a_listing_that_is_none_is_an_absence(server, config, status, body):
    """Whatever listens there; nothing is raised."""
    server.instead["/api/tags"] = (status, body)
    found = ollama.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.models) == (False, "bad_response", ())
    assert found.hint


@pytest.mark.parametrize(
    "entry",
    ["x", None, {}, {"name": 3}, {"name": "a\nb"}, {"name": "\x1b[31mred"}, {"name": "n" * 999}, {"name": "a b"},
     {"name": "\ud800"}],
)  # fmt: skip
def test_an_odd_entry_does_not_hide_the_others(server, config, entry):
    """A name that cannot be asked for is left out."""
    good = {"name": "good:1b", "size": -5, "details": [], "quantization_level": 3}
    server.instead["/api/tags"] = (200, json.dumps({"models": [entry, good]}).encode())
    server.instead["/api/ps"] = (200, json.dumps({"models": [entry]}).encode())
    server.instead["/api/show"] = (200, b'{"model_info": {"general.architecture": ["x"]}, "capabilities": 7}')
    (listed,) = ollama.models(config, {"url": server.url})
    assert (listed.name, listed.size_bytes, listed.context_window, listed.reason) == ("good:1b", None, None, None)


def test_a_server_that_accepts_and_says_nothing_is_an_absence(config, monkeypatch):
    """After a while."""
    monkeypatch.setattr(ollama, "LISTING_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = ollama.detect(config, {"url": f"http://127.0.0.1:{silent.getsockname()[1]}"})
    assert (found.available, found.reason) == (False, "unreachable")


# Building


def test_latest_may_be_left_out(build):
    """As for Ollama itself; the full name is asked for."""
    assert build("llama3.2").metadata.model_name == "llama3.2:latest"


@pytest.mark.parametrize(
    ("options", "window"),
    [({}, 8192), ({"context_window": 16_384}, 16_384), ({"context_window": 100_000}, 40_960)],
    ids=["default", "chosen", "more than trained"],
)
def test_the_window_is_always_said(server, build, options, window):
    """The server's own default would cut the prompt in silence."""
    model = build(**options)
    model.chat(HELLO)
    model.warm_up()
    windows = {body["options"]["num_ctx"] for path, body in server.requests if path == "/api/chat"}
    assert windows == {window}
    assert model.metadata.context_window == window
    assert all((chat["truncate"], chat["shift"]) == (False, False) for chat in server.chats)


def test_the_options_are_sent_under_the_servers_names(server, build):
    """Defaults, and over them those of a call."""
    model = build(gpu_layers=7, keep_alive="-1", top_k=11)
    model.chat(HELLO, max_tokens=5, temperature=0.5, top_p=0.9, min_p=0.1, repeat_penalty=1.2, seed=3, stop=["\n"],
               thinking="low")  # fmt: skip
    (chat,) = server.chats
    assert chat["options"] == {
        "num_ctx": 8192, "num_gpu": 7, "num_predict": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 11, "min_p": 0.1,
        "repeat_penalty": 1.2, "seed": 3, "stop": ["\n"],
    }  # fmt: skip
    assert (chat["keep_alive"], chat["think"]) == (-1, "low")


@pytest.mark.parametrize("keep_alive", ["soon", "5", "-1", "90s", "1h30m", "0"])
def test_the_time_in_memory_is_a_duration(server, build, keep_alive):
    """The stand-in refuses what the server would."""
    if keep_alive == "soon":
        assert failure(lambda: build(keep_alive=keep_alive)).reason == "invalid_option"
    else:
        assert build(keep_alive=keep_alive).chat(HELLO).message.content


def test_an_embedding_model_is_refused(build):
    """Before anything is sent to it."""
    assert failure(lambda: build("nomic-embed-text")).reason == "no_text_generation"


def test_a_model_in_the_cloud_is_refused_unless_allowed(server, build, config):
    """Questions and passages would leave this machine: a profile of somebody else may have the option, not the word."""
    server.models[CLOUD.name] = CLOUD
    (where,) = [model.remote_url for model in ollama.models(config, {"url": server.url}) if model.name == CLOUD.name]
    assert failure(lambda: build(CLOUD.name)).reason == "cloud_model"
    assert failure(lambda: build(CLOUD.name, allow_cloud=True)).reason == "consent_missing"
    allow(config, where)
    assert build(CLOUD.name, allow_cloud=True).chat(HELLO).message.content
    change_settings(config, lambda settings: dataclasses.replace(settings, local_only=True))
    assert failure(lambda: build(CLOUD.name, allow_cloud=True)).reason == "local_only"
    config.settings.unlink()


# Where things go


def test_nothing_goes_to_a_proxy_named_in_the_environment(server, build, config, monkeypatch):
    """Neither listings nor prompts."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert ollama.detect(config, {"url": server.url}).available
        assert build().chat(HELLO).message.content
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_the_key_in_the_environment_is_not_sent_over_http(server, build, config, monkeypatch):
    """The official client sends it anywhere."""
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    ollama.detect(config, {"url": server.url})
    build().chat(HELLO)
    assert server.headers
    assert not any("authorization" in headers for headers in server.headers)
    assert ollama.key_header("https://ollama.com") == {"Authorization": "Bearer secret"}
    for url in ("http://box:11434", "https://127.0.0.1:443", "https://localhost.:443", "https://[::1]:443",
                "https://box.example"):  # fmt: skip
        assert ollama.key_header(url) == {}
    monkeypatch.setenv("OLLAMA_HOST", "https://box.example")
    assert ollama.key_header("https://box.example") == {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_names_the_other_host(server, llm, status):
    """The prompt is not sent there."""
    with serve() as other:
        server.enqueue(Reply(status=status, location=f"{other.url}/api/chat"))
        refused = failure(lambda: llm.chat(HELLO))
        assert other.requests == []
    assert refused.reason == "bad_response"
    assert other.url in str(refused)


# Streams that go wrong


@pytest.mark.parametrize(
    ("end", "reason"),
    [("nothing", "no_end_marker"), ("half_line", "no_end_marker"), ("reset", "no_end_marker"),
     ("html", "bad_response"), ("endless_line", "bad_response"), ("error", "backend_failed"),
     ("blank_lines", "stalled"), ("empty_chunks", "stalled"), ("silence", "stalled")],
)  # fmt: skip
@pytest.mark.parametrize("deltas", [(), ("Some", " words")], ids=["at once", "after words"])
def test_a_stream_that_goes_wrong_is_no_answer(server, build, end, reason, deltas):
    """Nor another exception, nor for ever; the next call works."""
    server.enqueue(Reply(deltas, end=end))
    llm = build(first_token_seconds=1.0, idle_seconds=1.0)
    assert failure(lambda: llm.chat(HELLO)).reason == reason
    assert llm.chat(HELLO).raw["finish_reason"] == "length"
    server.wait_for(lambda: server.answering == 0)


def test_an_answer_has_a_time_in_all(server, build):
    """However diligently it is written."""
    server.enqueue(Reply(["word "] * 1000, pause_seconds=0.02))
    assert "total_seconds" in failure(lambda: build().chat(HELLO, total_seconds=1.0, max_tokens=5000)).hint


@pytest.mark.parametrize("done_reason", ["load", "unload", "connection closed", ""])
def test_an_end_that_completes_nothing_is_no_answer(server, llm, done_reason):
    """The server says "load" when it only loaded the model."""
    server.enqueue(Reply((), done_reason=done_reason))
    assert failure(lambda: llm.chat(HELLO)).reason == "no_end_marker"


def test_an_answer_cut_by_its_limit_says_so(server, llm):
    """By the server's own word."""
    server.enqueue(Reply(done_reason="length"))
    assert llm.chat(HELLO).raw["finish_reason"] == "length"


@pytest.mark.parametrize(
    "line",
    [b'{"message": {"role": "assistant", "content": null}}', b'{"message": null}', b"{}", b'{"message": [1]}',
     b'{"message": {"thinking": {}}}', b'{"message": {"content": ""}, "done": "yes"}', b"", b"   "],
)  # fmt: skip
def test_an_event_without_words_is_passed_over(server, llm, line):
    """LlamaIndex's own class stops at some of these."""
    server.enqueue(Reply(lines=(line + b"\n",)))
    assert llm.chat(HELLO).message.content == "Hello there."


@pytest.mark.parametrize("line", [b"[]", b"7", b'"x"', b"nonsense", b"[" * 50_000, b"\xff\xff"])
def test_a_line_that_is_no_event_is_an_error(server, llm, line):
    """An answer of something else than Ollama."""
    server.enqueue(Reply(lines=(line + b"\n",)))
    assert failure(lambda: llm.chat(HELLO)).reason == "bad_response"


def test_figures_that_are_none_are_unknown(server, llm):
    """Numbers from a server are not believed blindly."""
    server.enqueue(Reply(figures={"prompt_eval_count": -3, "prompt_eval_duration": "x", "eval_count": 1e9,
                                  "eval_duration": None, "load_duration": True}))  # fmt: skip
    raw = llm.chat(HELLO).raw
    assert raw["finish_reason"] == "stop"
    assert {raw[name] for name in ("prompt_tokens", "answer_tokens", "tokens_per_second", "prefill_seconds")} == {None}


def test_half_a_character_can_be_stored(server, llm):
    """A lone surrogate would stop the database."""
    server.enqueue(Reply(lines=(b'{"message": {"content": "a\\ud83d"}}\n',), deltas=["b"]))
    assert llm.chat(HELLO).message.content.encode("utf-8") == b"a?b"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(Reply(end="error", error="bad \ud800 x"), "backend_failed"),
     (Reply(lines=(b'{"message": {"content": [{"text": "hi"}]}}\n',)), "bad_response")],
    ids=["half a surrogate pair", "no text"],
)  # fmt: skip
def test_what_cannot_be_read_ends_the_answer_with_a_reason(server, llm, reply, reason):
    """It neither passes for an answer nor fails in us."""
    server.enqueue(reply)
    assert failure(lambda: llm.chat(HELLO)).reason == reason


@pytest.mark.parametrize(
    ("status", "said", "reason", "kind"),
    [
        (401, "unauthorized", "key_rejected", BackendError),
        (403, "forbidden", "key_rejected", BackendError),
        (429, "too many requests", "rate_limited", BackendError),
        (400, "the input length exceeds the context length", "context_too_long", ContextTooLong),
        (500, "model requires more system memory (9.1 GiB) than is available", "out_of_memory", BackendError),
        (500, "llama runner process has terminated: CUDA error: out of memory", "out_of_memory", BackendError),
        (404, "model 'qwen3:4b' not found", "model_missing", ModelNotFound),
        (500, "something else", "backend_failed", BackendError),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
@pytest.mark.parametrize("where", ["status", "line"])
def test_a_refusal_is_the_right_error(server, llm, status, said, reason, kind, where):
    """As a status, and in the middle of a stream, with the server's words where they help."""
    if where == "line" and status in (401, 403, 429):
        pytest.skip("a stream that has begun is not refused so")
    server.enqueue(Reply(status=status, error=said) if where == "status" else Reply(end="error", error=said))
    refused = failure(lambda: llm.chat(HELLO), kind)
    assert refused.reason == reason
    if reason == "model_missing":
        assert "llama3.2:latest" in refused.hint


@pytest.mark.parametrize("body", [b"<html><h1>502 Bad Gateway</h1></html>", b""], ids=["html", "empty"])
def test_a_proxys_page_is_told_from_the_servers_words(server, llm, body):
    """And shown in one short line."""
    server.enqueue(Reply(status=502, body=body))
    refused = failure(lambda: llm.chat(HELLO))
    assert refused.reason == ("bad_response" if body else "backend_failed")
    assert "\n" not in str(refused)


# Thinking


def test_thoughts_are_shown_apart_and_are_no_part_of_the_answer(server, llm):
    """Phase "thinking", nothing in the content."""
    server.enqueue(Reply(["Yes", "."], thinking=("Let me ", "see")))
    responses = list(llm.stream_chat(HELLO))
    thoughts = [r for r in responses if r.raw["phase"] == "thinking"]
    assert [r.additional_kwargs["thinking_delta"] for r in thoughts] == ["Let me ", "see"]
    assert all((r.delta, r.message.content) == ("", "") for r in thoughts)
    assert responses[-1].message.content == "Yes."
    assert responses[-1].raw["answer_tokens"] == 4


def test_a_thought_counts_as_a_word_for_the_deadlines(server, build):
    """A model may think for long before it writes."""
    server.enqueue(Reply(["Yes"], thinking=("hm ",) * 8, pause_seconds=0.3))
    assert build(first_token_seconds=2.0, idle_seconds=2.0).chat(HELLO).message.content == "Yes"


def test_a_model_that_cannot_think_says_what_to_leave_out(build):
    """Instead of answering without."""
    refused = failure(lambda: build("llama3.2").chat(HELLO, thinking="on"))
    assert refused.reason == "unsupported"
    assert "`thinking`" in refused.hint


# Counting


def test_a_prompt_the_server_cut_is_noticed(server, llm):
    """By a count far below ours."""
    server.enqueue(Reply(figures={"prompt_eval_count": 300}))
    raw = llm.chat(LONG).raw
    assert raw["counted_tokens"] > 1000
    assert raw["context_cut"] is True


def test_the_servers_count_corrects_ours(server, build):
    """For this model, also in an object made later; and a cut is no correction."""
    model = build()
    counted = model.count_tokens(LONG)
    server.enqueue(Reply(figures={"prompt_eval_count": round(0.8 * counted)}), Reply(figures={"prompt_eval_count": 9}))
    assert "context_cut" not in model.chat(LONG).raw
    corrected = build().count_tokens(LONG)
    assert 0.75 * counted < corrected < 0.85 * counted
    assert model.chat(LONG).raw["context_cut"] is True
    assert model.count_tokens(LONG) == corrected


def test_versions_that_count_only_what_is_new_do_not_raise_an_alarm(config):
    """Ollama 0.30.0 left out what it had read before."""
    with serve(version="0.30.0") as server:
        server.enqueue(Reply(figures={"prompt_eval_count": 5}))
        assert "context_cut" not in ollama.build(config, "qwen3:4b", {"url": server.url}).chat(LONG).raw


def test_a_prompt_far_over_the_window_is_not_sent(server, build):
    """And one that is a little over it is refused by the server."""
    model = build(context_window=512)
    refused = failure(lambda: model.chat(LONG), ContextTooLong)
    assert "512" in str(refused)
    assert server.chats == []


def test_the_reading_speed_is_that_of_what_was_not_kept(server, llm):
    """A kept prefix costs nothing; a short tail tells nothing."""
    figures = {"prompt_eval_count": 1000, "prompt_eval_duration": 2_000_000_000}
    server.enqueue(
        Reply(figures=figures),
        Reply(figures={**figures, "prompt_eval_duration": 1_000_000}),
        Reply(figures={**figures, "prompt_eval_cached_count": 950}),
        Reply(figures={**figures, "prompt_eval_cached_count": 800}),
    )
    speeds = [(llm.chat(HELLO), llm.prefill_tokens_per_second)[1] for _ in range(4)]
    assert speeds == [500, 500, 500, 100]


# Loading and stopping


def test_loading_is_told_from_reading(server, build):
    """Another window makes the server load anew."""
    answers = [list(build(context_window=window).stream_chat(HELLO)) for window in (1024, 1024, 2048)]
    assert [responses[0].raw["phase"] for responses in answers] == ["loading", "reading", "loading"]


def test_warming_up_loads_the_model_and_does_not_ask_it(server, build):
    """With the window of the answers, so that it is not loaded twice."""
    model = build()
    assert not model.is_loaded
    assert model.warm_up()["load_seconds"] > 0
    assert model.is_loaded
    assert server.chats == []
    assert server.loaded == {"qwen3:4b": 8192}
    assert build().is_loaded


def test_a_model_that_is_not_kept_is_not_warmed_up(server, build):
    """That request would unload it."""
    model = build(keep_alive="0")
    model.warm_up()
    assert [path for path, _ in server.requests].count("/api/chat") == 0


def test_closing_leaves_the_servers_model_alone(server, build):
    """Somebody else may be using it."""
    model = build()
    model.warm_up()
    model.close()
    assert server.loaded


@pytest.mark.parametrize("phase", ["loading", "reading", "thinking", "writing"])
def test_a_stop_closes_the_connection_in_every_phase(config, phase):
    """That is what stops the server; it would go on for an hour."""
    with serve(load_seconds=3600.0 if phase == "loading" else 0.0) as server:
        model = ollama.build(config, "qwen3:4b", {"url": server.url})
        if phase != "loading":
            model.warm_up()
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
            if response.raw["phase"] == phase:
                threading.Thread(target=stop_when_asked).start()
        assert responses[-1].raw["finish_reason"] == "stopped"
        # What comes after the word that the stop follows may be here already.
        assert responses[-1].message.content in (("Well", "Well,") if phase == "writing" else ("",))
        server.wait_for_hang_up()


def test_a_stop_reaches_the_server_also_when_nobody_reads_on(server, llm):
    """A page may have been closed."""
    server.enqueue(Reply(["Well"], end="silence"))

    async def run():
        stream = await llm.astream_chat(HELLO, idle_seconds=3600.0)
        while not (await anext(stream)).delta:
            pass
        llm.stop()
        await asyncio.to_thread(server.wait_for_hang_up)
        return [response.raw["finish_reason"] async for response in stream]

    assert asyncio.run(run()) == ["stopped"]


def test_a_server_that_dies_is_noticed_at_once(config):
    """Before its first word."""
    with serve() as server:
        model = ollama.build(config, "qwen3:4b", {"url": server.url})
    assert failure(lambda: model.chat(HELLO), BackendUnavailable).reason == "unreachable"
    assert "ollama.com/download" in failure(lambda: model.chat(HELLO)).hint


# The stand-in itself


def test_the_bundled_model_writes_through_the_stand_in(config):
    """Real words, real stopping at a limit."""
    with serve(writer=starter_writer(config)) as server:
        model = ollama.build(config, "qwen3:4b", {"url": server.url, "temperature": 0.0})
        answer = model.chat([ChatMessage(role="user", content="Name three colours.")], max_tokens=12)
    assert len(answer.message.content) > 10
    assert answer.raw["answer_tokens"] <= 12


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "qwen3:4b", "messages": [], "options": {"num_ctx": 512}, "grammar": "x"},
        {"model": "qwen3:4b", "messages": [], "options": {"num_ctx": 512, "max_tokens": 5}},
        {"model": "qwen3:4b", "messages": []},
        {"model": "qwen3:4b", "messages": [{"role": "robot"}], "options": {"num_ctx": 512}},
        {"model": "qwen3:4b", "messages": [], "options": {"num_ctx": 512}, "keep_alive": "5"},
        {"model": "", "messages": [], "options": {"num_ctx": 512}},
        [],
    ],
    ids=["field", "option", "window", "role", "duration", "model", "list"],
)
def test_the_stand_in_is_strict(request_):
    """A request that a real server would misunderstand fails the test that sent it."""
    with pytest.raises(AssertionError), serve() as server, httpx.Client(trust_env=False) as client:
        assert client.post(f"{server.url}/api/chat", json=request_, timeout=PATIENCE).status_code == 400


def test_llama_index_s_own_adapter_reads_the_same_from_the_stand_in(server, llm):
    """Another client than ours, which was written for the real server, finds the stand-in to be one."""
    from llama_index.llms.ollama import Ollama

    reply = Reply(("Two", " words", "."), thinking=("Hm",))
    server.enqueue(reply, reply)
    stock = Ollama(model="qwen3:4b", base_url=server.url, context_window=8192, request_timeout=60.0)
    messages = [ChatMessage(role="user", content="Say two words.")]
    theirs = list(stock.stream_chat(messages))
    ours = list(llm.stream_chat(messages))
    assert theirs[-1].message.content == ours[-1].message.content == "Two words."
    assert server.chats[0]["messages"] == server.chats[1]["messages"]
    assert theirs[-1].raw["prompt_eval_count"] == ours[-1].raw["prompt_tokens"]
