"""Saved choices of backend, model and settings: TOML files, shipped in models/ and the person's own in the data folder.

A profile of the person wins over a shipped one of the same name, and removing it brings that one back. `SETTINGS` says
of each key what it takes; docs/profiles.md, the form on the Models page and the command line are made from it. Knows no
backend's inside and no Streamlit: what stands in `options` is checked by `docmind.routing`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from docmind.backends import Option, checked_options
from docmind.errors import BackendError, ProfileError, SettingsError
from docmind.settings import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from docmind.config import Config

DEFAULT: Final = "starter"
AUTO: Final = "auto"  # in place of a backend: the first that is there and has one of the models
ROLES: Final = ("fast", "balanced", "technical", "reasoning")
Role = Literal["", "fast", "balanced", "technical", "reasoning"]
NAME_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class Profile:
    """A saved choice. None leaves a setting to the backend; `SETTINGS` says what each takes."""

    name: str
    backend: str
    model: str = ""
    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    role: Role = ""
    enabled: bool = True
    description: str = ""
    agent: Literal["direct", "react"] = "direct"
    system_prompt: str = ""
    context_window: int | None = None
    max_output_tokens: int = 512
    history_tokens: int = 8_192
    max_sentences: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    first_token_seconds: float | None = None
    idle_seconds: float | None = None
    total_seconds: float | None = None
    fallbacks: tuple[str, ...] = (DEFAULT,)
    options: dict[str, Any] = field(default_factory=dict)
    source: Literal["shipped", "user"] = "shipped"


SETTINGS: Final[tuple[Option, ...]] = (
    Option("name", str, None, "", "What the profile is called; by default as its file."),
    Option("backend", str, None, "", "The software that runs the model, as `docmind backends --all` names it; `auto` "
           "for the first that is there and has one of `models`."),
    Option("model", str, "", "", "The model's name, as its backend lists it."),
    Option("models", dict, {}, "table", "For `auto`: of each backend the names of models, best first. `*` stands for "
           "anything, capital letters do not matter. Without it `model` is looked for, or any model taken."),
    Option("role", str, "", "", "What it is for.", choices=("", *ROLES)),
    Option("enabled", bool, True, "", "Whether it can be chosen."),
    Option("description", str, "", "", "A sentence or two about it, as the Models page shows them."),
    Option("agent", str, "direct", "", "`direct` makes one search and one call of the model; with `react` the model "
           "may search and read on, which needs about 3 billion parameters or more.", choices=("direct", "react")),
    Option("system_prompt", str, "", "", "What a `direct` model is told to do; by default DocMind's own words. The "
           "agent has its own."),
    Option("context_window", int, None, "tokens", "What the model can read and write in one call; by default as its "
           "backend says. More takes more memory.", 256, 1 << 20),
    Option("max_output_tokens", int, 512, "tokens", "The longest answer.", 1, 1 << 20),
    Option("history_tokens", int, 8_192, "tokens", "Of the conversation before, at most so much is read again; with 0 "
           "each question stands by itself.", 0, 1 << 20),
    Option("max_sentences", int, None, "sentences", "The model is stopped after so many: a very small one rambles.",
           1, 1_000),
    Option("temperature", float, None, "", "0 always takes the likeliest word; higher is more varied.", 0, 5),
    Option("top_p", float, None, "", "Words are taken from the likeliest that together reach this share.", 0, 1),
    Option("top_k", int, None, "words", "Words are taken from so many of the likeliest.", 0, 1 << 20),
    Option("stop", list, [], "texts", "The answer ends in front of any of these."),
    Option("first_token_seconds", float, None, "seconds", "The longest wait for the first word, loading included.",
           1, 86_400),
    Option("idle_seconds", float, None, "seconds", "The longest wait between two words.", 1, 86_400),
    Option("total_seconds", float, None, "seconds", "The longest answer in time.", 1, 86_400),
    Option("fallbacks", list, [DEFAULT], "profiles", "These go on, in this order, when the model cannot."),
    Option("options", dict, {}, "table", "The backend's own settings, as its guide lists them; for `auto` a table for "
           "each backend."),
)  # fmt: skip

SETTABLE: Final = tuple(option.name for option in SETTINGS)
_LISTS: Final = tuple(option.name for option in SETTINGS if option.kind is list)


# Reading --------------------------------------------------------------------------------------------------------------


def load_profiles(config: Config) -> list[Profile]:
    """All profiles, by name; the person's win over shipped ones.

    Raises:
        ProfileError: A file is no TOML, lacks a key, or has an unknown key (the hint names the nearest valid one).
    """
    found, broken = readable_profiles(config)
    if broken:
        raise broken[0]
    return found


def readable_profiles(config: Config) -> tuple[list[Profile], list[ProfileError]]:
    """The profiles that can be read, by name, and what is wrong with the other files."""
    found: dict[str, Profile] = {}
    broken: list[ProfileError] = []
    for path, source in _files(config):
        try:
            profile = read_profile(path, source)
        except ProfileError as error:
            broken.append(error)
        else:
            found[profile.name] = profile
    return [found[name] for name in sorted(found)], broken


def find_profile(config: Config, name: str | None = None) -> Profile:
    """The profile of that name; None: the starter. A broken file of another profile does not matter.

    Raises:
        ProfileError: There is none of that name, or its file is broken.
    """
    wanted = name or DEFAULT
    names: list[str] = []
    broken: ProfileError | None = None
    for path, source in reversed(_files(config)):  # the person's own first
        try:
            profile = read_profile(path, source)
        except ProfileError as error:
            if path.stem == wanted:
                raise
            broken = error
            continue
        if profile.name == wanted:
            return profile
        names.append(profile.name)
    if broken is not None:  # it may be the one that was meant
        raise broken
    raise ProfileError(f"There is no profile '{wanted}'.", _nearest(wanted, names), reason="profile_missing")


def _files(config: Config) -> list[tuple[Path, Literal["shipped", "user"]]]:
    """All profile files, shipped ones first."""
    own, shipped = config.model_folders
    return [(path, "shipped") for path in sorted(shipped.glob("*.toml"))] + [
        (path, "user") for path in sorted(own.glob("*.toml"))
    ]


def read_profile(path: Path, source: Literal["shipped", "user"]) -> Profile:
    """Read one TOML file; the profile is called as the file unless it says otherwise.

    Raises:
        ProfileError: It cannot be read, lacks a key, or says something that is none.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets without end
        raise ProfileError(f"The profile {path} cannot be read ({error}).", "Mend or remove the file.") from error
    return make_profile({"name": path.stem} | values, source, f"The profile {path}")


def make_profile(values: Mapping[str, Any], source: Literal["shipped", "user"] = "user", called: str = "") -> Profile:
    """A profile of these values, each checked.

    Args:
        values: By the names of `SETTINGS`, as TOML has them; None and what is missing stand for the default.
        called: What messages call it.

    Raises:
        ProfileError: A key is unknown, a value does not fit, or `name`, `backend` or `model` is missing.
    """
    called = called or f"The profile '{values.get('name') or ''}'"
    for key in values:
        if key not in SETTABLE:
            raise ProfileError(f"{called} has an unknown key '{key}'.", _nearest(key, list(SETTABLE)))
    try:
        checked = checked_options(SETTINGS, values)
        checked["models"] = _checked_models(checked.get("models", {}))
    except BackendError as error:
        raise ProfileError(f"{called}: {error}", error.hint) from error
    for key in ("name", "backend") if checked.get("backend") == AUTO else ("name", "backend", "model"):
        if not str(checked.get(key) or "").strip():
            raise ProfileError(f"{called} names no {key}.", f'Add a line such as {key} = "…".')
    if len(checked["name"]) > NAME_CHARACTERS or not checked["name"].isprintable():
        raise ProfileError(f"{called} has an impossible name.", f"Take one line of at most {NAME_CHARACTERS} letters.")
    for key in _LISTS:
        if key in checked:
            checked[key] = tuple(checked[key])
    return Profile(**checked, source=source)


def _checked_models(models: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The table of models: a list of texts for each backend."""
    for name, patterns in models.items():
        if not isinstance(patterns, list | tuple) or not all(isinstance(text, str) and text for text in patterns):
            raise BackendError(
                f"{patterns!r} is no list of models for '{name}'.", f'Write {name} = ["first choice", "second"].',
                reason="invalid_option",
            )  # fmt: skip
    return {name: tuple(patterns) for name, patterns in models.items()}


# Writing --------------------------------------------------------------------------------------------------------------


def as_values(profile: Profile) -> dict[str, Any]:
    """What its file says: each key that is not as it would be without it, in the order of `SETTINGS`."""
    empty = Profile("", "")
    values: dict[str, Any] = {}
    for key in SETTABLE:
        value = getattr(profile, key)
        if key in ("name", "backend") or value != getattr(empty, key):
            values[key] = list(value) if isinstance(value, tuple) else value
    if "models" in values:
        values["models"] = {name: list(patterns) for name, patterns in profile.models.items()}
    return values


def save_profile(config: Config, profile: Profile, *, overwrite: bool = False) -> Path:
    """Keep a profile as the person's own; one that came with DocMind and has its name is hidden, not changed.

    The file is whole at every moment. One that is overwritten and has comments stays beside it, as `*.toml.before`.

    Args:
        overwrite: Whether one of the person's own of that name may be replaced.

    Raises:
        ProfileError: A value does not fit, or there is one of that name (`profile_exists`).
        SettingsError: The file cannot be written.
    """
    import tomli_w

    text = tomli_w.dumps(as_values(make_profile(as_values(profile))))
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise ProfileError(f"'{profile.name}' has characters that no file can hold.", "Type them anew.") from error
    path = _own_file(config, profile.name)
    if path is None:
        path = _new_file(config, profile.name)
    elif not overwrite:
        raise ProfileError(
            f"There is a profile '{profile.name}' of yours already.", "Take another name, or say that it is replaced.",
            reason="profile_exists",
        )  # fmt: skip
    else:
        before = path.read_text(encoding="utf-8", errors="replace")
        if re.search(r"^\s*#", before, re.MULTILINE):
            write_whole(path.with_name(f"{path.name}.before"), before)
    write_whole(path, text)
    return path


def remove_profile(config: Config, name: str) -> Path:
    """Remove one of the person's own; a shipped one of that name is there again.

    Raises:
        ProfileError: There is none of that name, or it came with DocMind.
        SettingsError: The file cannot be removed.
    """
    path = _own_file(config, name)
    if path is None:
        find_profile(config, name)
        raise ProfileError(
            f"'{name}' came with DocMind and stays.", "Save one of your own of that name, switched off, to hide it.",
            reason="profile_shipped",
        )  # fmt: skip
    try:
        path.unlink()
    except OSError as error:
        raise SettingsError(f"{path} cannot be removed ({error.strerror}).", "Check its permissions.") from error
    return path


def copy_name(config: Config, name: str) -> str:
    """A name for a copy that no profile has."""
    taken = {profile.name for profile in readable_profiles(config)[0]} | {path.stem for path, _ in _files(config)}
    number, base = 1, name[: NAME_CHARACTERS - 10]
    while (copy := f"{base} copy" if number == 1 else f"{base} copy {number}") in taken:
        number += 1
    return copy


def _own_file(config: Config, name: str) -> Path | None:
    """The person's file of a profile; a broken one is known by its file's name."""
    for path, source in reversed(_files(config)):  # the one that counts first
        if source != "user":
            continue
        try:
            known = read_profile(path, source).name
        except ProfileError:
            known = path.stem
        if known == name:
            return path
    return None


def _new_file(config: Config, name: str) -> Path:
    """Where a new profile goes: a file name that every system takes, and that no other profile has there.

    Windows knows no `CON` or `com1.toml`, no trailing dot and no `a/b`, and like macOS it takes `Mine` and `mine` for
    one file: what is not a plain lower-case name gets a few characters of its hash.
    Source: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
    """
    folder = config.model_folders[0]
    slug = re.sub(r"[^a-z0-9_-]+", "-", name.casefold()).strip("-")[:40]
    is_reserved = re.fullmatch(r"con|prn|aux|nul|(com|lpt)[0-9]", slug) is not None
    path = folder / f"{slug}.toml"
    if slug != name or is_reserved or path.exists():
        path = folder / f"{slug or 'profile'}-{hashlib.sha256(name.encode()).hexdigest()[:10]}.toml"
    return path


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return (f"Did you mean '{close[0]}'? " if close else "") + f"There are: {', '.join(sorted(known))}."
