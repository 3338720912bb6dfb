"""The Azure OpenAI backend: models that a person has deployed in their own Azure resource.

A model is named by its deployment. Azure does not list these for a key: they are those of the option `models`.

*Limitations*: keys only, no Entra ID. The window is the one of the model that the deployment is called after; for
another name it must be said.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from docmind.backends import ModelInfo, Option, clouds, openai
from docmind.backends.clouds import Call, Cloud, Piece, listed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "Azure OpenAI"
VERSION = "2024-10-21"  # the last one that is not a preview, https://learn.microsoft.com/azure/ai-services/openai
OPTIONS = (
    *clouds.options("what AZURE_OPENAI_ENDPOINT says", seed=True, more=(
        Option("models", list, None, "names", "Your deployments, to be listed; by default what AZURE_OPENAI_DEPLOYMENT "
               "names."),
        Option("api_version", str, VERSION, "", "The version of Azure's interface."),
    )),
    openai.EFFORT,
)  # fmt: skip


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there are an endpoint and a key that it takes, and the deployments that were named."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The deployments that were named."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for a deployment; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a chat completion."""
    from llama_index.llms.openai.utils import O1_MODELS
    from openai import AsyncAzureOpenAI, DefaultAsyncHttpxClient

    from docmind.backends.cloud_transport import http_library

    client = AsyncAzureOpenAI(
        api_key=call.key, azure_endpoint=call.url, api_version=call.settings["api_version"], max_retries=0,
        timeout=None, http_client=call.transport.client(http_library(DefaultAsyncHttpxClient)),
    )  # fmt: skip
    client._azure_ad_token = None  # AZURE_OPENAI_AD_TOKEN would win over the key, and is bound to no address
    is_new = call.model in O1_MODELS or "max_tokens" in call.refused
    names = {**openai.WIRE, "max_tokens": "max_completion_tokens" if is_new else "max_tokens"}
    async for piece in openai.completion(call, client, names):
        yield piece


def _read_models(answer: dict[str, Any], options: Mapping[str, Any]) -> list[ModelInfo]:
    named = options.get("models") or os.environ.get("AZURE_OPENAI_DEPLOYMENT", "").replace(",", " ").split()
    return [listed(name) for name in named]


CLOUD = Cloud(
    name="azure-openai",
    label=LABEL,
    requirement="llama-index-llms-azure-openai>=0.6,<0.7",
    modules=("llama_index.llms.azure_openai", "openai.resources.chat.completions"),
    options=OPTIONS,
    address=clouds.address("url", "AZURE_OPENAI_ENDPOINT"),
    example="https://RESOURCE.openai.azure.com",
    variables=("AZURE_OPENAI_API_KEY",),
    missing="Set AZURE_OPENAI_ENDPOINT, AZURE_OPENAI_DEPLOYMENT and AZURE_OPENAI_API_KEY, or for the key run: docmind "
    "keys keep https://RESOURCE.openai.azure.com",
    headers=lambda key: {"api-key": key},
    listing=f"/openai/models?api-version={VERSION}",
    has_listing=False,
    read_models=_read_models,
    window=openai.window,
    ends=openai.ENDS,
    wire={**openai.WIRE, "max_tokens": "max_tokens"},
    pieces=pieces,
)
