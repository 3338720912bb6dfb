"""The recipe works: the backend that docs/add-a-backend.md is made of passes the conformance suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "docs" / "add-a-backend.md"

# Loaded by pytest before it collects: puts the page's files where their first lines say they belong.
PLUGIN = """
import contextlib, sys
import docmind.backends
docmind.backends.__path__.append({folder!r})
docmind.backends.REGISTRY.clear()
docmind.backends.REGISTRY["parrot"] = "docmind.backends.parrot"
import peers
exec(compile(open({entry!r}).read(), "peers.py", "exec"), vars(peers))
"""


def test_the_backend_in_the_recipe_passes_the_conformance_suite(tmp_path):
    """Its text is taken from the page as it stands; only the test of a fresh process cannot know it."""
    blocks = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", RECIPE.read_text(encoding="utf-8"), re.M | re.S))
    assert list(blocks) == [
        "docmind/backends/parrot.py", "docmind/backends/parrot_llm.py", "tests/backends/peers.py"
    ]  # fmt: skip
    for path, text in blocks.items():
        (tmp_path / Path(path).name.replace("peers", "entry")).write_text(text, encoding="utf-8")
    plugin = PLUGIN.format(folder=str(tmp_path), entry=str(tmp_path / "entry.py"))
    (tmp_path / "parrot_plugin.py").write_text(plugin, encoding="utf-8")
    path = [tmp_path, REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "backends"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "parrot_plugin", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "tests/backends/test_conformance.py", "-k", "not importing"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 15, run.stdout
