"""What strangers write can do nothing on any surface of a real browser, and is still readable."""

from __future__ import annotations

import contextlib
import json
import random
import re

import pytest
from waiting import wait_until, wait_until_in_page

from pages.parts.safe import answer, plain, plain_with_code

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
from pages.parts.safe import answer, plain, plain_with_code

payloads = json.loads(Path(__file__).with_name("payloads.json").read_text(encoding="utf-8"))
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
        if surface == "error": st.error(plain_with_code(payload) + "\\n\\n" + plain_with_code(f"A `{payload}` b"))
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
def bare(serve, tmp_path_factory):
    """Serves a script without the app's gate: what holds here holds without the Content-Security-Policy too."""
    with contextlib.ExitStack() as stack:

        def start(script, **files):
            folder = tmp_path_factory.mktemp("bare")
            (folder / "app.py").write_text(script, encoding="utf-8")
            for name, content in files.items():
                (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            options = ["--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"]
            return stack.enter_context(serve(*options, home=folder / "home", folder=folder)).url

        yield start


@pytest.fixture(scope="module")
def address(bare):
    """The app that draws each payload on one surface."""
    return bare(APP, payloads=PAYLOADS)


def wait_until_drawn(page):
    """The script is through, each payload shows something, and nothing is being loaded."""
    page.get_by_text("everything is drawn").wait_for()
    wait_until_in_page(page, "[...document.querySelectorAll('[class*=st-key-payload]')].every(box => box.innerText)")
    page.wait_for_load_state("networkidle")


def letters(text):
    """What is left of a text without blanks and what nobody sees."""
    return re.sub(r"[\s\u2060]", "", text)


def words_in_order(text):
    """Letters and digits only."""
    return "".join(filter(str.isalnum, text))


@pytest.mark.parametrize(
    "surface", ["markdown", "caption", "button", "expander", "table", "chat", "middle", "answer", "error"]
)
def test_no_payload_does_anything_on_any_surface(address, page, asked_of_others, surface):
    """No other host is asked, nothing but text is drawn, and the text is all there."""
    page.goto(f"{address}/?surface={surface}")
    wait_until_drawn(page)
    assert asked_of_others(page, address) == []
    assert page.evaluate(FOREIGN) == []
    for number, payload in enumerate(PAYLOADS):
        shown = page.locator(f".st-key-payload{number}").inner_text()
        if surface == "answer":  # where the number of a list item is drawn by the list
            assert words_in_order(payload.removeprefix("1.")) in words_in_order(shown), payload
        elif surface == "error":  # twice; the backticks around code are drawn as its ground
            assert letters(shown).replace("`", "").count(letters(payload).replace("`", "")) >= 2, payload
        else:
            assert letters(payload) in letters(shown), payload


def test_no_payload_does_anything_in_a_toast(address, page, asked_of_others):
    """One at a time: Streamlit shows only a few."""
    for number in (1, 5, 10, 13, 24, 25):
        page.goto(f"{address}/?surface=toast&number={number}")
        toast = page.get_by_test_id("stToast")
        toast.wait_for()
        page.wait_for_load_state("networkidle")
        assert page.evaluate(FOREIGN) == []
        assert letters(PAYLOADS[number]) in letters(toast.inner_text())
    assert asked_of_others(page, address) == []


def test_the_payloads_would_do_harm(address, page, asked_of_others):
    """Without protection they reach out: otherwise the tests above prove nothing."""
    page.goto(f"{address}/?surface=raw")
    page.get_by_text("everything is drawn").wait_for()
    for piece in ("<a ", "<img ", 'role="img"', "katex", "<h1", "<input"):
        wait_until(lambda piece=piece: piece in " ".join(page.evaluate(FOREIGN)), lambda piece=piece: piece)
    assert any("evil.example" in asked for asked in asked_of_others(page, address))


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
for text in json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8")):
    st.markdown(text)
st.text("everything is drawn")
"""


def test_no_mixture_of_markdown_comes_alive(bare, page, asked_of_others):
    """Whole answers, answers joined from pieces cut at blanks, names and messages, put together at random."""
    chance = random.Random(5)
    texts = []
    for number in range(600):
        raw = "".join(chance.choice(ATOMS) for _ in range(chance.randint(2, 18)))
        pieces = re.split(r"(?<=[ \n])", raw)
        texts.append([answer(raw), "".join(map(answer, pieces)), plain(raw), plain_with_code(raw)][number % 4])
    url = bare(FUZZ_APP, texts=texts)
    page.goto(url)
    wait_until_drawn(page)
    assert asked_of_others(page, url) == []
    assert page.evaluate(FOREIGN) == []
