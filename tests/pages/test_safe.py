"""What strangers write can do nothing on any surface, and is still readable."""

from __future__ import annotations

import json
import random
import re

import pytest
from serving import browsing, other_hosts, served

from pages.parts.safe import answer, answer_with_chips, plain

PAYLOADS = [
    "BESTBUY_2023_10K.pdf",
    "![picture](http://evil.example/a.png)",
    "[click me](http://evil.example/b)",
    "[click me][ref] [ref]: http://evil.example/c",
    "![picture][ref]",
    "http://evil.example/d",
    "https://evil.example/e?f=g_h*i*",
    "see www.evil.example/j.",
    "mail someone@evil.example now",
    "<http://evil.example/k> <someone@evil.example>",
    "<img src=http://evil.example/l.png onerror=alert(1)>",
    "<script>alert(1)</script><iframe src=http://evil.example/m></iframe>",
    "<a href='javascript:alert(1)'>x</a><style>*{display:none}</style>",
    "&lt;img src=http://evil.example/n&gt; &#104;ttp://evil.example/o &#58;smile&#58;",
    "http\\://evil.example/p \\![x](http://evil.example/q) \\\\[x](http://evil.example/r)",
    "> quoted ![x](http://evil.example/s)",
    "- listed ![x](http://evil.example/t)",
    "1. numbered",
    "# Heading ![x](http://evil.example/u)",
    "+ plus",
    "***",
    "---",
    "===",
    "$x^2$ and $$\\frac{1}{2}$$ for $5 or $6",
    ":material/home: :streamlit: :smile: :+1: :100: 10:30:45",
    ":red[danger] :blue-badge[1](#cite-1-1) :rainbow[x] :small[y] :help[z] :color[w]{foreground=red}",
    "[:blue-badge[1]](#cite-1-1)",
    "::leaf[x] :::container",
    "`code` ``more`` ` open ``` fence",
    "```mermaid graph LR; A-->B```",
    "a | b ![x](http://evil.example/v) | c",
    "|---|---|",
    "[^1] [^1]: note",
    "- [ ] task [x] done",
    "~~struck~~ ~low~ **bold** __bold__ *it* _it_",
    "-> <- <-> -- >= <= ~= a -- b",
    "trailing backslash \\",
    "exclamation!",
    "עברית ופרסی‌ها",
    "e\u0301\u0301 o\u0308 👨‍👩‍👧",
]

APP = """
import json
from pathlib import Path
import streamlit as st
from pages.parts.safe import answer, plain

payloads = json.loads(Path("payloads.json").read_text(encoding="utf-8"))
surface = st.query_params.get("surface", "")
for number, payload in enumerate(payloads):
    name = plain(payload)
    with st.container(key=f"payload{number}"):
        if surface == "markdown": st.markdown(name)
        if surface == "caption": st.caption(name)
        if surface == "button": st.button(name, key=f"button{number}")
        if surface == "expander": st.expander(name, expanded=True).markdown("inside")
        if surface == "table": st.table([{name: name}])
        if surface == "chat": st.chat_message("user").markdown(name)
        if surface == "middle": st.markdown(f"**{name}** and :red[{name}] then")
        if surface == "answer": st.chat_message("assistant").markdown(answer(payload))
        if surface == "raw": st.markdown(payload)
if surface == "toast":
    number = int(st.query_params["number"])
    st.toast(plain(payloads[number]), duration="infinite")
st.text("everything is drawn")
"""

# What Streamlit itself draws on a surface, taken away before looking for what came from a payload.
FOREIGN = """() => [...document.querySelectorAll('[data-testid=stMarkdownContainer], [data-testid=stToast]')].flatMap(
    box => [...box.querySelectorAll('a, img, script, style, iframe, object, video, audio, form, input, svg, h1, h2, '
        + 'h3, h4, h5, h6, [role=img], .katex, section, sup')]
        .filter(found => !found.closest('button, [data-testid=stCode], [data-testid=stToastDynamicIcon]'))
        .map(found => found.outerHTML.slice(0, 200)))"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The app that draws each payload on one surface."""
    folder = tmp_path_factory.mktemp("surfaces")
    (folder / "payloads.json").write_text(json.dumps(PAYLOADS), encoding="utf-8")
    with served(APP, folder) as address:
        yield address


def wait_until_drawn(page):
    """The script is through, each payload shows something, and nothing is being loaded."""
    page.get_by_text("everything is drawn").wait_for()
    page.wait_for_function("[...document.querySelectorAll('[class*=st-key-payload]')].every(box => box.innerText)")
    page.wait_for_load_state("networkidle")


def letters(text):
    """What is left of a text without blanks and what nobody sees."""
    return re.sub(r"[\s\u2060]", "", text)


def words_in_order(text):
    """Letters and digits only."""
    return "".join(filter(str.isalnum, text))


@pytest.mark.parametrize("surface", ["markdown", "caption", "button", "expander", "table", "chat", "middle", "answer"])
def test_no_payload_does_anything_on_any_surface(address, surface):
    """No other host is asked, nothing but text is drawn, and the text is all there."""
    with browsing(f"{address}/?surface={surface}") as page:
        wait_until_drawn(page)
        assert other_hosts(page, address) == []
        assert page.evaluate(FOREIGN) == []
        for number, payload in enumerate(PAYLOADS):
            shown = page.locator(f".st-key-payload{number}").inner_text()
            if surface == "answer":  # where the number of a list item is drawn by the list
                assert words_in_order(payload.removeprefix("1.")) in words_in_order(shown), payload
            else:
                assert letters(payload) in letters(shown), payload


def test_no_payload_does_anything_in_a_toast(address):
    """One at a time: Streamlit shows only a few."""
    with browsing(address) as page:
        for number in (1, 5, 10, 13, 24, 25):
            page.goto(f"{address}/?surface=toast&number={number}")
            toast = page.get_by_test_id("stToast")
            toast.wait_for()
            page.wait_for_load_state("networkidle")
            assert page.evaluate(FOREIGN) == []
            assert letters(PAYLOADS[number]) in letters(toast.inner_text())
        assert other_hosts(page, address) == []


def test_the_payloads_would_do_harm(address):
    """Without protection they reach out: otherwise the tests above prove nothing."""
    with browsing(f"{address}/?surface=raw") as page:
        page.get_by_text("everything is drawn").wait_for()
        page.locator(".katex").first.wait_for()
        page.wait_for_load_state("networkidle")
        assert any("evil.example" in asked for asked in other_hosts(page, address))
        found = " ".join(page.evaluate(FOREIGN))
        for piece in ("<a ", "<img ", 'role="img"', "katex", "<h1", "<input"):
            assert piece in found, piece


ATOMS = [
    "`", "``", "```", "\n", "\n", "\n\n", "  ", "    ", "- ", "1. ", "> ", "|", "|---|---|\n", "-|-\n", "---\n", "===",
    "\n===\n", "![i](http://evil.example/x)", "[l](http://evil.example)", "<img src=http://evil.example/y>", "<a:b>",
    "<http://evil.example>", "www.evil.example", "http://evil.example/z", "a@evil.example", ":red[q]", ":smile:",
    ":material/home:", ":streamlit:", "$x^2$", "$$", "~~~", "*", "**", "_", "\\", "# ", "word ", "a|b\n", "[^1]: x",
    "[r]", "!", "&#104;ttp://evil.example", "\t", "http\\://evil.example", "mermaid\n", ":::note\n", "x\\|y",
    "- [x] ", "\r", "\x00",
]  # fmt: skip

FUZZ_APP = """
import json
from pathlib import Path
import streamlit as st
for text in json.loads(Path("texts.json").read_text(encoding="utf-8")):
    st.markdown(text)
st.text("everything is drawn")
"""


def test_no_mixture_of_markdown_comes_alive(tmp_path):
    """Whole answers, answers joined from pieces cut at blanks, and names, put together at random."""
    chance = random.Random(5)
    texts = []
    for number in range(450):
        raw = "".join(chance.choice(ATOMS) for _ in range(chance.randint(2, 18)))
        pieces = re.split(r"(?<=[ \n])", raw)
        texts.append([answer(raw), "".join(map(answer, pieces)), plain(raw)][number % 3])
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    with served(FUZZ_APP, tmp_path) as address, browsing(address) as page:
        wait_until_drawn(page)
        assert other_hosts(page, address) == []
        assert page.evaluate(FOREIGN) == []


# Without a browser ------------------------------------------------------------------------------------------------


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
