"""The clouds by their wire formats: real packages of the providers, over our transport, against stand-ins."""

from __future__ import annotations

import asyncio
import binascii
import json
import logging
import socket
import struct
import subprocess
import time
import tomllib
import traceback
from pathlib import Path
from unittest.mock import ANY

import pytest
from llama_index.core.llms import ChatMessage
from servers import clouds
from servers.clouds import FORMATS, KEY, MODEL

from docmind import keys
from docmind.backends import backend, cloud_llm
from docmind.backends.places import allow
from docmind.config import Config
from docmind.errors import BackendError, BackendUnavailable, ConsentMissing
from docmind.settings import Settings, save_settings

ROOT = Path(__file__).parents[2]
QUESTION = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="one two three four")]
HELD_BACK = {
    "openai": "content_filter", "azure-openai": "content_filter", "anthropic": "refusal", "cohere": "ERROR_TOXIC",
    "bedrock": "guardrail_intervened", "gemini": "SAFETY", "vertex": "SAFETY", "mistral": "error",
}  # fmt: skip
ERRORS_IN_STREAMS = {
    "openai": {"error": {"message": "The server had an error", "type": "server_error", "code": None}},
    "azure-openai": {"error": {"message": "The server had an error", "type": "server_error", "code": None}},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    "gemini": {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}},
    "vertex": {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}},
    "bedrock": ("modelStreamErrorException", {"message": "The model failed"}),
}


@pytest.fixture(params=[name for name in FORMATS if clouds.is_installed(name)])
def name(request):
    """A cloud whose package is installed."""
    return request.param


@pytest.fixture
def server(name, tmp_path):
    """A stand-in whose answers have six words."""
    cloud_llm._refused.clear()
    with clouds.reached(name, tmp_path, words=6) as (server, options):
        server.options = options
        yield server


@pytest.fixture
def llm(name, server, config):
    """A model of it."""
    return build(name, server, config)


def build(name, server, config, **options):
    """A model of a stand-in."""
    return backend(name).build(config, MODEL, {**server.options, "context_window": 8000, **options})


def reason(call):
    """What went wrong."""
    with pytest.raises(BackendError) as caught:
        call()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", FORMATS)
def test_a_cloud_is_tested_where_its_package_is_installed(name):
    """Here and in the conformance suite; tests/README.md says how to test all."""
    clouds.skip_unless_installed(name)
    assert backend(name).LABEL


# What an answer is


def test_an_answer_comes_in_pieces_and_is_complete(llm, server):
    """The deltas add up; the figures are the provider's."""
    responses = list(llm.stream_chat(QUESTION))
    text = "one two three four one two"
    assert "".join(response.delta or "" for response in responses) == responses[-1].message.content == text
    assert sum(bool(response.delta) for response in responses) == 6
    assert responses[-1].raw == {
        "phase": "writing", "finish_reason": "stop", "counted_tokens": ANY, "prompt_tokens": 4, "cached_tokens": ANY,
        "answer_tokens": 6, "first_token_seconds": ANY, "tokens_per_second": ANY, "context_window": 8000,
    }  # fmt: skip
    assert len(server.chats) == 1
    assert "Be kind." in json.dumps(server.chats)


def test_an_answer_at_its_limit_says_so(llm):
    """It is shown as cut."""
    last = llm.chat(QUESTION, max_tokens=3)
    assert (last.message.content, last.raw["finish_reason"]) == ("one two three", "length")


def test_a_stream_that_just_ends_is_no_answer(llm, server):
    """However proper its end is: LlamaIndex's own classes give it as a complete answer."""
    server.finish = ""
    assert reason(lambda: llm.chat(QUESTION)).reason == "no_end_marker"


def test_an_answer_that_was_held_back_is_none(llm, name, server):
    """The provider's own word is told."""
    server.finish = HELD_BACK[name]
    error = reason(lambda: llm.chat(QUESTION))
    assert error.reason == ("server_failed" if name == "mistral" else "filtered")
    assert HELD_BACK[name] in str(error)


def test_an_end_that_nobody_knows_is_no_completion(llm, name, server):
    """A new word may mean anything."""
    if name in ("gemini", "vertex"):
        server.finish = "OTHER"
    elif name in ("openai", "azure-openai", "anthropic", "mistral", "bedrock"):
        server.finish = "odd"
    else:
        pytest.skip("its package knows its words by heart")
    assert reason(lambda: llm.chat(QUESTION)).reason == "no_end_marker"


def test_a_question_that_was_held_back_has_no_answer(config, tmp_path):
    """Gemini answers it without a candidate."""
    clouds.skip_unless_installed("gemini")
    with clouds.reached("gemini", tmp_path) as (server, options):
        server.options, server.is_blocked = options, True
        assert reason(lambda: build("gemini", server, config).chat(QUESTION)).reason == "filtered"


def test_thoughts_stay_outside_the_answer(llm, name, server):
    """Where the provider shows them."""
    if name in ("openai", "azure-openai"):
        pytest.skip("this interface does not show them")
    server.thoughts = "Let me see."
    responses = list(llm.stream_chat(QUESTION))
    thought = next(response for response in responses if response.additional_kwargs)
    assert thought.raw["phase"] == "thinking"
    assert thought.additional_kwargs["thinking_delta"] == "Let me see."
    assert responses[-1].message.content == "one two three four one two"


@pytest.mark.parametrize("is_heeded", [True, False], ids=["by the provider", "by nobody but us"])
def test_an_answer_ends_in_front_of_a_stop_text(llm, name, server, is_heeded):
    """Also where the model takes none."""
    if not is_heeded:
        server.refuses = {llm._cloud.wire.get("stop", "stop"), "stop_sequences"}
    last = llm.chat(QUESTION, stop=[" thr", "never", "x", "y", "z"])
    assert (last.message.content, last.raw["finish_reason"]) == ("one two", "stop")
    assert "settings_left_out" not in last.raw


def test_what_a_model_refuses_is_left_out_and_named(llm, name, server):
    """The request was not accepted, so it goes once more; the next one knows."""
    top_p = {"cohere": "p", "bedrock": "topP", "gemini": "topP", "vertex": "topP"}.get(name, "top_p")
    server.refuses = {"temperature", top_p}
    last = llm.chat(QUESTION, top_p=0.5)
    assert (last.raw["finish_reason"], sorted(last.raw["settings_left_out"])) == ("stop", ["temperature", "top_p"])
    asked = len(server.chats)
    assert llm.chat(QUESTION).raw["settings_left_out"] == ["temperature"]
    assert len(server.chats) == asked + 1


def test_a_deployment_of_a_new_model_is_told_the_limit_by_its_new_name(config, tmp_path):
    """Azure does not say which model a deployment is."""
    clouds.skip_unless_installed("azure-openai")
    cloud_llm._refused.clear()
    with clouds.reached("azure-openai", tmp_path, words=6) as (server, options):
        server.options, server.refuses = options, {"max_tokens"}
        last = build("azure-openai", server, config).chat(QUESTION, max_tokens=3)
    assert last.raw["finish_reason"] == "length"
    assert "settings_left_out" not in last.raw


# What goes wrong


def test_a_broken_connection_is_no_answer(llm, server):
    """In the middle of it."""
    server.is_breaking_off = True
    assert reason(lambda: llm.chat(QUESTION)).reason == "no_end_marker"


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [(401, "no", "key_rejected"), (403, "no", "key_rejected"), (404, "The model does not exist", "model_missing"),
     (429, "slow down", "rate_limited"), (429, "You exceeded your current quota", "quota_exceeded"),
     (400, "prompt is too long: 9 tokens > 8 maximum", "context_too_long"), (500, "sorry", "server_failed"),
     (529, "Overloaded", "server_failed"), (200, "<html>", "bad_response")],
)  # fmt: skip
def test_a_refusal_has_a_reason_and_is_asked_for_once(llm, server, status, said, expected):
    """Never twice: what may have been accepted is paid for."""
    path = _chat_path(llm, server)
    body = b"<html>Bad gateway</html>" if said == "<html>" else json.dumps(server.wire.error(status, said)).encode()
    server.instead[path] = (status, body)
    assert reason(lambda: llm.chat(QUESTION)).reason == expected
    assert len(server.chats) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(llm, name, server, status):
    """A 307 would send the whole prompt, and the key, to another host."""
    path = _chat_path(llm, server)
    with clouds.serve(name) as elsewhere:
        _answer_questions_by(server, status, {}, {"Location": f"{elsewhere.url}{path}"})
        error = reason(lambda: llm.chat(QUESTION))
        assert error.reason == "bad_response"
        assert elsewhere.url in str(error)
        assert not elsewhere.requests
    assert len(server.chats) == 2


def _chat_path(llm, server):
    """Where questions are sent."""
    llm.chat(QUESTION, max_tokens=1)
    return next(path for path, _ in server.requests if server.wire.is_chat(path))


def _answer_questions_by(server, status, body, headers):
    """Whatever is asked; tokens are still given."""
    answer = server.answer

    async def answered(connection, method, path, given, request):
        if path == "/token":
            return await answer(connection, method, path, given, request)
        return await connection.whole(status, body, headers)

    server.answer = answered


def test_retry_after_is_told(llm, server):
    """The hint says when."""
    _answer_questions_by(server, 429, server.wire.error(429, "slow down"), {"Retry-After": "17"})
    assert "17 seconds" in reason(lambda: llm.chat(QUESTION)).hint


def test_an_error_in_the_middle_of_a_stream_is_told(llm, name, server):
    """By the provider's own event."""
    if name not in ERRORS_IN_STREAMS:
        pytest.skip("it has no such event")

    async def fail(connection, request):
        for event in server.wire.begin(3):
            await server._send(connection, event)
        await server._send(connection, server.wire.word("one"))
        await server._send(connection, ERRORS_IN_STREAMS[name])
        await connection.end()

    server._stream = fail
    assert reason(lambda: llm.chat(QUESTION)).reason == "server_failed"


@pytest.mark.parametrize("nonsense", [b"data: {\n\n", b'data: {"a": 1}\n\n', b"\x00" * 64, b"data: []\n\n"])
def test_nonsense_in_a_stream_is_an_error_with_a_reason(llm, server, nonsense):
    """Whatever a provider's package makes of it."""

    async def talk(connection, request):
        await connection.piece(nonsense)
        await connection.end()

    server._stream = talk
    assert reason(lambda: llm.chat(QUESTION)).reason in ("bad_response", "no_end_marker", "server_failed")


def test_a_line_without_end_is_not_read_for_ever(llm, server, monkeypatch):
    """Its bytes are counted under the provider's package."""
    monkeypatch.setattr("docmind.backends.cloud_transport.LINE_BYTES", 1 << 16)
    monkeypatch.setattr("docmind.backends.bedrock.EVENT_BYTES", 1 << 16)

    is_binary = "amazon" in server.wire.kind

    async def talk(connection, request):
        long = struct.pack("!II", 1 << 22, 0)  # the beginning of Amazon's event of four megabytes
        await connection.piece(long + struct.pack("!I", binascii.crc32(long)) if is_binary else b"data: ")
        for _ in range(64):
            await connection.piece(b"x" * (1 << 14))
        await asyncio.sleep(60)

    server._stream = talk
    assert reason(lambda: llm.chat(QUESTION)).reason == "bad_response"


def test_silence_is_a_stall(name, server, config):
    """Comments that keep a connection open are no words."""

    async def talk(connection, request):
        for event in server.wire.begin(3):
            await server._send(connection, event)
        while True:
            if "amazon" not in server.wire.kind:
                await connection.piece(b"\n" if name in ("gemini", "vertex") else b": ping\n\n")
            await asyncio.sleep(0.05)

    server._stream = talk
    assert reason(lambda: build(name, server, config, first_token_seconds=1).chat(QUESTION)).reason == "stalled"


def test_a_stop_closes_the_connection(llm, server):
    """Within a second: that is what stops a cloud, and its bill."""
    server.words, server.pace_seconds = None, 0.02
    responses = []
    for response in llm.stream_chat(QUESTION, max_tokens=5000):
        responses.append(response)
        if sum(bool(r.delta) for r in responses) == 3:
            asked = time.monotonic()
            llm.stop()
    assert time.monotonic() - asked < 1.0
    assert responses[-1].raw["finish_reason"] == "stopped"
    server.wait_for_hang_up()


def test_the_event_loop_goes_on(llm, server):
    """Nothing here is synchronous underneath."""
    server.words, server.pace_seconds = 20, 0.02

    async def run():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.create_task(tick())
        seen = [ticks async for response in await llm.astream_chat(QUESTION) if response.delta]
        ticker.cancel()
        return seen

    seen = asyncio.run(run())
    assert len(set(seen)) > 10


# Where it goes


def test_nothing_goes_by_a_proxy_of_the_environment(llm, server, monkeypatch):
    """Neither the question nor the token."""
    with socket.create_server(("127.0.0.1", 0)) as sink:
        sink.settimeout(0.2)
        address = f"http://127.0.0.1:{sink.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.lower(), address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert llm.chat(QUESTION).raw["finish_reason"] == "stop"
        with pytest.raises(TimeoutError):
            sink.accept()


def test_an_address_on_the_internet_needs_consent(name, tmp_path, monkeypatch):
    """Building lists models, which carries no text; a question is not sent, and nothing is under “Local only”."""
    config = Config(home=tmp_path / "home")
    asked = []
    monkeypatch.setattr("docmind.backends.careful_http._Network.connect_tcp", _refuse(asked))
    with clouds.reached(name, tmp_path, words=6) as (server, options):
        llm = build(name, _Server({**options}), config)
        far = llm.model_copy(update={"url": "https://api.example.com"})
        keys.keep_key("https://api.example.com", KEY)
        with pytest.raises(ConsentMissing) as caught:
            far.chat(QUESTION)
        assert caught.value.reason == "consent_missing"
        assert not asked
        allow(config, "https://api.example.com")
        with pytest.raises(BackendUnavailable):
            far.chat(QUESTION)
        assert asked == ["api.example.com"]
        save_settings(config, Settings(local_only=True, allowed=("https://api.example.com:443",)))
        assert reason(lambda: far.chat(QUESTION)).reason == "local_only"
        found = backend(name).detect(config, {**options, "url": "https://api.example.com"})
        assert (found.available, found.reason) == (False, "local_only")
        assert asked == ["api.example.com"]
        assert not server.chats
    keys.forget_key("https://api.example.com")


class _Server:
    def __init__(self, options):
        self.options = options


def _refuse(asked):
    """A network that leads to this machine only."""
    from docmind.backends.careful_http import _Network

    connect = _Network.connect_tcp

    async def guarded(self, host, *arguments, **named):
        import httpcore

        if host != "127.0.0.1":
            asked.append(host)
            raise httpcore.ConnectError("not from a test")
        return await connect(self, host, *arguments, **named)

    return guarded


# Keys


def test_a_key_is_shown_nowhere(name, server, config, caplog, monkeypatch):
    """Not by the model, its errors, tracebacks or logs, even when the service repeats it."""
    caplog.set_level(logging.DEBUG)
    for logger in ("httpx", "httpcore", "httpx2", "openai", "anthropic", "botocore", "botocore.auth", "google"):
        caplog.set_level(logging.DEBUG, logger=logger)
    llm = build(name, server, config)
    llm.chat(QUESTION)
    path = _chat_path(llm, server)
    shown = [repr(llm), str(llm.to_dict()), llm.model_dump_json(), llm.to_json(), str(llm.metadata)]
    for status in (401, 400, 500):
        server.instead[path] = (status, json.dumps(server.wire.error(status, f"wrong key {KEY}!")).encode())
        try:
            llm.chat(QUESTION)
        except BackendError as error:
            shown += [str(error), error.hint, repr(error), "".join(traceback.format_exception(error))]
    server.instead.clear()
    server.key = "another"
    found = backend(name).detect(config, server.options)
    shown += [str(found), caplog.text, *(str(record.__dict__) for record in caplog.records if record.name != "root")]
    assert len(shown) > 8
    assert not [text for text in shown if KEY in text]


def test_a_signed_request_shows_neither_secret_nor_session(config, tmp_path, monkeypatch, caplog):
    """Credentials by AWS's own chain: the secret never leaves, the session's token stays out of the log."""
    clouds.skip_unless_installed("bedrock")
    caplog.set_level(logging.DEBUG)
    secret = "secret-" + KEY
    for variable, value in (("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", secret),
                            ("AWS_SESSION_TOKEN", KEY), ("AWS_REGION", "eu-central-1")):  # fmt: skip
        monkeypatch.setenv(variable, value)
    with clouds.serve("bedrock", words=6) as server:
        llm = backend("bedrock").build(config, MODEL, {"url": server.url, "context_window": 8000, "models": [MODEL]})
        assert llm.chat(QUESTION).raw["finish_reason"] == "stop"
        assert not [headers for headers in server.headers if secret in str(headers)]
        server.key = "another"
        assert reason(lambda: llm.chat(QUESTION)).reason == "key_rejected"
    assert KEY not in caplog.text


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_key_nothing_is_asked(name, tmp_path, monkeypatch, config):
    """The hint says how to give one."""
    clouds.skip_unless_installed(name)
    asked = []
    monkeypatch.setattr("docmind.backends.careful_http._Network.connect_tcp", _refuse(asked))
    found = backend(name).detect(config)
    assert (found.available, found.reason, found.models) == (False, "key_missing", ())
    assert found.hint
    assert found.url.startswith("https://")
    assert not asked
    assert reason(lambda: backend(name).build(config, MODEL, {"context_window": 8000})).reason == "key_missing"


@pytest.mark.parametrize(
    ("name", "variables"),
    [("openai", {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "{url}"}),
     ("azure-openai", {"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": "{url}",
                       "AZURE_OPENAI_DEPLOYMENT": MODEL}),
     ("anthropic", {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "{url}"}),
     ("mistral", {"MISTRAL_API_KEY": KEY, "MISTRAL_ENDPOINT": "{url}"}),
     ("cohere", {"CO_API_KEY": KEY, "CO_API_URL": "{url}"}),
     ("gemini", {"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": "{url}"}),
     ("bedrock", {"AWS_BEARER_TOKEN_BEDROCK": KEY, "AWS_REGION": "eu-central-1",
                  "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "{url}"})],
)  # fmt: skip
def test_key_and_address_may_stand_in_the_environment(name, variables, monkeypatch, config):
    """Where the providers' own tools look for them."""
    clouds.skip_unless_installed(name)
    with clouds.serve(name, words=6) as server:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value.format(url=server.url))
        found = backend(name).detect(config)
        assert (found.available, found.url) == (True, server.url)
        assert found.models
        named = {"models": [MODEL]} if name == "bedrock" else {}
        llm = backend(name).build(config, MODEL, {"context_window": 8000, **named})
        assert llm.chat(QUESTION).raw["finish_reason"] == "stop"


def test_a_wrong_key_is_found_out_before_a_question(name, server, config):
    """Where models are listed for nobody else."""
    server.key = "another"
    if server.wire.lists_for_anyone:
        assert reason(lambda: build(name, server, config).chat(QUESTION)).reason == "key_rejected"
    else:
        assert backend(name).detect(config, server.options).reason == "key_rejected"
        assert reason(lambda: build(name, server, config)).reason == "key_rejected"


# What is there


def test_models_are_listed_with_their_windows(name, server, config):
    """Where the provider says them; those that make no text are marked or left out."""
    found = backend(name).models(config, server.options)
    names = [model.name for model in found if model.reason is None]
    assert MODEL in names
    assert not [listed for listed in names if "embed" in listed]
    if name in ("anthropic", "mistral", "cohere", "gemini"):
        assert backend(name).build(config, MODEL, server.options).context_window == 8000


def test_a_window_that_nobody_knows_is_asked_for(name, server, config):
    """Never guessed in silence."""
    if name in ("anthropic", "mistral", "cohere", "gemini"):
        pytest.skip("the provider says it")
    assert reason(lambda: backend(name).build(config, MODEL, server.options)).reason == "window_unknown"


@pytest.mark.parametrize(
    ("name", "model", "window"),
    [("openai", "gpt-4o", 128_000), ("azure-openai", "gpt-4o", 128_000), ("bedrock", "amazon.nova-lite-v1:0", 300_000),
     ("vertex", "gemini-2.5-flash", 1_048_576)],
)  # fmt: skip
def test_the_window_of_a_known_model_stands_in_a_table(name, model, window, config, tmp_path):
    """LlamaIndex's, where the provider lists none."""
    clouds.skip_unless_installed(name)
    with clouds.reached(name, tmp_path) as (_, options):
        if name == "azure-openai":
            options["models"] = [model]
        assert backend(name).build(config, model, options).context_window == window
        assert backend(name).build(config, model, {**options, "context_window": 9000}).context_window == 9000


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_that_installs_a_cloud_is_its_extra(name):
    """The hint and pyproject.toml say the same."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    known = {"gemini": "google", "vertex": "google"}
    assert extras[known.get(name, name)] == [backend(name).CLOUD.requirement]


def test_a_cloud_that_is_not_installed_names_the_command(config, monkeypatch):
    """Whoever has no extra is told which."""
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    for name in FORMATS:
        found = backend(name).detect(config)
        assert (found.available, found.reason) == (False, "not_installed")
        assert found.hint.startswith('Run: pip install "llama-index-llms-')
        with pytest.raises(BackendUnavailable) as caught:
            backend(name).build(config, MODEL)
        assert caught.value.reason == "not_installed"


def test_looking_at_all_clouds_imports_none_of_them(tmp_path, in_child):
    """And takes no time: it happens whenever the app is opened."""
    code = f"""
import sys, time
from pathlib import Path
from docmind.backends import backend
from docmind.config import Config
import keyring, keyring.backends.chainer
began = time.perf_counter()
for name in {list(FORMATS)!r}:
    backend(name).detect(Config(Path({str(tmp_path)!r})))
print(time.perf_counter() - began)
heavy = "llama_index openai anthropic mistralai cohere botocore google.genai google.auth httpx pydantic"
print([n for n in heavy.split() if n in sys.modules])
"""
    environment = in_child.environment | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([in_child.python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 5  # 0.1 on a quiet machine
