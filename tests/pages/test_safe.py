"""Markdown made of what strangers write, as text; what a browser makes of it: tests/browser/test_safe_browser.py."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings, strategies

from pages.parts.safe import answer, answer_with_chips, plain, plain_with_code


def test_a_name_becomes_one_line_that_is_not_too_long():
    """Line ends, controls and direction marks go; the end is cut with a sign that says so."""
    assert plain("a\n\tb\x00c\u202ed\u200be\ufeff\u2028f") == "a b cde f"
    assert plain("x" * 300) == "x" * 199 + "…"
    assert plain("x" * 300, limit=10) == "x" * 9 + "…"
    assert plain("*" * 10, limit=10) == "\\*" * 10
    assert plain("bad \udce4 name") == "bad \ufffd name"
    assert plain("Z" + "\u0301" * 100) == "Z" + "\u0301" * 4
    assert plain("\n\u200b ") == ""
    assert plain("a perfectly ordinary name (2), final.pdf") == "a perfectly ordinary name (2), final.pdf"


def test_a_command_in_a_message_is_code():
    """Between two backticks, and then as it is written; a lone one or a longer run of them are letters."""
    assert plain_with_code("Run `docmind doctor *` or `a\\b`.") == "Run `docmind doctor *` or `a\\b`."
    assert plain_with_code("*a* `b` `c") == "\\*a\\* `b` \\`c"
    assert plain_with_code("``x`` ` ` `") == "\\`\\`x\\`\\` \\` \\` \\`"
    assert plain_with_code("![x](y) `![x](y)\n<img>`") == "\\!\\[x\\](y) `![x](y) <img>`"
    assert plain_with_code("Run `a long command`", limit=12) == "Run \\`a long…"


def read_back(written):
    """What markdown without any live sign shows, code in its backticks; fails at a sign that lives."""
    shown, position = [], 0
    while position < len(written):
        match written[position]:
            case "\\":
                shown.append(written[position + 1])
                position += 2
                continue
            case "`":
                end = written.index("`", position + 1)
                shown.append(written[position : end + 1])
                position = end
            case sign:
                assert sign not in "]!#$&*:<=>@[_{|}~", written
                shown.append(sign)
        position += 1
    return "".join(shown).replace("\u2060", "")


SIGNS = [*"`````![](<>&:*_$#|\\=~{}@-+1. ab\n", "www.", "http://", ":red[", ":material/home:", ":smile:", "``", "->"]


@settings(deadline=None)  # a busy machine may be slow at any of them
@given(strategies.lists(strategies.sampled_from(SIGNS), max_size=60).map("".join) | strategies.text())
def test_outside_of_code_every_sign_is_escaped(text):
    """Whatever a message is: only pairs of backticks live, and every letter is there."""
    assert read_back(plain_with_code(text)) == read_back(plain(text, limit=500))


def test_what_an_answer_may_contain_stays():
    """Paragraphs, lists, emphasis, tables, quotations and code go through as they are."""
    text = (
        "A **bold** word and `code = x[0] | y` here.\n\n- one\n- two\n  - nested\n\n1. first\n2. second\n\n"
        "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n> quoted\n\n_end_"
    )
    assert answer(text) == text


def test_code_shows_no_backslash_of_ours():
    """Neither in a block, whatever is in it and wherever it begins, nor between backticks."""
    code = 'grep "[a-z]" <x> | sed s/$1/:a:/ && echo ![x](http://y) # `z` ```q'
    assert code in answer(f"Do:\n```bash\n{code}\n```\nDone.")
    assert code in answer(f"Do:\n```bash\n{code}")
    assert f"\n{code}\n" in answer(f"1. Do:\n   ```bash\n   {code}\n   ```")
    assert f"\n{code}\n" in answer(f"> ```\n> {code}\n> ```\nafter")
    assert answer("`vec![1]` and ``a`b[0]``") == "`vec![1]` and ``a`b[0]``"
    assert answer("| `a|b` |\n|---|\n") == "| `a\\|b` |\n|---|\n"


@pytest.mark.parametrize("end", range(0, 68))
def test_a_half_finished_answer_is_inert_at_every_letter(end):
    """An open fence is closed, an open picture is text."""
    text = "See ![a](http://e.example)\n\n```py\nx = [1](2)\n```\nand `y![z](w)` end"[:end]
    written = answer(text)
    fences = [line for line in written.split("\n") if line.startswith("```")]
    assert len(fences) % 2 == 0
    outside = re.sub(r"```[^\0]*?\n```|`[^`\n]+`", "", written)
    assert not re.search(r"(?<!\\)[\[\]<$&!]", outside)


def test_headings_become_a_bold_line():
    """No jump in size, no link to itself, a paragraph of its own."""
    assert answer("# A **big** thing #\ntext\n## Next") == "**A big thing**\n\ntext\n\n**Next**"
    assert answer("Title\n=====\nOther\n---\n-") == "Title\n\\=====\nOther\n***\n\\-"


def test_chips_stand_where_a_sentence_ends():
    """In text, after code, in the last cell of a row, behind a heading; in order, and none is lost."""
    text = "# Head.\nOne. Two `a. b` end.\n- item.\n\n| a | b |\n|---|---|\n| 1 | 2. |\n\n```\nx.\n```\n\nlast."
    places = ["Head.", "One.", "`a.", " end.", "item.", "| 2. |", "x.", "last."]
    ends = [(text.index(place) + len(place), f"<{number}>") for number, place in enumerate(places)]
    assert answer_with_chips(text, [*reversed(ends), (len(text) + 9, "<8>"), (len(text), "<9>")]) == (
        "**Head.**<0>\n\nOne.<1> Two `a. b`<2> end.<3>\n- item.<4>\n\n| a | b |\n|---|---|\n| 1 | 2. <5>|\n\n"
        "\n```\nx.\n```\n<6>\n\nlast.<7><9><8>"
    )


def test_a_chip_after_an_exclamation_mark_is_no_picture():
    """`Wow!` and `[1](#cite-1-1)` together would be one."""
    assert answer_with_chips("Wow!", [(4, "[1](#cite-1-1)")]) == "Wow\\![1](#cite-1-1)"


@pytest.mark.parametrize("raw", ["", " ", "\n", "\r\n", "a\n", " a  \nb"], ids=repr)
def test_blanks_around_a_piece_stay(raw):
    """Pieces can be joined again."""
    assert answer(raw) == raw.replace("\r\n", "\n")


def test_a_long_answer_is_written_in_time():
    """It is done again several times a second while the answer grows; hostile ones included."""
    for text in (
        "word `x` [y] ! " * 4_000,
        "`" * 60_000,
        "`" + " ``" * 20_000,
        ":a" * 30_000,
        "> " * 20_000,
        "- " * 9_000,
    ):
        assert answer(text)
        assert plain(text)
