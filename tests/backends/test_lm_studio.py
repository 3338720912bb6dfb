"""The LM Studio backend over a real socket: what it finds, what it asks, and what it makes of what goes wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading

import lmstudio
import pytest
from llama_index.core.llms import ChatMessage
from servers.lm_studio import Model, Reply, serve, tokens_in
from servers.ollama import starter_writer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from docmind import keys
from docmind.backends import lm_studio
from docmind.backends.lm_studio_socket import connected
from docmind.backends.places import allow
from docmind.errors import BackendError, BackendUnavailable, ContextTooLong, ModelCrashed, ModelNotFound

pytestmark = pytest.mark.usefixtures("end_models")

QWEN = "qwen/qwen3-4b-2507"
LLAMA = "llama-3.2-3b-instruct"
NOMIC = "text-embedding-nomic-embed-text-v1.5"
LINKED = Model("far/away-8b", device="a-device")
HELLO = [ChatMessage(role="user", content="Hello")]
LONG = [ChatMessage(role="user", content="The committee met again on Tuesday. " * 200)]
SOON = {"first_token_seconds": 1.0, "idle_seconds": 1.0}


@pytest.fixture
def server():
    """The stand-in, with its usual models."""
    with serve() as running:
        yield running


@pytest.fixture
def build(server, config):
    """Builds a model of the stand-in."""

    def build(model=QWEN, **options):
        return lm_studio.build(config, model, {"url": server.url, **options})

    return build


@pytest.fixture
def llm(build):
    """A model with the usual settings."""
    return build()


def failure(call, kind=BackendError):
    """The error a call ends with; it has a remedy."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    return caught.value


def settings(created, stack="predictionConfigStack"):
    """The settings that a channel was created with."""
    return {field["key"]: field["value"] for layer in created[stack]["layers"] for field in layer["config"]["fields"]}


# Finding


def test_the_models_are_listed_with_all_that_is_known(server, config):
    """Size, quantization, window, whether it is in memory, and why one cannot answer; also instances by their names."""
    server.models[LINKED.key] = LINKED
    server.load(QWEN, 16_384)
    server.load(LLAMA, 2048, "work")
    server.load(LLAMA, 1024, "play")
    found = lm_studio.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.hint) == (True, None, None)
    assert (found.url, found.version) == (server.url, "0.4.24")
    assert [(m.name, m.context_window, m.size_bytes, m.quantization, m.loaded, m.reason) for m in found.models] == [
        ("far/away-8b", 262_144, 2_500_000_000, "Q4_K_M", False, "cloud_model"),
        (LLAMA, 2048, 2_020_000_000, "Q8_0", True, None),
        (QWEN, 16_384, 2_500_000_000, "Q4_K_M", True, None),
        (NOMIC, 2048, 84_000_000, "Q4_K_M", False, "no_text_generation"),
        ("play", 1024, 2_020_000_000, "Q8_0", True, None),
        ("work", 2048, 2_020_000_000, "Q8_0", True, None),
    ]
    assert lm_studio.models(config, {"url": server.url}) == found.models


def test_the_address_is_read_from_the_environment(server, config, monkeypatch):
    """Without the option."""
    monkeypatch.setenv("LMSTUDIO_HOST", server.url.removeprefix("http://"))
    assert lm_studio.detect(config).url == server.url


def test_without_an_address_the_usual_ports_are_tried_in_their_order(server, config, monkeypatch):
    """The app listens on one of its own also while its server is switched off; something else may be on the others."""
    monkeypatch.delenv("LMSTUDIO_HOST")
    monkeypatch.setattr(lm_studio, "USUAL_PORT", 9)
    with serve() as other, serve() as later:
        other.instead["/lmstudio-greeting"] = (200, {}, b'{"something": "else"}')
        ports = [int(each.url.rpartition(":")[2]) for each in (other, server, later)]
        monkeypatch.setattr(lm_studio, "APP_PORTS", ports)
        assert lm_studio.detect(config).url == server.url
        monkeypatch.setattr(lm_studio, "APP_PORTS", ports[:1])
        found = lm_studio.detect(config)
    assert (found.available, found.reason, found.url) == (False, "unreachable", None)
    assert found.hint.endswith("Run: lms server start")


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("0.0.0.0", "http://127.0.0.1:1234"),
        (":5000", "http://127.0.0.1:5000"),
        ("box", "http://box:1234"),
        ("box:5000", "http://box:5000"),
        ("ws://box:5000/", "http://box:5000"),
        ("wss://box/studio/", "https://box:443/studio"),
        ("http://box", "http://box:80"),
        ("[::]", "http://[::1]:1234"),
        (' "box" ', "http://box:1234"),
    ],
)
def test_an_address_may_be_written_in_many_ways(said, address):
    """As other clients of LM Studio take it."""
    assert lm_studio.address(said) == address


@pytest.mark.parametrize(
    "said",
    ["ftp://box", "http://box:port", "http://[::1", "http://127.0.0.1:99999", "http://\x00", "http://xn--", "\ud800",
     "http://box/\x01", "http://"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_address_is_refused(said, config):
    """With the form it should have; and it is no reason to raise while looking around."""
    assert failure(lambda: lm_studio.build(config, QWEN, {"url": said})).reason == "invalid_option"
    found = lm_studio.detect(config, {"url": said})
    assert (found.available, found.reason) == (False, "invalid_option")


def test_no_models_is_an_absence_with_the_command(config):
    """A fresh installation, or one with embedding models only."""
    for models in ([], [Model(NOMIC, kind="embedding")]):
        with serve(models) as empty:
            found = lm_studio.detect(config, {"url": empty.url})
        assert (found.available, found.reason) == (False, "no_model")
        assert "Run: lms get" in found.hint


def test_a_missing_package_is_an_absence_with_the_command(server, config, monkeypatch):
    """One command, and the models can be used."""
    monkeypatch.setitem(sys.modules, "lmstudio", None)
    found = lm_studio.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.hint) == (False, "not_installed", f"Run: {lm_studio.INSTALL}")


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>It works!</html>"), (502, b"Bad Gateway"), (404, b""), (307, b"")],
    ids=str,
)
def test_what_is_no_lm_studio_is_an_absence(server, config, status, body):
    """Whatever listens there; nothing is raised."""
    server.instead["/system"] = (status, {"Location": "http://127.0.0.1:9/"} if status == 307 else {}, body)
    found = lm_studio.detect(config, {"url": server.url})
    assert (found.available, found.reason, found.models) == (False, "bad_response", ())
    assert found.hint


@pytest.mark.parametrize(
    "entry",
    ["x", None, {}, {"modelKey": 3}, {"modelKey": "a\nb"}, {"modelKey": "\x1b[31mred"}, {"modelKey": "n" * 999},
     {"modelKey": "", "identifier": "a\nb", "instanceReference": "x"}],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_an_odd_entry_does_not_hide_the_others(server, config, entry):
    """Nor does one of a kind that nobody knows yet; a name that cannot be shown is left out."""
    good = {"modelKey": "good", "type": "llm", "sizeBytes": -5, "maxContextLength": "x", "quantization": 7, "path": []}
    server.results["listDownloadedModels"] = [entry, good, {"modelKey": "new", "type": "tts"}]
    server.results["listLoaded"] = [entry]
    server.results["version"] = [entry]
    listed = lm_studio.models(config, {"url": server.url})
    assert [(m.name, m.size_bytes, m.context_window, m.quantization, m.reason) for m in listed] == [
        ("good", None, None, None, None),
        ("new", None, None, None, "no_text_generation"),
    ]


@pytest.mark.parametrize("result", [None, "x", {"models": []}, 7])
def test_a_listing_that_is_none_lists_nothing(server, config, result):
    """Instead of failing over it."""
    server.results["listDownloadedModels"] = result
    assert lm_studio.detect(config, {"url": server.url}).reason == "no_model"


def test_a_listing_without_end_is_an_absence(server, config):
    """More than anybody has on a disk."""
    server.results["listDownloadedModels"] = [{"modelKey": "x" * 1000, "type": "llm"}] * 9000
    assert lm_studio.detect(config, {"url": server.url}).reason == "bad_response"


def test_a_server_that_accepts_and_says_nothing_is_an_absence(config, monkeypatch):
    """After a while."""
    monkeypatch.setattr(lm_studio, "LISTING_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = lm_studio.detect(config, {"url": f"http://127.0.0.1:{silent.getsockname()[1]}"})
    assert (found.available, found.reason) == (False, "unreachable")


TOKEN = "sk-lm-LOkaylwu:1PMZR74wuxj7OpeyISV7"


def test_a_server_that_demands_a_token_says_what_to_do(server, config):
    """And that one is wanted is told from one that is not taken."""
    server.key = TOKEN
    found = lm_studio.detect(config, {"url": server.url})
    assert (found.available, found.reason) == (False, "key_rejected")
    assert "LM_API_TOKEN" in found.hint


@pytest.mark.parametrize("kept", ["given for the address", *lm_studio.TOKEN_VARIABLES])
def test_a_server_that_demands_a_token_is_given_it(server, build, config, monkeypatch, kept):
    """As its own clients give it; messages of a server that repeats a half of it do not hold it."""
    server.key = TOKEN
    if kept in lm_studio.TOKEN_VARIABLES:
        monkeypatch.setenv(kept, TOKEN)
    else:
        monkeypatch.setattr(keys, "_known", {server.url: TOKEN})
    assert lm_studio.detect(config, {"url": server.url}).available
    assert build().chat(HELLO).message.content
    identity = TOKEN.removeprefix("sk-lm-").split(":")
    introductions = [message for _, message in server.messages if "authVersion" in message]
    assert introductions
    assert all([m["clientIdentifier"], m["clientPasskey"]] == identity for m in introductions)
    assert keys.without_keys(f"not {identity[1]}, not {TOKEN}") == "not (key), not (key)"
    assert server.violations == []


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_key_of_another_form_is_not_sent(server, config, monkeypatch, is_wanted):
    """It may be the one for the OpenAI-compatible address; only where a token is wanted it is in the way."""
    server.key = TOKEN if is_wanted else None
    monkeypatch.setattr(keys, "_known", {server.url: "lm-studio"})
    found = lm_studio.detect(config, {"url": server.url})
    assert found.available != is_wanted
    assert "looks like sk-lm-" in (found.hint or "") or not is_wanted
    assert "lm-studio" not in str(server.messages)


@pytest.mark.parametrize(
    ("host", "url", "is_given"),
    [
        (None, "http://127.0.0.1:1234", True),
        (None, "https://studio.example", False),
        ("https://studio.example", "https://studio.example", True),
        ("studio.example", "http://studio.example:1234", False),
        ("https://studio.example", "https://studio.example.evil.example", False),
    ],
)
def test_the_token_of_the_environment_goes_where_it_is_meant_to(monkeypatch, host, url, is_given):
    """A profile may name an address of somebody else's."""
    monkeypatch.setenv("LM_API_TOKEN", TOKEN)
    monkeypatch.delenv("LMSTUDIO_HOST")
    if host:
        monkeypatch.setenv("LMSTUDIO_HOST", host)
    assert lm_studio.token_for(url) == (TOKEN if is_given else None)


# Building


@pytest.mark.parametrize(
    ("options", "window"),
    [({}, 8192), ({"context_window": 16_384}, 16_384), ({"context_window": 1 << 19}, 131_072)],
    ids=["default", "chosen", "more than trained"],
)
def test_a_model_that_is_not_in_memory_is_loaded_with_its_window(server, build, options, window):
    """And kept for as long as was said."""
    model = build(LLAMA, keep_alive_seconds=60, **options)
    assert model.metadata.context_window == window
    assert model.chat(HELLO).raw["context_window"] == window
    (load,) = server.loads
    assert settings(load, "loadConfigStack") == {"llm.load.contextLength": window}
    assert (server.loaded[LLAMA].window, server.loaded[LLAMA].ttl_ms) == (window, 60_000)


def test_an_instance_in_memory_is_used_as_it_is_and_says_its_own_window(server, build):
    """By the name of its model, too; nothing is loaded beside it."""
    server.load(QWEN, 4096, "work")
    for name in (QWEN, "work"):
        model = build(name, context_window=16_384)
        assert model.is_loaded
        assert model.metadata.context_window == 4096
        assert model.chat(HELLO).raw["context_window"] == 4096
    assert server.loads == []
    assert {p["modelSpecifier"]["instanceReference"] for p in server.predictions} == {"reference-1"}


def test_of_several_instances_the_named_one_answers(server, build):
    """Each has its own window."""
    instances = [server.load(QWEN), server.load(QWEN, 1024, "small"), server.load(QWEN, 2048, "large")]
    for instance in instances:
        assert build(instance.identifier).chat(HELLO).raw["context_window"] == instance.window
    asked = [prediction["modelSpecifier"]["instanceReference"] for prediction in server.predictions]
    assert asked == [instance.reference for instance in instances]


def test_a_model_that_was_loaded_anew_has_its_new_window(server, build):
    """Somebody unloaded it in the app meanwhile."""
    server.load(QWEN, 4096)
    model = build(context_window=2048)
    server.loaded.clear()
    assert model.chat(HELLO).raw["context_window"] == model.metadata.context_window == 2048
    server.loaded.clear()
    server.load(QWEN, 1024)
    assert model.chat(HELLO).raw["context_window"] == model.metadata.context_window == 1024


def test_the_options_are_sent_under_the_servers_names(server, build):
    """Defaults, and over them those of a call; what is not given is left to the server, but never the overflow."""
    model = build(top_k=11)
    model.chat(HELLO, max_tokens=5, temperature=0.5, top_p=0.9, min_p=0.1, repeat_penalty=1.2, stop=["\n"])
    build().chat(HELLO)
    full, plain = (settings(prediction) for prediction in server.predictions)
    assert full == {
        "llm.prediction.contextOverflowPolicy": "stopAtLimit",
        "llm.prediction.maxPredictedTokens": {"checked": True, "value": 5},
        "llm.prediction.temperature": 0.5,
        "llm.prediction.topPSampling": {"checked": True, "value": 0.9},
        "llm.prediction.topKSampling": 11,
        "llm.prediction.minPSampling": {"checked": True, "value": 0.1},
        "llm.prediction.repeatPenalty": {"checked": True, "value": 1.2},
        "llm.prediction.stopStrings": ["\n"],
    }
    assert plain == {
        "llm.prediction.contextOverflowPolicy": "stopAtLimit",
        "llm.prediction.maxPredictedTokens": {"checked": True, "value": 512},
        "llm.prediction.temperature": 0.1,
        "llm.prediction.repeatPenalty": {"checked": True, "value": 1.0},
    }


def test_two_system_messages_reach_the_model(server, llm):
    """The package's own chat would refuse them."""
    llm.chat([ChatMessage(role="system", content="A"), ChatMessage(role="system", content="B"), *HELLO])
    (prediction,) = server.predictions
    assert [message["role"] for message in prediction["history"]["messages"]] == ["system", "system", "user"]


def test_an_embedding_model_is_refused(build):
    """Before anything is sent to it."""
    assert failure(lambda: build(NOMIC)).reason == "no_text_generation"


def test_a_model_on_another_machine_is_refused_unless_allowed(server, build, config):
    """Questions and passages would leave the server's machine."""
    server.models[LINKED.key] = LINKED
    assert failure(lambda: build(LINKED.key)).reason == "cloud_model"
    assert failure(lambda: build(LINKED.key, allow_linked=True)).reason == "consent_missing"
    (where,) = [m.remote_url for m in lm_studio.models(config, {"url": server.url}) if m.name == LINKED.key]
    allow(config, where)
    assert build(LINKED.key, allow_linked=True).chat(HELLO).message.content


# Where things go


def test_nothing_goes_to_a_proxy_named_in_the_environment(server, build, config, monkeypatch):
    """Neither listings nor prompts; the package's own client would."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "WS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert lm_studio.detect(config, {"url": server.url}).available
        assert build().chat(HELLO).message.content
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_names_the_other_host(server, llm, status):
    """The prompt is not sent there."""
    with serve() as other:
        server.instead["/llm"] = (status, {"Location": f"{other.url}/llm"}, b"")
        refused = failure(lambda: llm.chat(HELLO))
        assert other.requests == []
    assert refused.reason == "bad_response"
    assert other.url in str(refused)


def test_nothing_of_the_prompt_is_sent_before_the_server_has_let_us_in(server, llm):
    """What demands a token may be anything."""
    server.key = "right"
    before = len(server.messages)
    assert failure(lambda: llm.chat(HELLO)).reason == "key_rejected"
    ((_, introduction),) = server.messages[before:]
    assert introduction["authVersion"] == 1


# Streams that go wrong


@pytest.mark.parametrize(
    ("end", "reason"),
    [("close", "no_end_marker"), ("hang up", "no_end_marker"), ("crash", "no_end_marker"), ("reset", "no_end_marker"),
     ("garbage", "bad_response"), ("list", "bad_response"), ("bytes", "bad_response"), ("bad frame", "bad_response"),
     ("endless", "bad_response"), ("warning", "bad_response"), ("error", "crashed"), ("silence", "stalled"),
     ("progress", "stalled"), ("others", "stalled")],
)  # fmt: skip
@pytest.mark.parametrize("deltas", [(), ("Some", " words")], ids=["at once", "after words"])
def test_a_stream_that_goes_wrong_is_no_answer(server, build, end, reason, deltas):
    """Nor another exception, nor for ever; the next call works."""
    server.enqueue(Reply(deltas, end=end))
    llm = build()
    assert failure(lambda: llm.chat(HELLO, **(SOON if reason == "stalled" else {}))).reason == reason
    assert llm.chat(HELLO).raw["finish_reason"] == "length"
    server.wait_for(lambda: server.answering == 0)


def test_an_answer_has_a_time_in_all(server, build):
    """However diligently it is written."""
    server.enqueue(Reply(["word "] * 1000, pause_seconds=0.02))
    assert "total_seconds" in failure(lambda: build().chat(HELLO, total_seconds=1.0, max_tokens=5000)).hint
    server.wait_for(lambda: server.answering == 0)


@pytest.mark.parametrize(
    ("stop_reason", "finish"),
    [("eosFound", "stop"), ("stopStringFound", "stop"), ("maxPredictedTokensReached", "length"),
     ("contextLengthReached", "length"), ("userStopped", "stopped")],
)  # fmt: skip
def test_an_end_is_said_in_our_words(server, llm, stop_reason, finish):
    """By the server's own word."""
    server.enqueue(Reply(stop_reason=stop_reason))
    assert llm.chat(HELLO).raw["finish_reason"] == finish


@pytest.mark.parametrize("stop_reason", ["modelUnloaded", "failed", "toolCalls", "somethingNew", "", None, 7])
def test_an_end_that_completes_nothing_is_no_answer(server, llm, stop_reason):
    """The server reports these as a success."""
    server.enqueue(Reply(stop_reason=stop_reason))
    assert failure(lambda: llm.chat(HELLO)).reason == "no_end_marker"


@pytest.mark.parametrize(
    "contents",
    [{}, {"type": "fragment"}, {"type": "fragment", "fragment": None}, {"type": "fragment", "fragment": {"content": 7}},
     {"type": "fragment", "fragment": {"content": ""}}, {"type": "promptProcessingProgress", "progress": "x"},
     {"type": "promptProcessingProgress", "progress": 7.5, "details": {"cachedTokenCount": -1}},
     {"type": "toolCallGenerationNameReceived", "name": "x"}, {"type": "somethingNew"}, {"type": ["success"]}],
    ids=str,
)  # fmt: skip
def test_an_event_without_words_is_passed_over(server, llm, contents):
    """Newer servers send more than the package knows; it would warn on every one."""
    server.enqueue(Reply(contents=(contents,)))
    assert llm.chat(HELLO).message.content == "Hello there."


@pytest.mark.parametrize("contents", ["text", 7, None, []])
def test_a_message_that_is_none_is_an_error(server, llm, contents):
    """An answer of something else than LM Studio."""
    server.enqueue(Reply(contents=(contents,)))
    assert failure(lambda: llm.chat(HELLO)).reason == "bad_response"


def test_figures_that_are_none_are_unknown(server, llm):
    """Numbers from a server are not believed blindly."""
    server.enqueue(
        Reply(stats={"promptTokensCount": -3, "predictedTokensCount": 1e9, "tokensPerSecond": True,
                     "timeToFirstTokenSec": float("nan")})
    )  # fmt: skip
    raw = llm.chat(HELLO).raw
    assert raw["finish_reason"] == "stop"
    assert {raw[name] for name in ("prompt_tokens", "answer_tokens", "tokens_per_second", "prefill_seconds")} == {None}


def test_half_a_character_can_be_stored(server, llm):
    """A lone surrogate would stop the database."""
    server.enqueue(Reply(["a\ud83d", "b"]))
    assert llm.chat(HELLO).message.content.encode("utf-8") == b"a?b"


@pytest.mark.parametrize(
    ("error", "reason", "kind"),
    [
        ({"title": "Model not found", "displayData": {"code": "generic.pathNotFound"}}, "model_missing", ModelNotFound),
        ({"title": "x", "displayData": {"code": "generic.specificModelUnloaded"}}, "closed", BackendError),
        ({"title": "x", "displayData": {"code": "generic.domainMismatch"}}, "no_text_generation", BackendError),
        ({"title": "Trying to keep the first 9000 tokens when context the overflows."}, "context_too_long",
         ContextTooLong),
        ({"title": "Error", "cause": "Context size has been exceeded."}, "context_too_long", ContextTooLong),
        ({"title": "Model loading was stopped due to insufficient system resources."}, "out_of_memory", BackendError),
        ({"title": "Failed to load model", "cause": "ggml_backend: CUDA error: out of memory"}, "out_of_memory",
         BackendError),
        ({"title": "The model has crashed without additional information. (Exit code: 6)"}, "crashed", ModelCrashed),
        ({"title": "Invalid API token"}, "key_rejected", BackendError),
        ({"title": "something else", "rootTitle": "Error"}, "backend_failed", BackendError),
        ({"title": ["odd"], "displayData": "odd"}, "backend_failed", BackendError),
        ({"title": 7, "displayData": {"code": ["odd"]}}, "backend_failed", BackendError),
        ({}, "backend_failed", BackendError),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
@pytest.mark.parametrize("when", ["loading", "writing"])
def test_a_refusal_is_the_right_error(server, llm, error, reason, kind, when):
    """By its code where it has one, else by the server's words."""
    if when == "loading":
        server.load_error = error
    else:
        server.enqueue(Reply(end="error", error=error))
    refused = failure(lambda: llm.chat(HELLO), kind)
    assert refused.reason == reason
    assert "\n" not in str(refused)


def test_a_model_that_vanished_between_two_messages_is_an_error(server, llm):
    """It is not loaded behind our back with another window."""
    gone = server.load(QWEN)
    server.results["listLoaded"] = [
        {"identifier": QWEN, "instanceReference": gone.reference, "modelKey": QWEN, "contextLength": 8192}
    ]
    server.loaded.clear()
    assert failure(lambda: llm.chat(HELLO)).reason == "closed"
    assert server.loads == []


# Thinking, reading


def test_thoughts_are_shown_apart_and_are_no_part_of_the_answer(server, llm):
    """Phase "thinking", nothing in the content; their tags are no part of them."""
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
    assert build(idle_seconds=2.0).chat(HELLO).message.content == "Yes"


@pytest.mark.parametrize("is_detailed", [True, False], ids=["newer", "older"])
def test_reading_shows_how_far_it_is(server, llm, is_detailed):
    """In tokens; older servers say only a share."""
    server.is_detailed = is_detailed
    responses = list(llm.stream_chat(HELLO))
    shown = [(r.raw["done"], r.raw["total"]) for r in responses if r.raw["phase"] == "reading" and "done" in r.raw]
    total = responses[-1].raw["prompt_tokens" if is_detailed else "counted_tokens"]
    assert shown == [(0, total), (round(total / 2), total), (total, total)]
    assert responses[-1].raw["cached_tokens"] == (0 if is_detailed else None)


def test_loading_shows_how_far_it_is(server, build):
    """In percent; the second call has nothing to load."""
    first, second = (list(build().stream_chat(HELLO)) for _ in range(2))
    assert [r.raw.get("done") for r in first if r.raw["phase"] == "loading"] == [None, 0, 25, 50, 75, 100]
    assert [r.raw["phase"] for r in second if r.raw["phase"] == "loading"] == []


# Counting


def test_a_prompt_near_the_window_is_counted_by_the_server(server, build):
    """And refused where it does not fit; a server that is not asked otherwise would say nothing at all."""
    model = build(context_window=1024)
    counted = model.count_tokens(LONG)
    assert model.chat([ChatMessage(role="user", content="word " * 600)], max_tokens=8).raw["counted_tokens"] > 600
    assert server.called("countTokens") == 1
    server.results["countTokens"] = {"tokenCount": 900}
    refused = failure(lambda: model.chat([ChatMessage(role="user", content="word " * 600)]), ContextTooLong)
    assert "900 tokens" in str(refused)
    assert len(server.predictions) == 1
    assert counted > 1024
    assert failure(lambda: model.chat(LONG), ContextTooLong).hint  # by our own count
    assert server.called("countTokens") == 2


@pytest.mark.parametrize("how", ["unknown", "nonsense"])
def test_a_server_that_does_not_count_is_asked_all_the_same(server, build, how):
    """The estimate stands in."""
    if how == "unknown":
        server.unknown.add("applyPromptTemplate")
    else:
        server.results["applyPromptTemplate"] = server.results["countTokens"] = "nonsense"
        server.results["applyPromptTemplate"] = {"formatted": "x"}
    model = build(context_window=1024)
    answer = model.chat([ChatMessage(role="user", content="word " * 600)], max_tokens=8)
    assert answer.raw["finish_reason"] == "length"
    assert answer.raw["counted_tokens"] > 600


def test_a_window_full_of_prompt_is_no_empty_answer(server, llm):
    """A GGUF model ends at once, with nothing written, and calls it a success."""
    server.enqueue(Reply((), stop_reason="contextLengthReached"))
    assert failure(lambda: llm.chat(HELLO), ContextTooLong).reason == "context_too_long"


def test_a_prompt_the_server_cut_is_noticed(server, llm):
    """By a count far below ours."""
    server.enqueue(Reply(stats={"promptTokensCount": 300}))
    raw = llm.chat(LONG).raw
    assert raw["counted_tokens"] > 1000
    assert raw["context_cut"] is True


def test_the_servers_count_corrects_ours(server, build):
    """For this model, also in an object made later."""
    model = build()
    counted = model.count_tokens(LONG)
    server.enqueue(Reply(stats={"promptTokensCount": round(0.8 * counted)}))
    assert "context_cut" not in model.chat(LONG).raw
    assert 0.75 * counted < build().count_tokens(LONG) < 0.85 * counted


def test_the_figures_are_the_servers(server, llm):
    """And the reading speed is that of what was not kept from an earlier call."""
    stats = {"promptTokensCount": 1000, "predictedTokensCount": 7, "timeToFirstTokenSec": 2.0, "tokensPerSecond": 12.5}
    server.enqueue(Reply(stats=stats))
    raw = llm.chat(HELLO).raw
    assert (raw["prompt_tokens"], raw["answer_tokens"], raw["tokens_per_second"]) == (1000, 7, 12.5)
    assert raw["prefill_seconds"] == 2.0
    assert llm.prefill_tokens_per_second == 500


# Loading, unloading, stopping


def test_warming_up_loads_the_model_and_does_not_ask_it(server, build):
    """With the window of the answers, so that it is not loaded twice."""
    model = build()
    assert not model.is_loaded
    assert model.warm_up()["load_seconds"] >= 0
    assert model.is_loaded
    assert server.predictions == []
    assert build().is_loaded


def test_two_calls_at_once_load_the_model_once(config):
    """The second waits for the first."""
    with serve(load_seconds=0.3) as server:
        models = [lm_studio.build(config, QWEN, {"url": server.url}) for _ in range(2)]
        threads = [threading.Thread(target=model.chat, args=(HELLO,), kwargs={"max_tokens": 2}) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.loaded) == 1
        assert len(server.predictions) == 2


def test_a_model_is_loaded_and_unloaded_on_request(server, config):
    """With its progress; loading what is loaded changes nothing."""
    options = {"url": server.url, "context_window": 4096}
    steps = []
    lm_studio.load(config, QWEN, options, progress=steps.append, stop=threading.Event())
    assert [step.done for step in steps] == [0, 0, 25, 50, 75, 100, 100]
    assert {(step.doing, step.total, step.unit) for step in steps} == {("loading", 100, "%")}
    assert server.loaded[QWEN].window == 4096
    lm_studio.load(config, QWEN, options | {"context_window": 512}, progress=steps.append, stop=threading.Event())
    assert server.loaded[QWEN].window == 4096
    server.load(QWEN, 1024, "second")
    server.load(LLAMA)
    lm_studio.unload(config, "second", options)
    assert set(server.loaded) == {QWEN, LLAMA}
    server.load(QWEN, 1024, "third")
    lm_studio.unload(config, QWEN, options)
    assert set(server.loaded) == {"third", LLAMA}
    lm_studio.unload(config, QWEN, options)  # by the name of its model
    lm_studio.unload(config, QWEN, options)  # nothing is left
    assert set(server.loaded) == {LLAMA}


@pytest.mark.parametrize(
    ("model", "reason"), [("nobody", "model_missing"), (NOMIC, "no_text_generation"), (QWEN, "out_of_memory")]
)
def test_what_cannot_be_loaded_says_why(server, config, model, reason):
    """As for an answer."""
    server.load_error = {"title": "Failed to load model", "cause": "out of memory"}
    refused = failure(
        lambda: lm_studio.load(config, model, {"url": server.url}, progress=lambda _: None, stop=threading.Event())
    )
    assert refused.reason == reason


def test_a_stop_ends_a_load_there_too(config):
    """It would go on for an hour."""
    with serve(load_seconds=3600.0) as server:
        stop = threading.Event()

        def progress(step):
            if server.loads:
                stop.set()

        lm_studio.load(config, QWEN, {"url": server.url}, progress=progress, stop=stop)
        server.wait_for(lambda: server.cancelled == ["getOrLoad"])
        server.wait_for(lambda: server.answering == 0)
        assert server.loaded == {}


def test_closing_leaves_the_servers_model_alone(server, build):
    """Somebody else may be using it."""
    model = build()
    model.warm_up()
    model.close()
    assert server.loaded


@pytest.mark.parametrize("phase", ["loading", "reading", "thinking", "writing"])
def test_a_stop_is_told_to_the_server_in_every_phase(config, phase):
    """In words, not only by leaving."""
    with serve(load_seconds=3600.0 if phase == "loading" else 0.0) as server:
        model = lm_studio.build(config, QWEN, {"url": server.url})
        if phase == "reading":
            server.enqueue(Reply(first_pause_seconds=3600.0))
        else:
            thinking = ("hm",) if phase == "thinking" else ()
            server.enqueue(Reply(() if thinking else ("Well", ","), thinking=thinking, end="silence"))
        responses = []
        for response in model.stream_chat(HELLO):
            responses.append(response)
            if response.raw["phase"] == phase and (phase != "reading" or response.raw.get("done")):
                # Before that there is nothing to be told: it is said to load while the connection is made.
                server.wait_for(lambda: any("channelId" in message for _, message in server.messages))
                model.stop()
        assert responses[-1].raw["finish_reason"] == "stopped"
        assert responses[-1].message.content.startswith("Well" if phase == "writing" else "")
        server.wait_for(lambda: server.cancelled == ["getOrLoad" if phase == "loading" else "predict"])
        server.wait_for(lambda: server.answering == 0)
        assert server.hang_ups == []


def test_a_stop_reaches_the_server_also_when_nobody_reads_on(server, llm):
    """A page may have been closed."""
    server.enqueue(Reply(["Well"], end="silence"))

    async def run():
        stream = await llm.astream_chat(HELLO, idle_seconds=3600.0)
        while not (await anext(stream)).delta:
            pass
        llm.stop()
        await asyncio.to_thread(server.wait_for, lambda: server.cancelled == ["predict"])
        return [response.raw["finish_reason"] async for response in stream]

    assert asyncio.run(run()) == ["stopped"]


def test_a_connection_is_closed_also_when_its_loop_ends_meanwhile(server, config):
    """As `asyncio.run` ends one: by cancelling what is left."""
    kept = []  # otherwise the system would close it

    async def leave():
        async with connected(config, server.url, "llm") as connection:
            kept.append(connection)

    async def run():
        leaving = asyncio.create_task(leave())
        while not (goodbyes := [task for task in asyncio.all_tasks() if "Connection.close" in repr(task)]):
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # in which it begins
        goodbyes[0].cancel()
        await asyncio.wait([leaving, *goodbyes])
        return goodbyes[0].cancelled()

    assert asyncio.run(run())
    assert kept[0]._stream.get_extra_info("socket").fileno() == -1


def test_a_finished_answer_is_not_cancelled(server, llm):
    """A server would complain."""
    llm.chat(HELLO)
    server.wait_for(lambda: server.answering == 0)
    assert server.cancelled == []


def test_a_server_that_dies_is_noticed_at_once(config):
    """Before its first word."""
    with serve() as server:
        model = lm_studio.build(config, QWEN, {"url": server.url})
    gone = failure(lambda: model.chat(HELLO), BackendUnavailable)
    assert gone.reason == "unreachable"
    assert gone.hint.endswith("Run: lms server start")


# The stand-in itself


def test_the_bundled_model_writes_through_the_stand_in(config):
    """Real words, real stopping at a limit."""
    with serve(writer=starter_writer(config)) as server:
        model = lm_studio.build(config, QWEN, {"url": server.url, "temperature": 0.0})
        answer = model.chat([ChatMessage(role="user", content="Name three colours.")], max_tokens=12)
    assert len(answer.message.content) > 10
    assert answer.raw["answer_tokens"] <= 12


def test_the_packages_own_client_reads_the_same_from_the_stand_in(server, llm):
    """Another client than ours, which was written for the real server, finds the stand-in to be one."""
    reply = Reply(("Two", " words", "."))
    server.enqueue(reply, reply)
    ours = llm.chat([ChatMessage(role="user", content="Say two words.")])
    with lmstudio.Client(server.url.removeprefix("http://")) as client:
        model = client.llm.model(QWEN)
        theirs = model.respond("Say two words.", config={"maxTokens": 512})
        assert [found.model_key for found in client.list_downloaded_models()] == list(server.models)
        assert model.get_context_length() == server.loaded[QWEN].window
        assert model.count_tokens("Say two words.") == tokens_in("Say two words.")
        assert model.get_load_config().context_length == server.loaded[QWEN].window
        model.unload()
    assert theirs.content == ours.message.content == "Two words."
    assert theirs.stats.stop_reason == "eosFound"
    assert theirs.stats.prompt_tokens_count == ours.raw["prompt_tokens"]
    first, second = server.predictions
    assert first["history"] == second["history"]
    assert server.loaded == {}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "rpcCall", "endpoint": "listLoaded", "callId": 1, "parameter": {}},
        {"type": "rpcCall", "endpoint": "unloadModel", "callId": 1},
        {"type": "rpcCall", "endpoint": "unloadModel", "callId": 1, "parameter": {"identifier": "x", "all": True}},
        {"type": "rpcCall", "endpoint": "listModels", "callId": 1},
        {"type": "rpcCall", "endpoint": "listDownloadedModels", "callId": 1},
        {"type": "rpcCall", "endpoint": "listLoaded", "callId": 0},
        {"type": "channelCreate", "endpoint": "predict", "channelId": 1, "creationParameter": {}},
        {"type": "channelCreate", "endpoint": "getOrLoad", "channelId": 1, "creationParameter": {
            "identifier": QWEN, "loadConfigStack": {"layers": [{"layerName": "apiOverride", "config": {
                "fields": [{"key": "llm.load.window", "value": 5}]}}]}}},
        {"type": "channelCreate", "endpoint": "getOrLoad", "channelId": 1, "creationParameter": {
            "identifier": QWEN, "loadConfigStack": {"layers": [{"layerName": "apiOverride", "config": {
                "fields": [{"key": "llm.load.contextLength", "value": "5"}]}}]}}},
        {"type": "channelSend", "channelId": 7, "message": {"type": "cancel"}},
        {"type": "hello"},
    ],
    ids=["no parameter", "a parameter", "unknown field", "endpoint", "part", "number", "nothing", "setting", "value",
         "channel", "type"],
)  # fmt: skip
def test_the_stand_in_is_strict(message):
    """A message that a real server would misunderstand is refused."""
    with serve(strict=False) as server, connect(f"{server.url}/llm".replace("http", "ws"), proxy=None) as client:
        client.send(json.dumps({"authVersion": 1, "clientIdentifier": "a", "clientPasskey": "b"}))
        assert json.loads(client.recv()) == {"success": True}
        client.send(json.dumps(message))
        assert json.loads(client.recv())["type"] == "communicationWarning"
        assert len(server.violations) == 1


def test_the_stand_in_wants_an_introduction():
    """Before anything else; what it refuses fails the test that sent it."""
    misled = serve()
    server = misled.__enter__()
    with connect(f"{server.url}/llm".replace("http", "ws"), proxy=None) as client:
        client.send(json.dumps({"type": "rpcCall", "endpoint": "listLoaded", "callId": 1}))
        with pytest.raises(ConnectionClosed):
            client.recv()
    with pytest.raises(AssertionError, match="no introduction"):
        misled.__exit__(None, None, None)
