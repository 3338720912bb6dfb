"""The Vertex backend: Google's models in a person's own project, with the credentials of Google's tools.

*Limitations*: text in, text out. Credentials are those of a file: GOOGLE_APPLICATION_CREDENTIALS, or what `gcloud auth
application-default login` wrote, a person's or a service account's. A machine's own, of its metadata server, are not
asked for. Google's package fetches
the token from Google's address by its own HTTP client; no text goes there. Vertex lists no models here: a few are,
and those of the option `models`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docmind.backends import ModelInfo, Option, clouds, google_gemini
from docmind.backends.clouds import Call, Cloud, Piece, listed
from docmind.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends import Detection
    from docmind.config import Config

LABEL = "Google Vertex"
OPTIONS = clouds.options(
    "that of the location", top_k=True, seed=True, more=(
        Option("project", str, None, "", "The project that pays; by default what GOOGLE_CLOUD_PROJECT says."),
        Option("location", str, None, "", "Where the models run; by default what GOOGLE_CLOUD_LOCATION says, else "
               "global."),
        Option("credentials", str, None, "path", "The file with the credentials; by default what "
               "GOOGLE_APPLICATION_CREDENTIALS names, else what gcloud wrote."),
        Option("models", list, None, "names", "Other models, to be listed beside the few that are."),
    ),
)  # fmt: skip
# What is listed; https://cloud.google.com/vertex-ai/generative-ai/docs/models tells of others.
SOME = ("gemini-2.5-flash", "gemini-2.5-flash-lite", "gemini-2.5-pro")
WINDOW = 1_048_576  # tokens, of each of these
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether there are credentials and a project, and a few models."""
    return clouds.detect(CLOUD, config, options)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """A few of the models there are."""
    return detect(config, options).models


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for any name; see `clouds.build`."""
    return clouds.build(CLOUD, config, model, options)


async def pieces(call: Call) -> AsyncGenerator[Piece, None]:
    """What comes of a generated content."""
    credentials = await asyncio.to_thread(_credentials, call.key)
    call.transport.hide(credentials.token)
    who = {"vertexai": True, "project": _project(call.settings), "location": _location(call.settings)}
    async for piece in google_gemini.content(call, "v1", credentials=credentials, **who):
        yield piece


# Credentials with their tokens, by file and its time: a token lasts an hour.
_known: dict[tuple[str, int], Any] = {}


def _credentials(path: str) -> Any:
    """Credentials with a token of the moment, from a file.

    Raises:
        BackendUnavailable: Google is not there.
        BackendError: There are none, or Google does not take them (`key_rejected`).
    """
    import requests
    from google.auth import exceptions
    from google.auth.transport.requests import Request

    try:
        known = path, Path(path).stat().st_mtime_ns
        credentials = _known.get(known) or _read_credentials(path)
        if not credentials.valid:
            with requests.Session() as session:
                session.trust_env = False  # no proxy named in the environment
                session.max_redirects = 0
                credentials.refresh(Request(session))
    except exceptions.TransportError as error:
        raise BackendUnavailable(
            f"Google gives no token ({type(error).__name__}).", "See whether this machine is online."
        ) from None
    except (exceptions.GoogleAuthError, ValueError, LookupError, OSError) as error:
        raise BackendError(
            f"Google does not take the credentials in {path} ({type(error).__name__}).",
            "Run: gcloud auth application-default login",
            reason="key_rejected",
        ) from None  # what Google's package says about them may hold a part of them
    _known[known] = credentials
    return credentials


def _read_credentials(path: str) -> Any:
    """Credentials of the two kinds that name no program to run and no address to ask but Google's.

    Raises:
        ValueError: The file holds none, or another kind.
    """
    from google.oauth2 import credentials, service_account

    said = json.loads(Path(path).read_text(encoding="utf-8"))
    if said["type"] == "authorized_user":
        return credentials.Credentials.from_authorized_user_info(said, scopes=[_SCOPE])
    if said["type"] == "service_account":
        return service_account.Credentials.from_service_account_info(said, scopes=[_SCOPE])
    raise ValueError("another kind of credentials")


def _find(url: str, options: Mapping[str, Any]) -> str | None:
    """The file with the credentials, where there is a project too. Nothing is asked of anybody.

    Source: https://cloud.google.com/docs/authentication/application-default-credentials
    """
    said = str(options.get("credentials") or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")).strip()
    home = Path(os.environ.get("APPDATA", "~")) if sys.platform == "win32" else Path("~", ".config")
    usual = Path(os.environ.get("CLOUDSDK_CONFIG") or home / "gcloud", "application_default_credentials.json")
    path = Path(said or usual).expanduser()
    return str(path) if _project(options) and path.is_file() else None


def _project(options: Mapping[str, Any]) -> str:
    return str(options.get("project") or os.environ.get("GOOGLE_CLOUD_PROJECT", "")).strip()


def _location(options: Mapping[str, Any]) -> str:
    return str(options.get("location") or os.environ.get("GOOGLE_CLOUD_LOCATION") or "global").strip()


def _address(options: Mapping[str, Any]) -> str:
    location = _location(options)
    usual = "https://" + ("" if location == "global" else f"{location}-") + "aiplatform.googleapis.com"
    return clouds.address("url", "GOOGLE_VERTEX_BASE_URL", usual)(options)


CLOUD = Cloud(
    name="vertex",
    label=LABEL,
    requirement=google_gemini.REQUIREMENT,
    modules=("llama_index.llms.google_genai", "google.auth.transport.requests", "google.oauth2.service_account"),
    options=OPTIONS,
    address=_address,
    find=_find,
    missing="Set GOOGLE_CLOUD_PROJECT, then run: gcloud auth application-default login",
    headers=lambda key: {},
    listing="/",
    has_listing=False,
    read_models=lambda answer, options: [
        *(listed(name, WINDOW) for name in SOME),
        *(listed(n) for n in options.get("models") or () if n not in SOME),
    ],
    window=google_gemini.no_window,
    ends=google_gemini.ENDS,
    wire=google_gemini.SAID,
    pieces=pieces,
)
