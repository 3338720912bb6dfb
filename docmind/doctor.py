"""Checks that explain themselves; their text is also what a bug report needs."""

from __future__ import annotations

import platform
import shutil
import sqlite3
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from docmind import __version__, embed, store, vectors
from docmind.errors import DocMindError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docmind.config import Config

LITTLE_DISK_BYTES = 1 << 30
PACKAGES = ("llama-index-core", "llama-cpp-python", "sentence-transformers", "torch", "pypdfium2", "pypdf")


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `detail` is what was found, `hint` what to do when it is not ok."""

    check: str
    ok: bool
    detail: str
    hint: str = ""


def run_checks(config: Config) -> Iterator[Check]:
    """Every check, the quick ones first. Never raises: what goes wrong is what is reported."""
    yield Check("version", True, f"DocMind {__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Check("packages", True, ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    yield Check("data folder", True, f"{config.home} (move it with DOCMIND_HOME or --home)")
    yield from _guarded("library", lambda: _library(config))
    yield from _guarded("disk", lambda: _disk(config))
    yield from _guarded("embedding", lambda: _embedding(config))
    yield from _guarded("models", lambda: _models(config))
    yield from _guarded("profiles", lambda: _profiles(config))
    yield from _guarded("answering", lambda: _answering(config))
    yield Check("log", True, f"{config.log} (holds no text of documents, questions or answers)")


def _guarded(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    try:
        yield check()
    except DocMindError as error:
        yield Check(name, False, str(error), error.hint)
    except OSError as error:
        yield Check(name, False, str(error), "Check the folder and its permissions.")


def _library(config: Config) -> Check:
    from docmind.library import open_library

    if not config.database.exists():
        return Check("library", True, "empty: no documents yet")
    library = open_library(config=config)
    with store.reading(config.database) as db:
        verdict = db.execute("PRAGMA quick_check").fetchone()[0]
    if verdict != "ok":
        return Check("library", False, f"damaged: {verdict}", "Move library.sqlite3 away and add your documents again.")
    counts = library.counts()
    unreadable = [d for d in library.documents() if d.state != "ready"]
    detail = f"{counts['documents']} documents, {counts['pages']} pages, {counts['passages']} passages"
    if unreadable:
        detail += f", {len(unreadable)} only partly readable"
    return Check("library", True, detail + f" (SQLite {sqlite3.sqlite_version})")


def _disk(config: Config) -> Check:
    folder = next(path for path in (config.home, *config.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return Check(
        "disk",
        free > LITTLE_DISK_BYTES,
        f"{free / 1e9:.1f} GB free",
        "" if free > LITTLE_DISK_BYTES else "Free some space.",
    )


def _embedding(config: Config) -> Check:
    """The model that makes the vectors; one of a backend is asked for a vector, and compared with the library's."""
    folder = embed.model_folder()
    embed.load_tokenizer()
    choice = vectors.chosen(config)
    if choice is None:
        return Check("embedding", True, f"{embed.model_name()} at {folder}")
    place, host = vectors.destination(config, choice)
    identity = vectors.identity(config, choice)
    if config.database.exists():
        from docmind.library import open_library

        open_library(config=config).check_embedding(identity)
    detail = f"{choice.name}, {identity.dimension} numbers a vector; passages and questions go to {host} on {place}"
    return Check("embedding", True, detail)


def _models(config: Config) -> Check:
    from docmind.detection import PATIENT_SECONDS, detect_all

    found = detect_all(config, max_age_seconds=0, wait_seconds=PATIENT_SECONDS)
    there = [f"{d.label} {d.version or ''} with {len(d.models)} models" for d in found if d.available]
    if there:
        return Check("models", True, ", ".join(there))
    return Check(
        "models", False, "; ".join(f"{d.label}: {d.reason}" for d in found), " ".join(d.hint or "" for d in found)
    )


def _profiles(config: Config) -> Check:
    from docmind import routing
    from docmind.profiles import load_profiles

    profiles = load_profiles(config)
    for profile in profiles:
        routing.check(profile)
    return Check("profiles", True, ", ".join(f"{p.name} ({p.source})" for p in profiles))


def _answering(config: Config) -> Check:
    """The default profile's model, loaded and run for one token: a native crash shows here and not in an answer."""
    from docmind import routing
    from docmind.backends import backend
    from docmind.profiles import find_profile

    profile = routing.with_fallbacks(config, find_profile(config))[0]
    routing.find_model(config, profile)
    llm: Any = backend(profile.backend).build(config, profile.model, routing.options(profile))
    try:
        llm.warm_up()
        speed = llm.prefill_tokens_per_second
    finally:
        llm.close()
    figure = f" reads {speed:.0f} tokens/s" if speed else " is ready"
    return Check("answering", True, f"{profile.name}: {profile.model}{figure}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
