"""Which model answers, and which goes on when it cannot; what a backend makes of a profile's settings.

Knows profiles and backends, no documents.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from docmind.backends import REGISTRY, checked_options
from docmind.backends import backend as find_backend
from docmind.backends.places import is_allowed, where_text_goes
from docmind.detection import KEPT_SECONDS, PATIENT_SECONDS, detect_all, detect_at
from docmind.errors import BackendError, BackendUnavailable, DocMindError, ModelNotFound, ProfileError
from docmind.profiles import AUTO, Profile, find_profile
from docmind.settings import read_settings
from docmind.wording import absence_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from docmind.backends import Detection, ModelInfo
    from docmind.config import Config

# A model of this size can drive the agent: about 3 billion parameters in 4 bits. Smaller ones repeat themselves.
AGENT_BYTES: Final = 1_500_000_000
# A model of this size stays in memory while another backend answers.
SMALL_BYTES: Final = 500_000_000
# Another model cannot help with these: the choice, the question or a setting has to change, or somebody has to wait.
NOT_BY_ANOTHER: Final = frozenset(
    {"backend_unknown", "busy", "closed", "empty_prompt", "invalid_grammar", "invalid_option", "model_missing",
     "unknown_option", "unsupported"}
)  # fmt: skip
# Settings of a profile that go with a call, and what backends call them.
ARGUMENTS: Final = {
    "max_output_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop",
    "first_token_seconds": "first_token_seconds", "idle_seconds": "idle_seconds", "total_seconds": "total_seconds",
}  # fmt: skip
RECENT_SECONDS: Final = 3.0  # before it is said that there is nothing, backends are asked anew unless just asked
_UNSET: Final = Profile("", "")


def choose(config: Config, profile: str | None, backend: str | None, model: str | None) -> Profile:
    """The named profile, with another backend or model in its place where one is named.

    A model named without a profile gets the settings any model gets: the starter's are made for a very small one.

    Raises:
        ProfileError: There is no such profile, or a backend is named without a model.
    """
    found = find_profile(config, profile)
    if (backend or found.backend, model or found.model) == (found.backend, found.model):
        return found
    if backend not in (None, AUTO, found.backend) and model is None:
        raise ProfileError(
            f"Which model of {backend}?", "Name it with --model; `docmind backends` lists them.", reason="model_missing"
        )
    same = (backend or found.backend) == found.backend
    settings = found if profile is not None else Profile("", found.backend, found.model)
    if profile is not None and found.backend == AUTO and model is not None and not same:  # what it came to, or may
        own = found.options.get(backend or "", {})
        return replace(found, backend=backend or AUTO, model=model, models={}, options=own)
    return replace(
        settings, name="", backend=backend or found.backend,
        model=model or ("" if backend == AUTO else found.model), models={},
        options=settings.options if same else {},
    )  # fmt: skip


def with_fallbacks(config: Config, profile: Profile, *, is_patient: bool = True) -> list[Profile]:
    """The profile, then those it names to go on with, but for the `fallbacks_left_out`.

    Of an `auto` profile every backend's model is there, in the person's order; where none has any it stands itself,
    and `find_model` says what is missing. The same model at another address, or loaded otherwise, may go on.

    Args:
        is_patient: As for `resolve`.

    Raises:
        DocMindError: An `auto` profile has values that are none (`check`).
    """
    route = _resolved(config, profile, is_patient)
    for name in profile.fallbacks:
        if (other := _fallback(config, name)) is not None:
            there = [(p.backend, p.model, options(p)) for p in route]
            others = _resolved(config, other, is_patient)
            route += [p for p in others if (p.backend, p.model, options(p)) not in there]
    return route


def fallbacks_left_out(config: Config, profile: Profile) -> tuple[str, ...]:
    """The fallbacks that a profile names in vain: missing, broken or switched off."""
    return tuple(dict.fromkeys(name for name in profile.fallbacks if _fallback(config, name) is None))


def _fallback(config: Config, name: str) -> Profile | None:
    """The profile of a name, if it can go on."""
    try:
        found = find_profile(config, name)
        check(found)
    except DocMindError:
        return None
    return found if found.enabled else None


def find_model(config: Config, profile: Profile) -> ModelInfo:
    """The model the profile names, checked to be there without loading anything.

    Raises:
        BackendUnavailable: Its backend is not there, or for `auto` none has one of the models.
        ModelNotFound: The backend has no such model.
        BackendError: One of its values is none (`check`).
    """
    if profile.backend == AUTO:
        raise nothing_there(config, profile)
    check(profile)
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


# Auto -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolved:
    """What an `auto` profile comes to.

    Attributes:
        profiles: With a backend and a model each, the first choice first; none where nothing is there.
        chosen: The first of them for people, "llama.cpp · Qwen3-4B"; "" where nothing is there.
        words: The same and why, "balanced → llama.cpp · Qwen3-4B; Parrot: not running".
    """

    profiles: tuple[Profile, ...]
    chosen: str
    words: str


def resolve(config: Config, profile: Profile, *, is_patient: bool = True) -> Resolved:
    """The models an `auto` profile leads to: of each backend that is there the first of its list that is there.

    Backends come in the person's order (`settings.backend_order`), then as in the registry. One beyond this device
    counts only when the person has allowed its address.

    Args:
        is_patient: Whether slow backends are waited for, and all are asked anew before there is said to be nothing.

    Raises:
        DocMindError: One of its values is none (`check`).
    """
    check(profile)
    wait_seconds = PATIENT_SECONDS if is_patient else None
    for max_age_seconds in (KEPT_SECONDS, RECENT_SECONDS) if is_patient else (KEPT_SECONDS,):
        found = detect_all(config, max_age_seconds=max_age_seconds, wait_seconds=wait_seconds)
        resolved = _resolve(config, profile, found, max_age_seconds, wait_seconds)
        if resolved.profiles:
            break
    return resolved


def where(config: Config, profile: Profile, found: Mapping[str, Detection]) -> tuple[str | None, bool]:
    """The address a profile's questions are sent to, and whether that is known yet; None: it runs in this program.

    Args:
        found: What is known of the backends, by name.
    """
    detection = found.get(profile.backend)
    infos = detection.models if detection is not None else ()
    if remote := next((info.remote_url for info in infos if info.name == profile.model and info.remote_url), None):
        return remote, True
    own = profile.options.get("url")
    if isinstance(own, str) and own and profile.backend in REGISTRY:
        address = getattr(find_backend(profile.backend), "address", None)
        with contextlib.suppress(BackendError):  # what is no address is shown as it is written
            return (address(own) if address is not None else own), True
        return own, True
    if detection is None or (not detection.available and detection.url is None and detection.reason == "stalled"):
        return None, False
    return detection.url, True


def in_order(config: Config, names: Iterable[str]) -> list[str]:
    """Backends as the person wants them tried; those not named in the settings follow as they come."""
    names = list(names)
    wanted = [name for name in dict.fromkeys(read_settings(config).backend_order) if name in names]
    return wanted + [name for name in names if name not in wanted]


def nothing_there(config: Config, profile: Profile) -> BackendUnavailable:
    """The error of an `auto` profile without any model: what is missing, and one way to get it."""
    found = {detection.backend: detection for detection in detect_all(config)}
    ways = []
    for name in in_order(config, found):
        stripped = [pattern.strip("*") for pattern in _patterns(profile, name)]
        plain = [pattern for pattern in stripped if pattern and "*" not in pattern]
        how_to_get = getattr(find_backend(name), "how_to_get", None)
        if plain and how_to_get is not None and (found[name].available or found[name].reason == "no_model"):
            ways.append(how_to_get(config, plain[0]))
    ways.sort(key=lambda way: "Run: " not in way)  # a command before advice; the order of backends otherwise
    return BackendUnavailable(
        f"{resolve(config, profile, is_patient=False).words}.",
        ways[0] if ways else "Get one of the models that the profile lists, or choose another profile.",
        reason="no_model",
    )


def _resolved(config: Config, profile: Profile, is_patient: bool) -> list[Profile]:
    """A profile's own way: itself, or what `auto` comes to, or itself again where that is nothing."""
    if profile.backend != AUTO:
        return [profile]
    return list(resolve(config, profile, is_patient=is_patient).profiles) or [profile]


def _resolve(
    config: Config,
    profile: Profile,
    found: Sequence[Detection],
    max_age_seconds: float = KEPT_SECONDS,
    wait_seconds: float | None = None,
) -> Resolved:
    by_name = {detection.backend: detection for detection in found}
    profiles: list[Profile] = []
    chosen = ""
    absences: list[str] = []
    for name in in_order(config, by_name):
        patterns = _patterns(profile, name)
        if not patterns:
            continue
        own = profile.options.get(name, {})
        detection = by_name[name]
        if url := own.get("url"):
            detection = detect_at(config, name, str(url), max_age_seconds=max_age_seconds, wait_seconds=wait_seconds)
        model = _first(patterns, detection)
        reason = _absence(config, detection) or ("" if model else "none of the models")
        if model is None or reason:
            absences += [] if chosen else [f"{detection.label}: {reason}"]
            continue
        chosen = chosen or f"{detection.label} · {model.name}"
        is_small = model.size_bytes is not None and model.size_bytes < AGENT_BYTES
        profiles.append(
            replace(
                profile,
                backend=name,
                model=model.name,
                models={},
                options=own,
                agent="direct" if is_small else profile.agent,
            )
        )
    why = "; ".join([f"{profile.name or 'Auto'} → {chosen or 'no model'}", *absences])
    return Resolved(tuple(profiles), chosen, why)


def _patterns(profile: Profile, backend: str) -> Sequence[str]:
    """The names of models that an `auto` profile takes of a backend, best first."""
    if profile.models:
        return profile.models.get(backend, ())
    return (profile.model or "*",)


def _first(patterns: Sequence[str], detection: Detection) -> ModelInfo | None:
    """The first pattern's model; of several one that is in memory."""
    usable = sorted((m for m in detection.models if m.reason is None), key=lambda model: not model.loaded)
    for pattern in patterns:
        for model in usable:
            if fnmatchcase(model.name.casefold(), pattern.casefold()):
                return model
    return None


def _absence(config: Config, detection: Detection) -> str:
    """Why a backend does not count, in a few words; "" when it does."""
    if not detection.available:
        return absence_words(detection.reason)
    place, host = where_text_goes(detection.url)
    if place != "this device":
        settings = read_settings(config)
        if settings.local_only or not is_allowed(settings, detection.url or ""):
            return f"{host} is on {place}, which is not allowed"
    return ""


# Settings of a profile, and what its backend makes of them ------------------------------------------------------------


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
    if profile.context_window is not None and "context_window" not in settings_left_out(profile):
        given["context_window"] = profile.context_window
    # Loading a model before the call is part of the wait for its first word.
    if profile.first_token_seconds is not None and "first_token_seconds" not in settings_left_out(profile):
        given["first_token_seconds"] = profile.first_token_seconds
    return given


def call_arguments(profile: Profile) -> dict[str, Any]:
    """What each call of the model is given. What its backend does not have is in `settings_left_out`."""
    left_out = settings_left_out(profile)
    return {
        argument: list(value) if isinstance(value, tuple) else value
        for name, argument in ARGUMENTS.items()
        if (value := getattr(profile, name)) not in (None, ()) and name not in left_out
    }


def settings_left_out(profile: Profile) -> tuple[str, ...]:
    """The profile's settings that its backend has nothing for: they are shown to be left out, never dropped."""
    if profile.backend not in REGISTRY:
        return ()
    known = {option.name for option in find_backend(profile.backend).OPTIONS}
    per_call = {option.name for option in find_backend(profile.backend).OPTIONS if option.per_call}
    left_out = [
        name
        for name, argument in ARGUMENTS.items()
        if argument not in per_call and getattr(profile, name) != getattr(_UNSET, name)
    ]
    if profile.context_window is not None and "context_window" not in known:
        left_out.append("context_window")
    if profile.system_prompt and profile.agent == "react":  # the agent's own words are what makes it one
        left_out.append("system_prompt")
    return tuple(left_out)


def all_left_out(profile: Profile, receipt: Mapping[str, Any]) -> tuple[str, ...]:
    """The same, with those that the server refused in a call (`settings_left_out` of its last message), and a window
    that is smaller than the profile's."""
    names = {argument: name for name, argument in ARGUMENTS.items()}
    refused = [names.get(argument, argument) for argument in receipt.get("settings_left_out") or ()]
    if profile.context_window is not None and (receipt.get("context_window") or math.inf) < profile.context_window:
        refused.append("context_window")
    return tuple(dict.fromkeys([*settings_left_out(profile), *refused]))


def check(profile: Profile) -> None:
    """Check a profile's values against what its backend takes; for `auto` each backend's table.

    Raises:
        BackendUnavailable: It names a backend that is none.
        BackendError: An option is unknown or out of range.
        ProfileError: The options of an `auto` profile are no tables.
    """
    if profile.backend != AUTO:
        checked_options(find_backend(profile.backend).OPTIONS, options(profile) | call_arguments(profile))
        return
    for name, given in profile.options.items():
        if not isinstance(given, dict):
            raise ProfileError(
                f"For {AUTO}, options stand in a table of their backend.",
                f"Write them below [options.{next(iter(REGISTRY))}].",
            )
        checked_options(find_backend(name).OPTIONS, given)
    for name in profile.models:  # one that is not here may be named; one that is nearly written like one is a slip
        if name not in REGISTRY and difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.75):
            find_backend(name)


def free_memory(but: str) -> None:
    """Free the models of the other backends that live in this program and that nobody uses any more, but small ones:
    one of those, the starter say, takes seconds to come back, and little room."""
    for name, module in REGISTRY.items():
        close = getattr(sys.modules.get(module), "close_unused", None)
        if name != but and close is not None:
            close(above_bytes=SMALL_BYTES)
