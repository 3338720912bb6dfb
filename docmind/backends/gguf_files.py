"""Where GGUF files lie on this machine: the person's folders, and what other programs fetched before.

Knows names and places and reads no file. However large a folder is, a bounded part of it is looked at. Files in the
caches of other programs are used where they are: nothing is written, moved or deleted there.

Source of the places: huggingface.co/docs/huggingface_hub, "Environment variables" and "Understand caching" (a link in
`snapshots` for each revision, the bytes in `blobs`); lmstudio.ai/docs, "Import models" (`models/publisher/model/`), and
its former folder in `.cache`.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from docmind.config import Config

Place = Literal["bundled", "own", "shipped", "named", "cache"]

# Below one folder. A whole disk named by mistake must not hold up a list; the caches of people who collect models have
# some hundreds.
MAX_ENTRIES = 5_000
MAX_FILES = 300
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A model's file, or the first of its parts."""

    name: str  # that no other has
    path: Path
    place: Place


@dataclass(slots=True)
class _Budget:
    """How much of a folder may still be looked at."""

    entries: int = field(default_factory=lambda: MAX_ENTRIES)
    files: int = field(default_factory=lambda: MAX_FILES)


def gguf_files(config: Config, bundled: Iterable[tuple[str, Path]] = ()) -> list[GgufFile]:
    """All GGUF files that can be found, those of the person first; of two with one name the later is "name (2)".

    A link in the person's own folder is a name they gave. Elsewhere a file that is listed already is not listed again,
    however it is reached. Vision projectors (`mmproj…`), which are parts of models, are left out.

    Args:
        bundled: Names and paths of those that come with the installation; they stand first.
    """
    own, shipped = config.model_folders
    places: list[tuple[Place, Iterable[tuple[str, Path]]]] = [
        ("bundled", bundled),
        ("own", _below(own, 1)),
        ("shipped", _below(shipped, 1)),
        ("named", itertools.chain.from_iterable(_below(folder, 2) for folder in config.named_model_folders)),
        ("cache", _caches() if config.has_model_caches else ()),
    ]
    found: list[GgufFile] = []
    names: set[str] = set()
    seen: set[str] = set()
    for place, files in places:
        for stem, path in files:
            real = os.path.realpath(path)
            if place in ("named", "cache") and real in seen:
                continue
            seen.add(real)
            name = next(n for n in itertools.chain([stem], (f"{stem} ({i})" for i in itertools.count(2)))
                        if n not in names)  # fmt: skip
            names.add(name)
            found.append(GgufFile(name, path, place))
    return found


def parts(path: Path) -> list[Path]:
    """All files of a model of which this is the first."""
    part = _PART.search(path.stem)
    if part is None:
        return [path]
    stem = _PART.sub("", path.stem)
    return [path.with_name(f"{stem}-{number:05}-of-{part[2]}.gguf") for number in range(1, min(int(part[2]), 999) + 1)]


def model_name(path: Path) -> str | None:
    """What a model in this file is called; None for a later part, and for what is no model of its own."""
    part = _PART.search(path.stem)
    is_model = path.suffix.lower() == ".gguf" and not path.name.startswith(".") and "mmproj" not in path.name.lower()
    return _PART.sub("", path.stem) if is_model and (part is None or int(part[1]) == 1) else None


def hub_cache() -> Path:
    """The folder in which the Hugging Face libraries keep what they fetched."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else _home() / ".cache") / "huggingface" / "hub"


def lm_studio_folders() -> list[Path]:
    """The folders in which LM Studio keeps models unless it was told otherwise: now, and in older versions."""
    return [_home() / ".lmstudio" / "models", _home() / ".cache" / "lm-studio" / "models"]


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none


def _caches() -> Iterator[tuple[str, Path]]:
    """What other programs fetched."""
    for folder in lm_studio_folders():
        yield from _below(folder, 2)
    budget = _Budget()
    for repository in _listed(hub_cache(), budget):
        if repository.name.startswith("models--"):
            # The revisions, and folders within them: large models are often split into a folder of parts.
            yield from _below(Path(repository.path) / "snapshots", 2, budget)


def _below(folder: Path, depth: int, budget: _Budget | None = None) -> Iterator[tuple[str, Path]]:
    """Name and path of the models in a folder and so many levels below it; of a model in parts the first."""
    budget = budget or _Budget()
    folders: list[Path] = []
    for entry in _listed(folder, budget):
        path = folder / entry.name
        name = model_name(path)
        try:
            if name is not None and budget.files and entry.is_file():
                budget.files -= 1
                yield name, path
            elif depth and entry.is_dir():
                folders.append(path)
        except OSError:  # a link in a circle, a drive that has gone
            continue
    for inner in folders:
        yield from _below(inner, depth - 1, budget)


def _listed(folder: Path, budget: _Budget) -> list[os.DirEntry[str]]:
    """A folder's entries by name, as far as the budget goes; none of a folder that cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            listed = list(itertools.islice(entries, budget.entries))
    except OSError:
        return []
    budget.entries -= len(listed)
    return sorted(listed, key=lambda entry: entry.name)
