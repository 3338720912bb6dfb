"""`docmind profiles`: list, show, save, remove and test. Prints nothing itself: `run` yields what is to be printed."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docmind import profiles, routing
from docmind.backends import REGISTRY
from docmind.backends import backend as find_backend
from docmind.errors import ProfileError
from docmind.profiles import AUTO, SETTINGS, Profile
from docmind.wording import left_out_words

if TYPE_CHECKING:
    import argparse
    import threading
    from collections.abc import Iterator

    from docmind.config import Config


@dataclass(frozen=True, slots=True)
class Said:
    """Something to print: for people, and as JSON; `is_passing` is a status that the next one replaces."""

    text: str
    row: dict[str, Any] | None = None
    is_passing: bool = False


def run(config: Config, arguments: argparse.Namespace, stop: threading.Event) -> Iterator[Said]:
    """Do what was asked.

    Raises:
        DocMindError: It cannot be done; message and hint say why and what to do.
    """
    if arguments.action == "list":
        for profile in profiles.load_profiles(config):
            state = "" if profile.enabled else " · off"
            model = ", ".join(profile.models) if profile.models else profile.model
            line = f"{profile.name:12} {profile.role:10} {profile.backend} · {model}{state}"
            yield Said(f"{line}\n{'':12} {profile.description}".rstrip(), row(profile))
        return
    if not arguments.name and arguments.action != "show":
        raise ProfileError("Which profile?", "`docmind profiles` lists them.", reason="profile_missing")
    match arguments.action:
        case "show":
            profile = profiles.find_profile(config, arguments.name)
            lines = [
                f"{name:20} {value if value not in (None, '', (), {}) else '–'}"
                for name, value in dataclasses.asdict(profile).items()
            ]
            yield Said("\n".join([*lines, *_left_out(profile)]), row(profile))
        case "save":
            yield from _save(config, arguments)
        case "remove":
            path = profiles.remove_profile(config, arguments.name)
            yield Said(f"removed {path}", {"removed": arguments.name, "path": str(path)})
        case "test":
            yield from _test(config, profiles.find_profile(config, arguments.name), stop)


def row(profile: Profile) -> dict[str, Any]:
    """A profile as --json prints it: every setting that is no column stands in `options`."""
    values = dataclasses.asdict(profile)
    first = {name: values.pop(name) for name in ("name", "role", "backend", "model", "enabled")}
    source = values.pop("source")
    return {**first, "options": {**values, **values.pop("options")}, "source": source}


def _left_out(profile: Profile) -> list[str]:
    """A line about settings that the backend does not have."""
    names = routing.settings_left_out(profile)
    return [f"\n{left_out_words(names, find_backend(profile.backend).LABEL)}."] if names else []


# save -----------------------------------------------------------------------------------------------------------------


def _save(config: Config, arguments: argparse.Namespace) -> Iterator[Said]:
    values: dict[str, Any] = {}
    if arguments.origin is not None:
        values = profiles.as_values(profiles.find_profile(config, arguments.origin))
    values["name"] = arguments.name
    if arguments.backend is not None and arguments.backend != values.get("backend"):
        values.pop("options", None)  # those of another backend
        values["backend"] = arguments.backend
    if arguments.model is not None:
        values["model"] = arguments.model
    for given in arguments.settings:
        key, equals, text = given.partition("=")
        if not equals:
            raise ProfileError(f"'{given}' is no setting.", "Write it as --set temperature=0.2.")
        _put(values, key.strip(), text)
    profile = profiles.make_profile(values)
    routing.check(profile)
    known = profiles.readable_profiles(config)[0]
    is_hiding = any(p.name == profile.name and p.source == "shipped" for p in known)
    path = profiles.save_profile(config, profile, overwrite=arguments.overwrite)
    lines = [f"saved {path}", *_left_out(profile)]
    if is_hiding:
        lines.append(f"It hides the one that came with DocMind, until: docmind profiles remove {profile.name}")
    yield Said("\n".join(lines), {**row(profile), "path": str(path)})


def _put(values: dict[str, Any], key: str, text: str) -> None:
    """Put a value that was typed where its key says: "temperature", "options.keep_alive", "models.NAME"."""
    head, *rest = key.split(".", 1)
    kind = next((option.kind for option in SETTINGS if option.name == key), str)
    if not rest:
        values[key] = _read(text, kind)
        return
    # "llama.cpp" has a dot of its own: the longest name of a backend goes first.
    names = sorted(REGISTRY, key=len, reverse=True)
    owner = next((name for name in names if rest[0] == name or rest[0].startswith(f"{name}.")), None)
    if head == "models":
        values.setdefault(head, {})[owner or rest[0]] = _read(text, list)
        return
    if head != "options":
        values[key] = text  # an unknown key: it is refused with the nearest valid one
        return
    table, backend, name = values.setdefault(head, {}), values.get("backend"), rest[0]
    if backend == AUTO and owner is not None:
        table, backend, name = table.setdefault(owner, {}), owner, name[len(owner) + 1 :]
    known = find_backend(backend).OPTIONS if backend in REGISTRY else ()
    table[name] = _read(text, next((option.kind for option in known if option.name == name), str))


def _read(text: str, kind: type) -> Any:
    """A typed value: a text as it stands, anything else as TOML reads it; what TOML cannot read stays a text."""
    if kind is str:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# test -----------------------------------------------------------------------------------------------------------------


def _test(config: Config, profile: Profile, stop: threading.Event) -> Iterator[Said]:
    from docmind.trial import try_model

    choice = None
    if profile.backend == AUTO:
        resolved = routing.resolve(config, profile)
        choice = resolved.words
        if not resolved.profiles:
            raise routing.nothing_there(config, profile)
        yield Said(choice, is_passing=True)
        profile = resolved.profiles[0]
    yield Said("Loading the model …", is_passing=True)

    arguments = routing.call_arguments(profile)
    trial = try_model(config, profile.backend, profile.model, routing.options(profile), stop, arguments=arguments)
    left_out = list(routing.settings_left_out(profile))
    figures = [f"{profile.backend} · {profile.model}"]
    if trial.first_token_seconds is not None:
        figures.append(f"first token {trial.first_token_seconds:.1f} s")
    if trial.tokens_per_second is not None:
        figures.append(f"{trial.tokens_per_second:.0f} tokens/s")
    figures.append(f"window {trial.context_window:,} tokens")
    if trial.load_seconds is not None:
        figures.append(f"loaded in {trial.load_seconds:.1f} s")
    lines = [trial.text or "The model wrote nothing.", "", " · ".join(figures), *([choice] if choice else [])]
    yield Said(
        "\n".join([*lines, *_left_out(profile)]),
        {
            "name": profile.name,
            "backend": profile.backend,
            "model": profile.model,
            "choice": choice,
            "text": trial.text,
            "first_token_s": trial.first_token_seconds,
            "tokens_per_second": trial.tokens_per_second,
            "context_window": trial.context_window,
            "load_s": trial.load_seconds,
            "settings_left_out": left_out,
            "stopped": trial.is_stopped,
        },
    )
