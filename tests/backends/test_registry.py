"""The registry of backends and the checking of options."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docmind.backends import REGISTRY, Option, backend, checked_options
from docmind.errors import BackendError, BackendUnavailable

REPOSITORY = Path(__file__).parents[2]
GUIDES = sorted((REPOSITORY / "docs" / "backends").glob("*.md"))
SOME = (Option("temperature", float, 0.1, "", "Heat.", 0, 5), Option("stop", list, None, "texts", "Ends."))


@pytest.mark.parametrize("name", REGISTRY)
def test_every_backend_has_the_names_of_the_protocol(name, config):
    """A backend is a module with five names."""
    module = backend(name)
    assert module.LABEL
    assert all(option.description for option in module.OPTIONS)
    assert module.detect(config).backend == name
    assert callable(module.build)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_lists_exactly_the_options_of_its_backend(guide):
    """With unit, default and words as in the code; the file is named as the backend is in the registry."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", guide.read_text(encoding="utf-8"), re.M)

    def default(option):
        return "–" if option.default is None else f"`{json.dumps(option.default)}`"

    assert rows == [
        (option.name, option.unit or "–", default(option), "yes" if option.per_call else "no", option.description)
        for option in backend(guide.stem).OPTIONS
    ]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_backend_has_its_guide_with_one_command_to_set_it_up(name):
    """The first section; its first block of code is that command. What is optional comes after it."""
    guide = (REPOSITORY / "docs" / "backends" / f"{name}.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.+)\n", guide, flags=re.M)[1:]
    assert sections[0] == "Set-up"
    assert sections.count("Set-up") == 1
    blocks = re.findall(r"(?:^    .+\n)+", sections[1], re.M)
    assert blocks[0].count("\n") == 1
    assert len(blocks) == 1 or name == "llama.cpp"  # which then asks the model that was fetched


@pytest.mark.parametrize("name", REGISTRY)
def test_every_backend_has_its_row_in_the_readme(name):
    """In the table of backends, with what it takes and where text goes; the clouds share one."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| backend \| what it takes \| where text goes \|\n\|[-|]+\|\n((?:\|.*\n)+)", readme, re.M)
    rows = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table[1].splitlines()]
    ours = [row for row in rows if f"](docs/backends/{name}.md)" in row[0]]
    assert len(ours) == 1
    assert len(ours[0]) == 3
    assert all(ours[0])


def test_importing_and_listing_loads_neither_llama_index_nor_the_native_library(tmp_path):
    """The first paint of the app must not wait for them."""
    code = (
        "import sys, docmind.backends as b; from docmind.config import Config; from pathlib import Path\n"
        f"print(len(b.backend('llama.cpp').detect(Config(Path({str(tmp_path)!r}))).models))\n"
        "print([m for m in ('llama_index', 'llama_cpp', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1", "[]"]


def test_an_unknown_backend_names_the_known_ones():
    """The error says what to write instead."""
    with pytest.raises(BackendUnavailable) as caught:
        backend("llamacpp")
    assert "llama.cpp" in caught.value.hint


def test_an_unknown_option_names_the_nearest():
    """A typing mistake must not be dropped silently."""
    with pytest.raises(BackendError) as caught:
        checked_options(SOME, {"temprature": 1.0})
    assert caught.value.reason == "unknown_option"
    assert "Did you mean 'temperature'?" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", "hot"), ("temperature", math.nan), ("temperature", True), ("stop", [""]),
     ("stop", "text"), ("stop", [1])],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(name, value):
    """Type and range, NaN and True included."""
    with pytest.raises(BackendError) as caught:
        checked_options(SOME, {name: value})
    assert caught.value.reason == "invalid_option"


def test_a_whole_number_stands_for_a_float_and_none_for_the_default():
    """What a form or a TOML file may give."""
    assert checked_options(SOME, {"temperature": 1, "stop": None}) == {"temperature": 1.0}
