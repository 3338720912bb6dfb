"""The README says what the program does: its commands, its options and its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from docmind.cli import build_parser

REPOSITORY = Path(__file__).parents[1]

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"`(docmind [^`]+)`|^(docmind [^#\n]+)", README, re.MULTILINE)))


@pytest.mark.parametrize("line", [a or b for a, b in COMMANDS])
def test_every_command_of_the_readme_is_one(line):
    """Its name and its options are those of the parser."""
    words = shlex.split(line.replace("…", "x"))[1:]
    parser = build_parser()
    commands = next(action for action in parser._actions if getattr(action, "choices", None)).choices
    known = {option for action in parser._actions for option in action.option_strings}
    if not words[0].startswith("-"):
        assert words[0] in commands
        known = {option for action in commands[words[0]]._actions for option in action.option_strings}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_every_link_of_the_readme_leads_somewhere(target):
    """To a file of this repository."""
    assert (REPOSITORY / target).exists()


def test_the_tree_of_the_readme_has_every_file():
    """Each file of the program has its line, and each line its file."""
    tree = re.search(r"^(docmind/ .*?)```", README, re.DOTALL | re.MULTILINE)[1]
    folder, listed = "", set()
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if indent == 2:
            folder = name if name.endswith("/") else ""
        if line.startswith("  ") and not name.endswith("/"):
            listed.add((folder if indent == 4 else "") + name)
    package = REPOSITORY / "docmind"
    assert listed == {str(path.relative_to(package)) for path in package.rglob("*.py")}
