"""Stand-ins for the clouds: each speaks one provider's wire format, and repeats the words of the question.

What they receive and what they send is checked against the providers' own packages, where those are installed: a
request with a field that the real service does not know is a violation, and so is an event it would not send.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import re
import struct
from urllib.parse import unquote

import pytest
from servers.http_by_hand import HandServer, running

from docmind.backends import backend
from docmind.keys import forget_key, keep_key

# Where keys and addresses are looked for. No test looks there unless it says so.
VARIABLES = """
OPENAI_API_KEY OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID AZURE_OPENAI_API_KEY AZURE_OPENAI_ENDPOINT
AZURE_OPENAI_DEPLOYMENT AZURE_OPENAI_AD_TOKEN ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL MISTRAL_API_KEY
MISTRAL_ENDPOINT CO_API_KEY COHERE_API_KEY CO_API_URL GEMINI_API_KEY GOOGLE_API_KEY GOOGLE_GEMINI_BASE_URL
GOOGLE_VERTEX_BASE_URL GOOGLE_APPLICATION_CREDENTIALS GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_LOCATION
GOOGLE_GENAI_USE_VERTEXAI AWS_BEARER_TOKEN_BEDROCK AWS_REGION AWS_DEFAULT_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
AWS_SESSION_TOKEN AWS_PROFILE AWS_WEB_IDENTITY_TOKEN_FILE AWS_ENDPOINT_URL_BEDROCK_RUNTIME
""".split()
KEY = "canary-5f1d9e-never-shown"
MODEL = "model-1"


def is_installed(cloud):
    """Whether the cloud's package, an extra, is there."""
    try:
        importlib.metadata.distribution(backend(cloud).CLOUD.requirement.partition(">")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def skip_unless_installed(cloud):
    """Saying how to install it."""
    if not is_installed(cloud):
        pytest.skip(f"{cloud} is an extra that is not installed: {backend(cloud).CLOUD.install}")


@contextlib.contextmanager
def reached(cloud, folder, **settings):
    """A stand-in with a key for it, and the options that lead there."""
    with serve(cloud, **settings) as server:
        options = {"url": server.url}
        if cloud == "vertex":
            service_account(folder / "account.json", server.url)
            options |= {"credentials": str(folder / "account.json"), "project": "p-1", "location": "global"}
        if cloud == "bedrock":
            options["region"] = "eu-central-1"
        if cloud in ("azure-openai", "bedrock", "vertex"):
            options["models"] = [MODEL]
        keep_key(server.url, KEY)
        try:
            yield server, options
        finally:
            forget_key(server.url)


@contextlib.contextmanager
def serve(cloud, **settings):
    """A stand-in that listens, until the block ends."""
    with running(CloudServer(FORMATS[cloud](), **settings)) as server:
        yield server


class CloudServer(HandServer):
    """A cloud.

    Attributes:
        words: How many words an answer has at most, before it is complete; None: it goes on until `max_tokens`.
        finish: The provider's word for the end, in place of the right one.
        refuses: Arguments, by the provider's names, that the model does not take.
        after: Called with the number of words sent, before each.
    """

    def __init__(self, wire, *, pace_seconds=0.0, words=None):
        super().__init__()
        self.wire, self.pace_seconds, self.words = wire, pace_seconds, words
        self.key = KEY
        self.finish = None
        self.refuses: set[str] = set()
        self.thoughts = ""
        self.headers_instead: dict[str, str] = {}
        self.is_blocked = False  # the question itself is held back

    @property
    def chats(self):
        """The bodies of all questions."""
        return [body for path, body in self.requests if self.wire.is_chat(path)]

    async def answer(self, connection, method, path, headers, request):
        wire = self.wire
        if method == "POST" and path == "/token":
            token = {"access_token": KEY, "expires_in": 3600, "token_type": "Bearer"}
            return await connection.whole(200, token)
        if headers.get("accept-encoding") != "identity":
            self.note(self.violations, "compressed answers are accepted")
        if wire.key_of(headers) != self.key and not (method == "GET" and wire.lists_for_anyone):
            said = f"Incorrect API key provided: {wire.key_of(headers)}"
            return await connection.whole(401, wire.error(401, said))
        if method == "GET":
            listing = wire.listing(path)
            return await connection.whole(*((404, {}) if listing is None else (200, listing)))
        if not wire.is_chat(path) or request is None:
            return await connection.whole(404, wire.error(404, "no such path"))
        if refused := wire.named_in(request) & self.refuses:
            name = sorted(refused)[0]
            said = f"Unsupported parameter: '{name}' is not supported with this model."
            return await connection.whole(400, wire.error(400, said))
        try:
            wire.check(request, path)
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            self.note(self.violations, f"{type(error).__name__}: {error}")
        if MODEL not in unquote(path) + str(request.get("model")):
            return await connection.whole(404, wire.error(404, "The model does not exist"))
        await connection.begin(200, wire.kind)
        return await self._stream(connection, request)

    async def _stream(self, connection, request):
        wire = self.wire
        question, most, stops = wire.question(request), *wire.limits(request)
        asked = len(question.split())
        finish = "length" if self.words is None or (most or 1 << 30) < self.words else "stop"
        text = " ".join(itertools.islice(itertools.cycle(question.split()), min(most or 8000, self.words or 8000)))
        if found := [at for stop in stops if (at := text.find(stop)) >= 0]:
            text, finish = text[: min(found)], "stop"
        pieces = re.findall(r"\s*\S+|\s+", text)
        for event in wire.begin(asked):
            await self._send(connection, event)
        if self.is_blocked:
            await self._send(connection, wire.blocked())
            return await connection.end()
        if self.thoughts:
            await self._send(connection, wire.thought(self.thoughts))
        for written, piece in enumerate(pieces):
            if self.is_breaking_off and written > 2:
                return connection.writer.transport.abort()
            await asyncio.sleep(self.pace_seconds)
            await self._send(connection, wire.word(piece))
        if self.finish != "":
            for event in wire.finish(self.finish or wire.ends[finish], asked, len(pieces)):
                await self._send(connection, event)
        return await connection.end()

    async def _send(self, connection, event):
        await connection.piece(self.wire.encode(event))


class Wire:
    """One provider's format. What is here is how most of them do it."""

    kind = "text/event-stream"
    lists_for_anyone = False
    ends = {"stop": "stop", "length": "length"}  # noqa: RUF012
    path = "/chat/completions"

    def is_chat(self, path):
        return path.partition("?")[0].endswith(self.path)

    def key_of(self, headers):
        return headers.get("authorization", "").removeprefix("Bearer ")

    def error(self, status, said):
        return {"error": {"message": said, "type": "error", "code": None}}

    def named_in(self, request):
        return set(request)

    def question(self, request):
        return request["messages"][-1]["content"]

    def limits(self, request):
        return request.get("max_completion_tokens", request.get("max_tokens")), request.get("stop") or []

    def begin(self, read):
        return []

    def encode(self, event):
        data = event if isinstance(event, str) else json.dumps(event)
        return f"data: {data}\n\n".encode()

    def blocked(self):
        raise NotImplementedError


class OpenAIWire(Wire):
    """OpenAI's chat completions."""

    def listing(self, path):
        if not path.endswith("/models"):
            return None
        names = (MODEL, "gpt-4o", "text-embedding-3-small")
        return {"object": "list", "data": [{"id": n, "object": "model", "created": 1, "owned_by": "x"} for n in names]}

    def check(self, request, path):
        from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

        strange = set(request) - _inherited(CompletionCreateParamsStreaming)
        assert not strange, strange
        for message in request["messages"]:
            _adapter("openai.types.chat", "ChatCompletionMessageParam").validate_python(message)
        assert request["stream"] is True
        assert len(request.get("stop") or []) <= 4

    def _chunk(self, choices, usage=None):
        return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices,
                "usage": usage}  # fmt: skip

    def begin(self, read):
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])]

    def word(self, text):
        return self._chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}])

    def thought(self, text):
        return self._chunk([{"index": 0, "delta": {}, "finish_reason": None}])

    def finish(self, reason, read, written):
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
                 "prompt_tokens_details": {"cached_tokens": 0}}  # fmt: skip
        end = self._chunk([{"index": 0, "delta": {}, "finish_reason": reason}])
        return [end, self._chunk([], usage), "[DONE]"]

    def encode(self, event):
        if not isinstance(event, str) and _is_there("openai"):
            from openai.types.chat import ChatCompletionChunk

            if event.get("choices") and event["choices"][0]["finish_reason"] in (None, "stop", "length"):
                ChatCompletionChunk.model_validate(event)
        return super().encode(event)


class AzureWire(OpenAIWire):
    """The same below a deployment, with another header."""

    def is_chat(self, path):
        return path.startswith("/openai/deployments/") and "api-version=" in path and super().is_chat(path)

    def listing(self, path):
        return {"data": [], "object": "list"} if path.startswith("/openai/models?api-version=") else None

    def key_of(self, headers):
        assert "authorization" not in headers
        return headers.get("api-key", "")

    def begin(self, read):
        filtered = {"prompt_index": 0, "content_filter_results": {}}
        return [self._chunk([]) | {"prompt_filter_results": [filtered]}, *super().begin(read)]


class AnthropicWire(Wire):
    """The Messages API: named events."""

    path = "/v1/messages"
    ends = {"stop": "end_turn", "length": "max_tokens"}  # noqa: RUF012

    def key_of(self, headers):
        assert headers.get("anthropic-version") == "2023-06-01"  # the next one refuses a temperature
        return headers.get("x-api-key") or super().key_of(headers)

    def error(self, status, said):
        return {"type": "error", "error": {"type": "invalid_request_error", "message": said}}

    def listing(self, path):
        if not path.startswith("/v1/models"):
            return None
        known = {"type": "model", "id": MODEL, "display_name": "M", "created_at": "2025-01-01T00:00:00Z"}
        return {"data": [known | {"max_input_tokens": 8000}], "has_more": False, "first_id": MODEL, "last_id": MODEL}

    def check(self, request, path):
        from anthropic.types.message_create_params import MessageCreateParamsStreaming

        strange = set(request) - _inherited(MessageCreateParamsStreaming) - {"temperature", "top_p", "top_k"}
        assert not strange, strange
        for message in request["messages"]:
            _adapter("anthropic.types", "MessageParam").validate_python(message)
        assert request["stream"] is True
        assert request["max_tokens"] > 0
        assert not {"temperature", "top_p"} <= set(request)

    def question(self, request):
        content = request["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(block["text"] for block in content)

    def limits(self, request):
        return request["max_tokens"], request.get("stop_sequences") or []

    def begin(self, read):
        message = {"id": "m1", "type": "message", "role": "assistant", "content": [], "model": MODEL,
                   "stop_reason": None, "stop_sequence": None,
                   "usage": {"input_tokens": read, "output_tokens": 1}}  # fmt: skip
        return [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
        ]

    def word(self, text):
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}

    def thought(self, text):
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": text}}

    def finish(self, reason, read, written):
        return [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None},
             "usage": {"output_tokens": written}},
            {"type": "message_stop"},
        ]  # fmt: skip

    def encode(self, event):
        is_odd = event["type"] in ("ping", "error") or event.get("delta", {}).get("stop_reason") == "odd"
        if not is_odd and _is_there("anthropic"):
            _adapter("anthropic.types", "RawMessageStreamEvent").validate_python(event)
        return f"event: {event['type']}\n".encode() + super().encode(event)


class MistralWire(Wire):
    """Like OpenAI's, with windows in its list."""

    path = "/v1/chat/completions"

    def error(self, status, said):
        return {"object": "error", "message": said, "type": "error", "code": status}

    def listing(self, path):
        if path != "/v1/models":
            return None
        abilities = {"completion_chat": True, "completion_fim": False, "function_calling": True, "fine_tuning": False}
        known = {"object": "model", "created": 1, "owned_by": "x", "max_context_length": 8000}
        return {"object": "list", "data": [
            known | {"id": MODEL, "capabilities": abilities},
            known | {"id": "embed-1", "capabilities": abilities | {"completion_chat": False}},
        ]}  # fmt: skip

    def check(self, request, path):
        from mistralai.client.models import ChatCompletionStreamRequest

        strange = set(request) - set(ChatCompletionStreamRequest.model_fields)
        assert not strange, strange
        ChatCompletionStreamRequest.model_validate(request)
        assert request["stream"] is True

    def question(self, request):
        content = request["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(block["text"] for block in content)

    def limits(self, request):
        stop = request.get("stop") or []
        return request["max_tokens"], [stop] if isinstance(stop, str) else stop

    def _chunk(self, delta, reason=None, usage=None):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice],
                **({"usage": usage} if usage else {})}  # fmt: skip

    def begin(self, read):
        return [self._chunk({"role": "assistant", "content": ""})]

    def word(self, text):
        return self._chunk({"content": text})

    def thought(self, text):
        return self._chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]})

    def finish(self, reason, read, written):
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return [self._chunk({"content": ""}, reason, usage), "[DONE]"]


class CohereWire(Wire):
    """Version 2 of Cohere's chat."""

    path = "/v2/chat"
    ends = {"stop": "COMPLETE", "length": "MAX_TOKENS"}  # noqa: RUF012

    def error(self, status, said):
        return {"id": "e1", "message": said}

    def listing(self, path):
        if not path.startswith("/v1/models?endpoint=chat"):
            return None
        return {"models": [{"name": MODEL, "endpoints": ["chat"], "context_length": 8000.0, "finetuned": False}]}

    def check(self, request, path):
        from cohere.v2.client import V2Client

        strange = set(request) - set(inspect.signature(V2Client.chat_stream).parameters) - {"stream"}
        assert not strange, strange
        _adapter("cohere.types", "ChatMessages").validate_python(request["messages"])
        assert request["stream"] is True

    def limits(self, request):
        return request["max_tokens"], request.get("stop_sequences") or []

    def begin(self, read):
        start = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        text = {"message": {"content": {"type": "text", "text": ""}}}
        return [
            {"id": "m1", "type": "message-start", "delta": {"message": start}},
            {"type": "content-start", "index": 0, "delta": text},
        ]

    def word(self, text):
        return {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}}

    def thought(self, text):
        return {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"thinking": text}}}}

    def finish(self, reason, read, written):
        tokens = {"input_tokens": float(read), "output_tokens": float(written)}
        usage = {"billed_units": tokens, "tokens": tokens}
        return [
            {"type": "content-end", "index": 0},
            {"type": "message-end", "delta": {"finish_reason": reason, "usage": usage}},
        ]

    def encode(self, event):
        if _is_there("cohere"):
            _adapter("cohere.v2.types", "V2ChatStreamResponse").validate_python(event)
        return f"event: {event['type']}\n".encode() + super().encode(event)


class GeminiWire(Wire):
    """Google's generateContent."""

    path = f"/v1beta/models/{MODEL}:streamGenerateContent"
    ends = {"stop": "STOP", "length": "MAX_TOKENS"}  # noqa: RUF012

    def is_chat(self, path):
        return ":streamGenerateContent" in path and "alt=sse" in path

    def key_of(self, headers):
        return headers.get("x-goog-api-key", "")

    def error(self, status, said):
        return {"error": {"code": status, "message": said, "status": "INVALID_ARGUMENT"}}

    def listing(self, path):
        if not path.startswith("/v1beta/models?"):
            return None
        known = {"version": "1", "displayName": "M", "inputTokenLimit": 7000, "outputTokenLimit": 1000}
        return {"models": [
            known | {"name": f"models/{MODEL}", "supportedGenerationMethods": ["generateContent", "countTokens"]},
            known | {"name": "models/embedding-1", "supportedGenerationMethods": ["embedContent"]},
        ]}  # fmt: skip

    def named_in(self, request):
        return set(request["generationConfig"])

    def check(self, request, path):
        from google.genai import types

        assert set(request) <= {"contents", "systemInstruction", "generationConfig"}, set(request)
        for content in request["contents"]:
            types.Content.model_validate(content)
        known = {field.alias or name for name, field in types.GenerationConfig.model_fields.items()}
        assert set(request["generationConfig"]) <= known, request["generationConfig"]

    def question(self, request):
        return request["contents"][-1]["parts"][0]["text"]

    def limits(self, request):
        settings = request["generationConfig"]
        return settings["maxOutputTokens"], settings.get("stopSequences") or []

    def word(self, text):
        return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}]}

    def thought(self, text):
        parts = [{"text": text, "thought": True}]
        return {"candidates": [{"content": {"parts": parts, "role": "model"}, "index": 0}]}

    def finish(self, reason, read, written):
        usage = {"promptTokenCount": read, "candidatesTokenCount": written, "totalTokenCount": read + written}
        return [{"candidates": [{"finishReason": reason, "index": 0}], "usageMetadata": usage}]  # without a text

    def blocked(self):
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}


class VertexWire(GeminiWire):
    """The same in a project, with a token."""

    lists_for_anyone = True

    def is_chat(self, path):
        return path.startswith("/v1/projects/p-1/locations/global/publishers/google/") and super().is_chat(path)

    def key_of(self, headers):
        return headers.get("authorization", "").removeprefix("Bearer ")

    def listing(self, path):
        return None


class BedrockWire(Wire):
    """Converse, in Amazon's binary event stream."""

    kind = "application/vnd.amazon.eventstream"
    lists_for_anyone = True
    path = "/converse-stream"
    ends = {"stop": "end_turn", "length": "max_tokens"}  # noqa: RUF012

    def is_chat(self, path):
        return path.startswith("/model/") and path.endswith(self.path)

    def key_of(self, headers):
        """The key; for a signed request the session's token, if the signature has the right form."""
        said = headers.get("authorization", "")
        if said.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") and "/eu-central-1/bedrock/aws4_request" in said:
            return headers.get("x-amz-security-token", "")
        return said.removeprefix("Bearer ")

    def error(self, status, said):
        return {"message": said}

    def listing(self, path):
        return None

    def named_in(self, request):
        return set(request["inferenceConfig"])

    def check(self, request, path):
        from botocore.validate import ParamValidator

        shape = _converse().input_shape
        assert set(request) <= set(shape.members)
        report = ParamValidator().validate({"modelId": MODEL, **request}, shape)
        assert not report.has_errors(), report.generate_report()

    def question(self, request):
        return request["messages"][-1]["content"][0]["text"]

    def limits(self, request):
        settings = request["inferenceConfig"]
        return settings["maxTokens"], settings.get("stopSequences") or []

    def begin(self, read):
        return [("messageStart", {"role": "assistant"})]

    def word(self, text):
        return "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}

    def thought(self, text):
        return "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": text}}}

    def finish(self, reason, read, written):
        usage = {"inputTokens": read, "outputTokens": written, "totalTokens": read + written}
        return [
            ("contentBlockStop", {"contentBlockIndex": 0}),
            ("messageStop", {"stopReason": reason}),
            ("metadata", {"usage": usage, "metrics": {"latencyMs": 5}}),
        ]

    def encode(self, event):
        kind, body = event
        if kind.endswith("Exception"):
            return event_message({":message-type": "exception", ":exception-type": kind}, body)
        if _is_there("botocore"):
            known = _converse().output_shape.members["stream"].members
            assert set(body) <= set(known[kind].members), (kind, body)
        return event_message({":message-type": "event", ":event-type": kind}, body)


def event_message(headers, body):
    """A message of Amazon's event stream.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html
    """
    packed = b""
    for name, value in {**headers, ":content-type": "application/json"}.items():
        packed += struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
    payload = json.dumps(body).encode()
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", binascii.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", binascii.crc32(message))


@functools.cache
def _converse():
    """What botocore knows of the operation."""
    from botocore.session import Session

    return Session().get_service_model("bedrock-runtime").operation_model("ConverseStream")


@functools.cache
def _adapter(module, name):
    """Checks values of a type of a provider's package."""
    from pydantic import TypeAdapter

    return TypeAdapter(getattr(importlib.import_module(module), name))


def _inherited(typed):
    """The keys of a TypedDict with those of what it inherits from."""
    return set(typed.__required_keys__) | set(typed.__optional_keys__)


@functools.cache
def _is_there(package):
    return importlib.util.find_spec(package) is not None


FORMATS = {
    "openai": OpenAIWire,
    "azure-openai": AzureWire,
    "anthropic": AnthropicWire,
    "mistral": MistralWire,
    "cohere": CohereWire,
    "bedrock": BedrockWire,
    "gemini": GeminiWire,
    "vertex": VertexWire,
}


@functools.cache
def _private_key():
    """Of a service account; making one takes a moment."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode()


def service_account(path, url):
    """A file with Google's credentials, whose tokens are fetched from a stand-in."""
    account = {
        "type": "service_account", "project_id": "p-1", "private_key_id": "1", "private_key": _private_key(),
        "client_email": "a@p-1.iam.gserviceaccount.com", "client_id": "1", "token_uri": f"{url}/token",
    }  # fmt: skip
    path.write_text(json.dumps(account))
