"""Which model answers, and which goes on when it cannot. Knows profiles and backends, no documents."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from docmind.backends import REGISTRY
from docmind.backends import backend as find_backend
from docmind.errors import BackendUnavailable, ModelNotFound, ProfileError
from docmind.profiles import Profile, find_profile

if TYPE_CHECKING:
    from docmind.backends import ModelInfo
    from docmind.config import Config
    from docmind.errors import DocMindError

# A model of this size can drive the agent: about 3 billion parameters in 4 bits. Smaller ones repeat themselves.
AGENT_BYTES: Final = 1_500_000_000
# Another model cannot help with these: the choice, the question or a setting has to change, or somebody has to wait.
NOT_BY_ANOTHER: Final = frozenset(
    {"backend_unknown", "busy", "closed", "empty_prompt", "invalid_grammar", "invalid_option", "model_missing",
     "unknown_option", "unsupported"}
)  # fmt: skip


def choose(config: Config, profile: str | None, backend: str | None, model: str | None) -> Profile:
    """The named profile, with another backend or model in its place where one is named.

    A model named without a profile gets the settings any model gets: the starter's are made for a very small one.

    Raises:
        ProfileError: There is no such profile, or a backend is named without a model.
    """
    found = find_profile(config, profile)
    if (backend or found.backend, model or found.model) == (found.backend, found.model):
        return found
    if backend is not None and backend != found.backend and model is None:
        raise ProfileError(
            f"Which model of {backend}?", "Name it with --model; `docmind backends` lists them.", reason="model_missing"
        )
    same = (backend or found.backend) == found.backend
    settings = found if profile is not None else Profile("", found.backend, found.model)
    return replace(
        settings, name="", backend=backend or found.backend, model=model or found.model,
        options=settings.options if same else {},
    )  # fmt: skip


def with_fallbacks(config: Config, profile: Profile) -> list[Profile]:
    """The profile, then those it names to go on with; one that is missing, broken or switched off is left out."""
    route = [profile]
    for name in profile.fallbacks:
        try:
            other = find_profile(config, name)
        except ProfileError:
            continue
        if other.enabled and all((p.backend, p.model) != (other.backend, other.model) for p in route):
            route.append(other)
    return route


def find_model(config: Config, profile: Profile) -> ModelInfo:
    """The model the profile names, checked to be there without loading anything.

    Raises:
        BackendUnavailable: Its backend is not there.
        ModelNotFound: The backend has no such model.
    """
    found = find_backend(profile.backend).detect(config, options(profile))
    for info in found.models:
        if info.name == profile.model:
            return info
    if not found.available and found.reason != "no_model":
        raise BackendUnavailable(
            f"{found.label} is not available.", found.hint or "Start it and ask again.",
            reason=found.reason or "unreachable",
        )  # fmt: skip
    there = ", ".join(info.name for info in found.models) or "none"
    raise ModelNotFound(f"{profile.backend} has no model '{profile.model}'.", f"There are: {there}.")


def for_model(profile: Profile, model: ModelInfo) -> Profile:
    """A model chosen by hand drives the agent when it is large enough for it; a profile says so itself."""
    is_large = model.size_bytes is not None and model.size_bytes >= AGENT_BYTES
    return replace(profile, agent="react") if not profile.name and is_large else profile


def can_another_help(error: DocMindError) -> bool:
    """Whether the next model may succeed where this one failed."""
    return error.reason not in NOT_BY_ANOTHER


def takes(profile: Profile, argument: str) -> bool:
    """Whether the profile's backend takes this argument with a call."""
    return any(option.name == argument and option.per_call for option in find_backend(profile.backend).OPTIONS)


def options(profile: Profile) -> dict[str, Any]:
    """What `build` of the backend is given."""
    given = dict(profile.options)
    if profile.context_window is not None:
        given["context_window"] = profile.context_window
    return given


def call_arguments(profile: Profile) -> dict[str, Any]:
    """What each call of the model is given; a setting that its backend does not have is left out."""
    arguments: dict[str, Any] = {"max_tokens": profile.max_output_tokens}
    for name in ("temperature", "top_p", "top_k"):
        if getattr(profile, name) is not None and takes(profile, name):
            arguments[name] = getattr(profile, name)
    if profile.stop:
        arguments["stop"] = list(profile.stop)
    return arguments


def free_memory(but: str) -> None:
    """Free the models of the other backends that live in this program and that nobody uses any more."""
    for name, module in REGISTRY.items():
        close = getattr(sys.modules.get(module), "close_unused", None)
        if name != but and close is not None:
            close()
