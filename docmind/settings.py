"""What the person decided for the whole program, in `settings.toml` of the data folder: who may be sent text, the order
in which backends are tried, and which model makes the vectors. Knows folders, no backend."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docmind.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from docmind.config import Config

LOCK_SECONDS = 10.0  # to wait for somebody else who changes them


@dataclass(frozen=True, slots=True)
class Settings:
    """The decisions. What the file does not say is as here."""

    local_only: bool = False  # nothing at all is asked or sent beyond this device
    allowed: tuple[str, ...] = ()  # addresses beyond this device that may be sent questions and passages
    backend_order: tuple[str, ...] = ()  # in which backends are tried; those not named follow in their own order
    embedding: str = ""  # "backend:model" that makes the vectors of search; "": the model that comes with DocMind
    embedding_options: dict[str, str] = field(default_factory=dict)  # its address and prefixes (docs/embeddings.md)


# Each kind of value: how it is annotated above, and in words.
_KINDS = {
    "bool": "true or false", "str": "a text", "tuple[str, ...]": "a list of texts", "dict[str, str]": "a table of texts"
}  # fmt: skip


def read_settings(config: Config) -> Settings:
    """The decisions of the moment. They are read anew each time: another process may have changed them.

    Raises:
        SettingsError: The file cannot be read, or says something that is no setting. Nothing is assumed then: a
            switch that was thrown must not open by itself.
    """
    path = config.settings
    try:
        with path.open("rb") as file:
            said = tomllib.load(file)
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets without end
        raise SettingsError(f"The settings {path} cannot be read ({error}).", "Mend or remove the file.") from error
    kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in kinds:
            known = ", ".join(kinds)
            raise SettingsError(f"The settings {path} have an unknown key '{name}'.", f"There are: {known}.")
        kind = str(kinds[name])
        if not _fits(value, kind):
            raise SettingsError(
                f"In the settings {path}, {value!r} is no value for '{name}'.", f"It takes {_KINDS[kind]}."
            )
        values[name] = tuple(value) if isinstance(value, list) else value
    return Settings(**values)


def _fits(value: object, kind: str) -> bool:
    """Whether a value of the file is of a kind in `_KINDS`."""
    if kind in ("bool", "str"):
        return type(value).__name__ == kind
    if kind == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(part, str) for part in value.values())
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def save_settings(config: Config, settings: Settings) -> None:
    """Keep them: the file is whole at every moment.

    Raises:
        SettingsError: They cannot be written.
    """
    import tomli_w

    text = tomli_w.dumps(dataclasses.asdict(settings))
    write_whole(config.settings, text)


def change_settings(config: Config, change: Callable[[Settings], Settings]) -> Settings:
    """Keep what a function makes of the decisions; gives them. Two who change them at once lose nothing.

    Raises:
        SettingsError: They cannot be read or written.
    """
    import filelock

    try:
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with filelock.FileLock(f"{config.settings}.lock", timeout=LOCK_SECONDS):
            settings = change(read_settings(config))
            save_settings(config, settings)
    except (OSError, filelock.Timeout) as error:
        raise SettingsError(f"{config.settings} cannot be changed ({error}).", "Try again in a moment.") from error
    return settings


def write_whole(path: Path, text: str) -> None:
    """A small file of the person's, written beside its place and moved there.

    Raises:
        SettingsError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}).", "Check the folder, its permissions and the free disk."
        ) from error
