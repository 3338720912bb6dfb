"""The Bedrock backend: models in a person's own AWS account, over Converse.

boto3 only works synchronously, reads by an HTTP client that nobody can replace, and LlamaIndex's `BedrockConverse` over
it asks at least twice. So of boto3's foundation, botocore, the person's credentials, the signature and the reader of
event streams are used, and our own client sends; from LlamaIndex come the form of the messages and the tables.

*Limitations*: text in, text out. Credentials are what botocore finds in the environment, in its files and by single
sign-on (for which it speaks to AWS by its own client; no text goes there), or an API key of Bedrock's; a machine's own,
of its metadata service, are not asked for. Bedrock lists no models here: a few are, and those of the option
`models`, inference profiles too.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from docmind.backends import ModelInfo, Option, clouds
from docmind.backends.clouds import Call, Cloud, Piece, listed
from docmind.errors import BackendError
from docmind.keys import find_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "AWS Bedrock"
OPTIONS = clouds.options(
    "that of the region", hottest=1.0, more=(
        Option("region", str, None, "", "Where the models run, as eu-central-1; by default what AWS_REGION says."),
        Option("models", list, None, "names", "Other models, to be listed beside the few that are."),
    ),
)  # fmt: skip
WIRE = {"max_tokens": "maxTokens", "temperature": "temperature", "top_p": "topP", "stop": "stopSequences"}
# Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_MessageStopEvent.html
ENDS: dict[str, clouds.End] = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
                               "model_context_window_exceeded": "length", "content_filtered": "filtered",
                               "guardrail_intervened": "filtered", "tool_use": "tool", "malformed_tool_use": "tool",
                               "malformed_model_output": "failed"}  # fmt: skip
# What is listed; https://docs.aws.amazon.com/bedrock/latest/userguide/models-supported.html tells of others.
SOME = ("amazon.nova-lite-v1:0", "amazon.nova-micro-v1:0", "amazon.nova-pro-v1:0")
EVENT_BYTES = 1 << 20  # of one event; it carries a few words
_CHAIN = "the credentials of AWS's tools"  # stands for what botocore finds by itself


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there are credentials and a region, and a few models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """A few of the models there are."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for any name; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a Converse stream."""
    from botocore.eventstream import EventStreamBuffer, ParserError
    from llama_index.llms.bedrock_converse.utils import BEDROCK_NO_TEMP_MODELS, messages_to_converse_messages

    from docmind.backends.cloud_llm import read_by

    messages, system = messages_to_converse_messages(call.messages, call.model)
    without = ("temperature", "top_p") if any(name in call.model for name in BEDROCK_NO_TEMP_MODELS) else ()
    body = {"messages": messages, "inferenceConfig": call.named(WIRE, without=without)}
    content = json.dumps(body | ({"system": system} if system else {})).encode()
    url = f"{call.url}/model/{quote(call.model, safe='')}/converse-stream"
    headers = await asyncio.to_thread(_signed, call, url, content)
    with read_by(call):
        answer = await call.transport.send("POST", url, headers, content)
        buffer, waiting = EventStreamBuffer(), 0
        async for data in call.transport.pieces(answer):
            buffer.add_data(data)
            waiting += len(data)
            try:
                for message in buffer:
                    waiting = 0
                    yield _piece(message.to_response_dict())
            except ParserError as error:
                raise ValueError("no event stream") from error
            if waiting > EVENT_BYTES:
                raise ValueError("an event that does not end")


def _piece(message: dict[str, Any]) -> Piece:
    """What an event says.

    Raises:
        BackendError: It says what went wrong.
    """
    from docmind.backends.cloud_transport import refusal

    kinds = message["headers"]
    event = json.loads(message["body"] or b"{}")
    if kinds.get(":message-type") != "event":
        kind = str(kinds.get(":exception-type") or kinds.get(":error-code") or "")
        said = {"message": f"{kind}: {event.get('message', kinds.get(':error-message', ''))}"}
        raise refusal(0, said, {}, label=LABEL, url="")
    kind = kinds.get(":event-type")
    if kind == "contentBlockDelta":
        delta = event["delta"]
        return Piece(text=delta.get("text", ""), thinking=delta.get("reasoningContent", {}).get("text", ""))
    if kind == "messageStop":
        return Piece(finish=event["stopReason"])
    if kind == "metadata":
        usage = event["usage"]
        cached = usage.get("cacheReadInputTokens", 0)
        read = usage["inputTokens"] + cached + usage.get("cacheWriteInputTokens", 0)
        return Piece(prompt_tokens=read, cached_tokens=cached, answer_tokens=usage["outputTokens"])
    return Piece()


def _signed(call: Call, url: str, content: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of a request, with who asks.

    Raises:
        BackendError: botocore finds no credentials that work (`key_rejected`).
    """
    import logging

    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    headers = {"Content-Type": "application/json", "Accept": "application/vnd.amazon.eventstream"}
    if call.key != _CHAIN:
        headers["Authorization"] = f"Bearer {call.key}"
        return [(name.encode(), value.encode()) for name, value in headers.items()]
    logging.getLogger("botocore.auth").setLevel(logging.INFO)  # at DEBUG it writes session tokens into the log
    try:
        chain = Session()
        resolver = chain.get_component("credential_provider")
        for own in ("iam-role", "container-role"):  # of the machine: asked of a link-local address
            resolver.remove(own)
        credentials = chain.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials is not None else None
    except (BotoCoreError, ValueError, OSError) as error:
        raise BackendError(
            f"The credentials of AWS's tools do not work ({type(error).__name__}).",
            "Run: aws configure",
            reason="key_rejected",
        ) from None  # what botocore says about them may hold a part of them
    if frozen is None:
        raise BackendError("AWS's tools have no credentials.", "Run: aws configure", reason="key_missing")
    for secret in (frozen.secret_key, frozen.token):
        if secret:
            call.transport.hide(secret)
    request = AWSRequest("POST", url, data=content, headers=headers)
    SigV4Auth(frozen, "bedrock", _region(call.settings)).add_auth(request)
    return [(name.encode(), value.encode()) for name, value in request.headers.items()]


def _find(url: str, options: Mapping[str, Any]) -> str | None:
    """A key for the address, or that there are credentials for botocore to find. Nothing is asked of anybody."""
    if not _region(options):
        return None
    if key := find_key(url, ("AWS_BEARER_TOKEN_BEDROCK",)):
        return key
    said = os.environ
    usual = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    files = [said.get(name, path) for name, path in usual.items()]
    there = any(said.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"))
    return _CHAIN if there or any(Path(file).expanduser().is_file() for file in files) else None


def _region(options: Mapping[str, Any]) -> str:
    said = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    return str(said).strip()


def _address(options: Mapping[str, Any]) -> str:
    region = _region(options)
    usual = f"https://bedrock-runtime.{region}.amazonaws.com" if region else ""
    return clouds.address("url", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME", usual)(options)


def _window(model: str) -> int:
    from llama_index.llms.bedrock_converse.utils import bedrock_modelname_to_context_size

    return int(bedrock_modelname_to_context_size(model))


CLOUD = Cloud(
    name="bedrock",
    label=LABEL,
    requirement="llama-index-llms-bedrock-converse>=0.15,<0.16",
    modules=("llama_index.llms.bedrock_converse", "botocore.eventstream", "botocore.session"),
    options=OPTIONS,
    address=_address,
    example="https://bedrock-runtime.REGION.amazonaws.com",
    find=_find,
    missing="Set AWS_REGION and give your credentials. Run: aws configure",
    headers=lambda key: {},
    listing="/",
    has_listing=False,
    read_models=lambda answer, options: [listed(name) for name in {*SOME, *(options.get("models") or ())}],
    window=_window,
    ends=ENDS,
    wire=WIRE,
    pieces=pieces,
)
