"""From a number in an answer to the marked page, in a real browser: mouse, keyboard, both themes, a narrow window."""

from __future__ import annotations

import functools
import json

import pytest
from cited import cite, put
from waiting import wait_until_in_page

from docmind.library import Library

QUOTE = "Repairs of the north quay cost 3.7 million euros and ended in October."
LOW = "This sentence stands at the very bottom of its page."
NOTE = "A colony needs about 20 kilograms of honey to survive the winter."

CHAT = """
import json
import streamlit as st
from pages.parts import frame
from pages.parts.listener import listen
from pages.parts.safe import answer_with_chips
from pages.parts.source import draw_source

state = st.session_state
citations = json.loads((frame.config().home / "citations.json").read_text(encoding="utf-8"))
with st.bottom:
    st.chat_input("Ask your documents …", key="question")
clicked = listen()
if clicked:
    state["clicks"] = [*state.get("clicks", []), clicked]
    state["source"] = {"message": clicked[0], "index": clicked[1] - 1, "zoom": 1.0}
    st.rerun()

def draw_chat():
    st.text(f"clicks so far: {state.get('clicks', [])}")
    st.button("Draw anew")
    for message in range(1, 11):
        with st.chat_message("user"):
            st.markdown(f"Question {message}?")
        with st.chat_message("assistant"):
            words = "A sentence long enough to be broken into lines, and to be broken anew beside a page. "
            text = words * 8
            ends = [(len(words) * n - 1, f" [:blue-badge[{n}]](#cite-{message}-{n})") for n in range(1, 4)]
            st.markdown(answer_with_chips(text, ends))

opened = state.get("source")
if opened is None:
    with st.container(horizontal_alignment="center"), st.container(width=760):
        draw_chat()
else:
    chat, proof = st.columns([11, 10], gap="medium")
    with chat:
        draw_chat()
    with proof:
        draw_source(frame.library(), citations, opened["index"], is_running="running" in st.query_params)
"""


@pytest.fixture(scope="module")
def cited_library(tmp_path_factory):
    """A data folder with two documents and three citations, made once."""
    from docmind.config import Config

    folder = tmp_path_factory.mktemp("cited")
    library = Library(Config(home=folder / "home"))
    report, note = folder / "harbour report.pdf", folder / "beekeeping.md"
    _write_report(report)
    note.write_text("Many words about bees.\n\n" * 150 + NOTE + "\n\nAnd more.\n" * 5, encoding="utf-8")
    make = functools.partial(cite, library)
    in_report = put(library, report)
    citations = [make(in_report, QUOTE), make(in_report, LOW, page=2, number=2), make(put(library, note), NOTE)]
    (folder / "home" / "citations.json").write_text(json.dumps(citations), encoding="utf-8")
    return folder / "home"


def _write_report(path):
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), invariant=1, pagesize=(612, 792))
    canvas.drawString(72, 700, QUOTE)
    canvas.drawString(72, 660, "Nothing of this line is quoted by anybody.")
    canvas.showPage()
    canvas.drawString(72, 40, LOW)
    canvas.save()


@pytest.fixture
def open_chat(app_server, checkout, cited_library, page):
    """The small chat on a page, with what the browser complains about in `page.complaints`."""

    def start(query=""):
        served = app_server(folder=checkout(chat=CHAT), home=cited_library)
        page.complaints = []
        page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"{served.url}/{query}")
        page.chip = lambda message, number: page.locator(f'a[href="#cite-{message}-{number}"]')
        page.chip(10, 3).wait_for()
        page.own = served.url
        return page

    return start


def wait_for_picture(page):
    """The page's picture has arrived and is drawn."""
    wait_until_in_page(
        page,
        "(() => { const image = document.querySelector('.st-key-source-picture img');"
        " return image && image.complete && image.naturalWidth > 0; })()",
    )


def yellow_box(page):
    """Where the marker is on the screen, [left, top, right, bottom], read from the picture's own pixels."""
    return page.evaluate(
        """async () => {
            const image = document.querySelector('.st-key-source-picture img');
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const pen = canvas.getContext('2d');
            pen.drawImage(image, 0, 0);
            const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
            const box = [Infinity, Infinity, -Infinity, -Infinity];
            for (let y = 0; y < canvas.height; y++) for (let x = 0; x < canvas.width; x++) {
                const at = 4 * (y * canvas.width + x);
                if (data[at] > 230 && data[at + 1] > 200 && data[at + 2] < 150) {
                    box[0] = Math.min(box[0], x); box[1] = Math.min(box[1], y);
                    box[2] = Math.max(box[2], x); box[3] = Math.max(box[3], y);
                }
            }
            const shown = image.getBoundingClientRect(), scale = shown.width / canvas.width;
            return [shown.left + box[0] * scale, shown.top + box[1] * scale,
                    shown.left + box[2] * scale, shown.top + box[3] * scale];
        }"""
    )


def wait_until_in_view(page, selector):
    """The middle of the marked place lies inside the frame it scrolls in."""
    wait_until_in_page(
        page,
        """([selector, y]) => {
            const mark = document.querySelector(selector);
            const frame = mark?.closest('.st-key-source-picture, .st-key-source-text');
            if (!frame) return false;
            const [box, view] = [mark.getBoundingClientRect(), frame.getBoundingClientRect()];
            const middle = box.top + box.height * y;
            return middle > view.top && middle < view.bottom;
        }""",
        selector,
    )


def test_a_click_on_a_chip_shows_the_marked_page(open_chat, asked_of_others):
    """The address, the tab and the place of what was read stay; the quote is marked where it stands on the page."""
    page = open_chat()
    chip = page.chip(6, 1)
    chip.scroll_into_view_if_needed()
    before = chip.bounding_box()["y"]
    address = page.url
    chip.click()
    wait_for_picture(page)
    page.get_by_text(f"“{QUOTE}”").wait_for()
    wait_until_in_page(
        page,
        "before => Math.abs(document.querySelector('a[href=\"#cite-6-1\"]')?.getBoundingClientRect().top - before) < 3",
        before,
    )
    left, top, right, bottom = yellow_box(page)
    shown = page.locator(".st-key-source-picture img").bounding_box()
    point = shown["width"] / 612
    assert left == pytest.approx(shown["x"] + 72 * point, abs=4 * point)
    assert top < shown["y"] + (792 - 705) * point < bottom  # the middle of its letters
    assert bottom - top < 25 * point
    assert right < shown["x"] + shown["width"]
    assert page.url == address
    assert len(page.context.pages) == 1
    page.get_by_text("clicks so far: [(6, 1)]").wait_for()
    assert asked_of_others(page, page.own) == []
    assert page.complaints == []


def test_the_keyboard_is_enough(open_chat):
    """Enter on a chip, arrows to the other quotes, Escape closes, "/" leads to the question box."""
    page = open_chat()
    page.chip(2, 1).focus()
    page.keyboard.press("Enter")
    page.get_by_text("Quote 1 of 3").wait_for()
    wait_for_picture(page)
    page.keyboard.press("ArrowRight")
    page.get_by_text(f"“{LOW}”").wait_for()
    page.keyboard.press("ArrowRight")
    page.locator(".st-key-source-text mark").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Quote 2 of 3").wait_for()
    box = page.get_by_test_id("stChatInputTextArea")
    page.keyboard.press("/")
    page.keyboard.type("9/10")
    wait_until_in_page(page, "document.activeElement.dataset.testid === 'stChatInputTextArea'")
    assert box.input_value() == "9/10"
    page.keyboard.press("ArrowLeft")  # moves the caret, not the quotes
    page.keyboard.type("x")
    assert box.input_value() == "9/1x0"
    assert page.get_by_text("Quote 2 of 3").count() == 1
    page.keyboard.press("Escape")
    page.locator(".st-key-source").wait_for(state="detached")
    page.chip(10, 3).wait_for()
    assert page.complaints == []


def test_while_an_answer_is_written_escape_does_not_close_the_source(open_chat):
    """It stops the answer; the button still closes."""
    page = open_chat("?running=1")
    page.chip(1, 1).click()
    wait_for_picture(page)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")  # handled after Escape was
    page.get_by_text("Quote 2 of 3").wait_for()
    page.get_by_role("button", name="Close").click()
    page.locator(".st-key-source").wait_for(state="detached")


def test_the_quote_is_in_view_wherever_it_stands_and_however_large(open_chat):
    """At the bottom of a page, in a long text, at twice the size: the frame scrolls, the chat does not."""
    page = open_chat()
    page.chip(1, 2).click()
    wait_for_picture(page)
    wait_until_in_view(page, [".st-key-source-picture img", (792 - 43) / 792])
    for words in ("125 %", "150 %", "200 %"):
        page.get_by_role("button", name="Larger").click()
        page.get_by_text(words).wait_for()
    wait_for_picture(page)
    wait_until_in_page(
        page,
        "(() => { const frame = document.querySelector('.st-key-source-picture');"
        " return frame?.scrollWidth > 1.9 * frame?.clientWidth; })()",
    )
    wait_until_in_view(page, [".st-key-source-picture img", (792 - 43) / 792])
    frame = page.locator(".st-key-source-picture").bounding_box()
    left, top, _, bottom = yellow_box(page)
    assert frame["x"] - 1 <= left < frame["x"] + frame["width"] / 2  # read from its beginning
    assert frame["y"] < (top + bottom) / 2 < frame["y"] + frame["height"]
    # Crisp: at least as many pixels as are shown.
    assert page.evaluate(
        "(() => { const image = document.querySelector('.st-key-source-picture img');"
        " return image.naturalWidth >= image.getBoundingClientRect().width; })()"
    )
    page.keyboard.press("ArrowRight")
    wait_until_in_view(page, [".st-key-source-text mark", 0.5])


def test_a_click_is_reported_once_however_often_the_page_was_drawn(open_chat):
    """The listener is there once; Ctrl and the middle button open no tab."""
    page = open_chat()
    for _ in range(3):
        page.get_by_role("button", name="Draw anew").click()
        wait_until_in_page(page, "!document.querySelector('[data-testid=stStatusWidget]')")
    page.chip(1, 1).click()
    page.get_by_text("clicks so far: [(1, 1)]").wait_for()
    page.chip(1, 1).click(button="middle")
    page.chip(1, 3).click(modifiers=["Control"])
    page.get_by_text("clicks so far: [(1, 1), (1, 3)]").wait_for()
    page.locator(".st-key-source-text mark").wait_for()
    assert len(page.context.pages) == 1


def test_a_click_before_the_listener_is_loaded_is_not_lost(open_chat):
    """It went into the address: the source opens all the same, and the address is clean again."""
    page = open_chat()
    address = page.url
    page.goto("about:blank")
    page.goto(f"{address}#cite-3-2")
    page.get_by_text("clicks so far: [(3, 2)]").wait_for()
    page.get_by_text("Quote 2 of 3").wait_for()
    assert page.url == address


def test_the_listener_takes_no_room(open_chat):
    """Neither it nor a gap around it."""
    page = open_chat()
    first = page.get_by_text("clicks so far").bounding_box()
    hidden = page.locator(".st-key-listener")
    assert hidden.count() == 1
    assert hidden.bounding_box() is None
    assert first["y"] < 140


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_marker_shows_in_both_themes(open_chat, page, scheme):
    """On the picture by its pixels, in text by its colours."""
    page.emulate_media(color_scheme=scheme)
    open_chat()
    page.chip(1, 1).click()
    wait_for_picture(page)
    left, top, right, bottom = yellow_box(page)
    assert right - left > 100
    assert bottom > top
    page.chip(1, 3).click()
    mark = page.locator(".st-key-source-text mark")
    mark.wait_for()
    colours = mark.evaluate("mark => [getComputedStyle(mark).backgroundColor, getComputedStyle(mark).color]")
    assert colours == ["rgb(255, 226, 110)", "rgb(16, 18, 20)"]


def test_in_a_narrow_window_the_source_comes_into_view_below_the_chat(open_chat, page):
    """There is no room beside the chat, and nobody finds what opens ten answers farther down."""
    page.set_viewport_size({"width": 600, "height": 800})
    open_chat()
    page.chip(1, 1).click()
    wait_until_pane_in_view(page)
    assert page.locator(".st-key-source").bounding_box()["x"] < 60


def test_a_chip_clicked_before_the_page_was_ready_brings_its_source_into_view_too(open_chat, page):
    """Such a click went into the address; on a busy machine it is the one that a quick person makes."""
    page.set_viewport_size({"width": 600, "height": 800})
    open_chat("#cite-1-1")
    wait_until_pane_in_view(page)
    assert "#" not in page.url


def wait_until_pane_in_view(page):
    """The picture is drawn, and its pane begins in the upper quarter of a window of 800 pixels."""
    wait_for_picture(page)
    wait_until_in_page(
        page,
        "(() => { const top = document.querySelector('.st-key-source')?.getBoundingClientRect().top;"
        " return top >= 0 && top < 200; })()",
    )
