"""Saved choices of backend, model and settings: TOML files, shipped in models/ and the person's own in the data folder.

A profile of the person wins over a shipped one of the same name. Knows no backend's inside and no Streamlit.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from docmind.errors import ProfileError

if TYPE_CHECKING:
    from pathlib import Path

    from docmind.config import Config

DEFAULT = "starter"


@dataclass(frozen=True, slots=True)
class Profile:
    """A saved choice. None leaves a setting to the backend."""

    name: str
    backend: str
    model: str
    role: str = ""  # fast, balanced, technical, reasoning, or ""
    enabled: bool = True
    description: str = ""
    agent: Literal["direct", "react"] = "direct"
    context_window: int | None = None  # tokens
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_output_tokens: int = 512
    history_tokens: int = 8_192  # of the conversation before, at most; 0: each question stands by itself
    max_sentences: int | None = None  # the model is stopped after so many: a very small one rambles
    stop: tuple[str, ...] = ()
    system_prompt: str = ""  # "": the one of docmind.prompts
    fallbacks: tuple[str, ...] = (DEFAULT,)  # profiles that go on when this one's model cannot
    options: dict[str, Any] = field(default_factory=dict)  # the backend's own
    source: Literal["shipped", "user"] = "shipped"


SETTABLE = tuple(f.name for f in dataclasses.fields(Profile) if f.name != "source")


def load_profiles(config: Config) -> list[Profile]:
    """All profiles, by name; the person's win over shipped ones.

    Raises:
        ProfileError: A file is no TOML, lacks a key, or has an unknown key (the hint names the nearest valid one).
    """
    found = {profile.name: profile for profile in (read_profile(path, source) for path, source in _files(config))}
    return [found[name] for name in sorted(found)]


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
    """Read one TOML file; the profile is called as the file unless it says otherwise."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"The profile {path} cannot be read ({error}).", "Mend or remove the file.") from error
    values.setdefault("name", path.stem)
    hints = get_type_hints(Profile)
    for key, value in values.items():
        if key not in SETTABLE:
            raise ProfileError(f"The profile {path} has an unknown key '{key}'.", _nearest(key, list(SETTABLE)))
        values[key] = _checked(path, key, value, hints[key])
    for key in ("backend", "model"):
        if not values.get(key):
            raise ProfileError(f"The profile {path} names no {key}.", f'Add a line such as {key} = "…".')
    return Profile(**values, source=source)


def _checked(path: Path, key: str, value: Any, hint: Any) -> Any:
    """The value in the type the field declares."""
    if get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return tuple(value)
        fits = False
    elif get_origin(hint) is Literal:
        fits = value in get_args(hint)
    else:
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
        if float in kinds and type(value) is int:
            value = float(value)
        fits = any(type(value) is kind for kind in kinds)
    if not fits:
        raise ProfileError(f"In the profile {path}, {value!r} is no value for '{key}'.", f"It takes {_readable(hint)}.")
    return value


def _readable(hint: Any) -> str:
    """What a field takes, in words."""
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    kind = get_args(hint)[0] if isinstance(hint, UnionType) else get_origin(hint) or hint
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list of texts"}
    return words.get(kind, "a table")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return (f"Did you mean '{close[0]}'? " if close else "") + f"There are: {', '.join(sorted(known))}."
