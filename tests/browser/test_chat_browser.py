"""The page people live in, used as a person does: in Chromium, on the real app with the real small model."""

from __future__ import annotations

import itertools
import random
import re
import sqlite3
import time

import pytest
from asking import ask
from waiting import PATIENCE_SECONDS, wait_until

from docmind import chats, runs
from docmind.answer import Answer
from docmind.backends import backend
from docmind.citations import Sentence
from docmind.errors import ModelNotFound
from docmind.library import Library

pytestmark = pytest.mark.timeout(900)
QUESTION = "How many containers did the harbour of Ellmere handle in 2023?"
ANSWER_SECONDS = 400  # for some 300 words, where others compute too: the cores may give each a few words a second
A_PIXEL = 1.0  # the browser rounds to fractions of one
LONG = "Tell me all about the harbour, the quay, the pilots and the herring."
# Every length the last answer's text has on the screen, as it grows.
WATCH = """() => { window.lengths = []; const look = () => {
  const blocks = document.querySelectorAll('[data-testid="stChatMessage"] [data-testid="stMarkdownContainer"] p');
  const n = blocks.length ? blocks[blocks.length - 1].textContent.length : 0;
  if (window.lengths[window.lengths.length - 1] !== n) window.lengths.push(n);
  requestAnimationFrame(look); }; look(); }"""
# Every frame: how far each message and each block of the last one stands from the beginning of the chat, how high the
# last message is, where the question box stands on the screen; and all that Chromium calls a layout shift.
MEASURE = """() => {
  const seen = window.seen = { shifts: [], frames: [] };
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      if (!entry.hadRecentInput) seen.shifts.push([entry.startTime, entry.value]);
    }
  }).observe({ type: 'layout-shift', buffered: true });
  const since = performance.now();
  let last = '';
  const look = () => {
    const main = document.querySelector('[data-testid=stMain]');
    const messages = [...document.querySelectorAll('[data-testid=stChatMessage]')];
    const growing = messages[messages.length - 1];
    const place = (node) => node.getBoundingClientRect().top + main.scrollTop;
    const frame = {
      box: document.querySelector('[data-testid=stChatInput]')?.getBoundingClientRect().top,
      messages: messages.map(place),
      height: growing?.getBoundingClientRect().height,
      blocks: [...(growing?.querySelectorAll('[data-testid=stMarkdownContainer] > p') ?? [])].map(
        (node) => [place(node), node.textContent]),
      isWriting: Boolean(document.querySelector('.st-key-stop')) && !growing?.querySelector('a'),  // no chips yet
    };
    const text = JSON.stringify(frame);
    if (text !== last) seen.frames.push(frame);
    last = text;
    requestAnimationFrame(look);
  };
  look();
  seen.since = since;
}"""


def _worst_window(shifts):
    """The largest sum of layout shifts in a session window: at most a second between two of them, five in all.

    Source: https://web.dev/articles/cls
    """
    worst = total = 0.0
    began = before = None
    for moment, value in sorted(shifts):
        if before is None or moment - before >= 1000 or moment - began >= 5000:
            began, total = moment, 0.0
        before, total = moment, total + value
        worst = max(worst, total)
    return worst


def _receipts(page):
    """One for every answer that has ended."""
    return page.locator('[class*="st-key-receipt-"]')


def _wait_for_answers(page, count=1):
    """So many answers have ended on the screen."""
    wait_until(
        lambda: _receipts(page).count() == count, lambda: (page.url, _receipts(page).count()), seconds=ANSWER_SECONDS
    )


def _wait_for_words(page):
    """The answer has begun to be written."""
    wait_until(lambda: len(_shown(page)) > 40)


def _kept(library):
    """All messages, of whichever chat."""
    return [message for chat in chats.list_chats(library) for message in chats.messages(library, chat.chat_id)]


def _chat(library):
    return chats.list_chats(library)[0].chat_id


def _letters(text):
    return re.sub(r"[^A-Za-z]", "", text)


def _shown(page):
    """The text of the last answer on the screen, without chips, steps and receipt."""
    return page.evaluate(
        """() => { const all = document.querySelectorAll('[data-testid=stChatMessage]');
        if (all.length < 2) return '';
        const last = all[all.length - 1].cloneNode(true);
        last.querySelectorAll('a, [data-testid=stExpander], [data-testid=stCaptionContainer], [data-testid=stPopover],'
          + ' [data-testid=stAlert]').forEach(e => e.remove());
        return [...last.querySelectorAll('[data-testid=stMarkdownContainer]')].map(e => e.textContent).join('') }"""
    )


def test_a_person_asks_sees_the_answer_and_checks_it(app_server, page, stocked):
    """The question, the answer, its chip, the page with the sentence marked; then the keyboard closes it."""
    page.goto(app_server().url)
    ask(page, QUESTION)
    chip = page.locator('a[href^="#cite-"]').first
    chip.wait_for()
    answer = _kept(stocked)[-1]
    assert answer.citations
    assert page.get_by_text("quoted").first.is_visible()
    chip.click()
    page.get_by_test_id("stImage").first.wait_for()
    assert page.get_by_text(re.compile(r"harbour report 2023\.pdf · page \d+")).first.is_visible()
    assert "?c=" in page.url
    assert len(page.context.pages) == 1
    page.keyboard.press("Escape")
    page.get_by_test_id("stImage").first.wait_for(state="detached")


def test_words_arrive_in_steps_and_a_stop_keeps_them(app_server, page, talkative):
    """Not all at once; Escape stops the model and says so."""
    page.goto(app_server().url)
    page.get_by_test_id("stChatInputTextArea").wait_for()
    page.evaluate(WATCH)
    ask(page, LONG)
    _wait_for_words(page)
    wait_until(lambda: page.evaluate("new Set(window.lengths).size") >= 6)
    page.keyboard.press("Escape")
    page.get_by_text("Stopped. What was written so far is kept.").wait_for()
    kept = _kept(talkative)[-1]
    assert kept.finished == "stopped"
    assert kept.text
    assert _letters(_shown(page)) == _letters(kept.text)


def test_nothing_jumps_while_words_arrive(app_server, page, talkative):
    """Neither the question box nor what stands there already, also when the answer begins and when it ends."""
    page.goto(app_server().url)
    ask(page, QUESTION)
    _wait_for_answers(page)
    page.evaluate(MEASURE)
    ask(page, LONG)
    _wait_for_answers(page, 2)
    page.get_by_test_id("stChatInputTextArea").and_(page.locator(":enabled")).wait_for()
    page.wait_for_timeout(1000)  # what moves late, moves too
    seen = page.evaluate("window.seen")
    frames = seen["frames"]
    boxes = [frame["box"] for frame in frames]
    assert None not in boxes
    assert max(boxes) - min(boxes) <= A_PIXEL
    # The first question and answer stay, and so does the second question below them.
    for earlier in range(3):
        places = [frame["messages"][earlier] for frame in frames if len(frame["messages"]) > earlier]
        assert max(places) - min(places) <= A_PIXEL, earlier
    asked = next(number for number, frame in enumerate(frames) if len(frame["messages"]) == 4)
    growing = frames[asked:]
    writing = [frame for frame in growing if frame["isWriting"]]
    assert len({frame["height"] for frame in writing}) > 4, "it was not seen to grow"
    for before, after in itertools.pairwise(growing):
        assert len(after["messages"]) == 4
        assert after["height"] >= before["height"] - A_PIXEL
    for before, after in itertools.pairwise(writing):
        # All but the paragraph that is being written.
        for (place, words), (then, now) in zip(before["blocks"][:-1], after["blocks"], strict=False):
            assert abs(then - place) <= A_PIXEL
            assert now == words
    assert _worst_window([shift for shift in seen["shifts"] if shift[0] > seen["since"]]) < 0.1


def test_an_answer_survives_a_refresh_a_page_switch_and_a_second_tab(app_server, page, talkative):
    """All of them show the same in the end: what the library keeps."""
    url = app_server().url
    page.goto(url)
    ask(page, LONG)
    _wait_for_words(page)
    page.reload()
    _wait_for_words(page)
    second = page.context.new_page()
    second.goto(page.url)
    _wait_for_words(second)
    page.get_by_role("link", name="Models").click()
    page.get_by_role("link", name="Ask").click()
    for tab in (page, second):
        _wait_for_answers(tab)
    kept = _kept(talkative)[-1]
    assert kept.finished in ("complete", "cut")
    for tab in (page, second):
        assert _letters(_shown(tab)) == _letters(kept.text)
    assert len(_kept(talkative)) == 2


def test_a_closed_tab_does_not_end_the_answer(app_server, page, talkative):
    """It is complete when the person comes back."""
    page.goto(app_server().url)
    ask(page, LONG)
    _wait_for_words(page)
    address, context = page.url, page.context
    page.close()
    wait_until(lambda: _kept(talkative)[-1].finished, seconds=ANSWER_SECONDS)
    assert _kept(talkative)[-1].finished in ("complete", "cut")
    again = context.new_page()
    again.goto(address)
    _wait_for_answers(again)
    assert _letters(_shown(again)) == _letters(_kept(talkative)[-1].text)


@pytest.mark.timeout(2400)  # six answers and thirty turns
def test_thirty_random_refreshes_switches_and_tabs_change_no_letter(app_server, page, talkative):
    """Whatever is done while answers are written, the screen ends with what the run wrote."""
    chance = random.Random(7)
    url = app_server().url
    page.goto(url)
    tabs = [page]
    for answers in range(1, 7):
        ask(page, LONG)
        wait_until(lambda answers=answers: len(_kept(talkative)) == 2 * answers)
        for _ in range(5):
            time.sleep(chance.uniform(0.1, 1.5))
            tab = chance.choice(tabs)
            match chance.choice(["refresh", "switch", "tab"]):
                case "switch":
                    other = chance.choice(["Documents", "Models", "Performance"])
                    tab.get_by_role("link", name=other).click()
                    # A reload before the page has drawn once is a visit to another page, or to no chat in particular.
                    wait_until(lambda tab=tab, other=other: other.lower() in tab.evaluate("location.pathname"))
                    tab.get_by_role("link", name="Ask").click()
                    wait_until(lambda tab=tab: tab.evaluate("location.pathname + location.search").startswith("/?c="))
                case "tab" if len(tabs) < 3:
                    tabs.append(page.context.new_page())
                    tabs[-1].goto(f"{url}/?c={_chat(talkative)}")
                case _:
                    tab.reload()
        wait_until(lambda: _kept(talkative)[-1].finished, seconds=ANSWER_SECONDS)
        last = _kept(talkative)[-1]
        assert last.finished in ("complete", "cut"), last
        kept = _letters(last.text)
        for tab in tabs:
            _wait_for_answers(tab, answers)
            wait_until(lambda tab=tab, kept=kept: _letters(_shown(tab)) == kept)
    assert not [message for message in _kept(talkative) if message.role == "assistant" and not message.finished]


def test_the_model_is_switched_in_the_middle_of_a_chat(app_server, page, stocked):
    """The next question goes to the other model; what was answered stays."""
    info = backend("llama.cpp").models(stocked.config)[0]
    folder = stocked.config.home / "models"
    folder.mkdir(exist_ok=True)
    (folder / "second-model.gguf").symlink_to(info.path)
    page.goto(app_server().url)
    ask(page, QUESTION)
    _wait_for_answers(page)
    box = page.get_by_test_id("stSidebar").get_by_role("combobox").nth(1)
    box.click()
    page.get_by_role("option", name="second-model").click()
    wait_until(lambda: "second-model" in box.evaluate("e => (e.value || '') + e.textContent"))
    ask(page, QUESTION)
    wait_until(lambda: len(_kept(stocked)) == 4 and _kept(stocked)[-1].finished)
    assert [m.details["model"] for m in _kept(stocked) if m.role == "assistant"] == [info.name, "second-model"]


def test_a_chat_is_renamed_and_deleted_from_its_menu(app_server, page, stocked):
    """Each asks in a dialog first; a deleted chat leaves an empty page."""
    page.goto(app_server().url)
    ask(page, QUESTION)
    _wait_for_answers(page)
    sidebar, dialog = page.get_by_test_id("stSidebar"), page.get_by_role("dialog")
    menu = page.locator(f".st-key-menu-{_chat(stocked)} button")
    menu.click()
    page.get_by_role("menuitem", name="Rename").click()
    dialog.get_by_label("Title").fill("About the harbour")
    dialog.get_by_role("button", name="Rename").click()
    sidebar.get_by_role("button", name="About the harbour").wait_for()
    dialog.wait_for(state="hidden")
    menu.click()
    page.get_by_role("menuitem", name="Delete").click()
    dialog.get_by_text("will be gone for good").wait_for()
    assert [chat.title for chat in chats.list_chats(stocked)] == ["About the harbour"]
    dialog.get_by_role("button", name="Delete").click()
    page.get_by_text("What would you like to know?").wait_for()
    assert chats.list_chats(stocked) == []


def test_two_people_at_once_each_see_their_own_chat(app_server, browser, stocked):
    """Two browsers, two chats, two answers."""
    url = app_server().url
    people = [browser.new_context() for _ in range(2)]
    try:
        pages = [person.new_page() for person in people]
        for one in pages:
            one.set_default_timeout(PATIENCE_SECONDS * 1000)
            one.goto(url)
        for one in pages:
            ask(one, QUESTION)
        for one in pages:
            _wait_for_answers(one)
            assert one.get_by_test_id("stChatMessage").count() == 2
        assert len(chats.list_chats(stocked)) == 2
    finally:
        for person in people:
            person.close()


def test_what_is_said_in_a_chat_elsewhere_is_drawn(app_server, page, stocked):
    """By another program on the same library, from its beginning to its end between two looks of the page."""

    def say(question):
        run_id = runs.start_run(stocked, "answer")
        chats.fail(stocked, chats.begin(stocked, "c1", question, run_id), ModelNotFound("No model.", "Choose one."))
        runs.finish_run(stocked, run_id, "failed")

    say("What is a quay?")
    page.goto(f"{app_server().url}/?c=c1")
    messages = page.get_by_test_id("stChatMessage")
    messages.get_by_text("What is a quay?").wait_for()
    say("And what is a mole?")
    messages.get_by_text("And what is a mole?").wait_for()
    wait_until(lambda: messages.count() == 4)


def test_a_killed_server_keeps_what_was_written(app_server, page, talkative):
    """The next start shows it, and that it was cut."""
    served = app_server()
    page.goto(served.url)
    ask(page, LONG)
    _wait_for_words(page)
    wait_until(lambda: _kept(talkative)[-1].text)
    address = page.url.partition("?")[2]
    served.process.kill()
    served.process.wait()
    page.goto(f"{app_server().url}/?{address}")
    page.get_by_text("DocMind was closed while this was being written.").wait_for()
    assert _letters(_kept(talkative)[-1].text) == _letters(_shown(page))


def test_a_stopped_server_keeps_everything_shown(app_server, page, talkative):
    """A polite end stores the partial answer as stopped."""
    served = app_server()
    page.goto(served.url)
    ask(page, LONG)
    _wait_for_words(page)
    served.process.terminate()
    served.process.wait(PATIENCE_SECONDS)
    kept = _kept(talkative)[-1]
    assert (kept.finished, bool(kept.text)) == ("stopped", True)


POISON = (
    "![a](http://evil.docmind.test/a.png) [b](http://evil.docmind.test/b) <img src=http://evil.docmind.test/c.png>"
    " http://evil.docmind.test/d $\\\\href{http://evil.docmind.test/e}{x}$ :material/home: :red[f]"
)
BLOCKS = (
    f"\n\n```mermaid\ngraph LR; A[<img src='http://evil.docmind.test/g.png'>]-->B\n```\n\n"
    f"| a | b |\n|---|---|\n| {POISON} | c |\n\n# {POISON}\n\n- {POISON}\n\n> {POISON}\n"
)


def test_poison_in_answers_questions_names_and_errors_reaches_nobody(app_server, sink, library, insert):
    """On every surface: a proxy that would hear of any other host hears nothing, and the letters are there."""
    insert(library, "![x](http:__evil.docmind.test_n.png).txt", (f"{'Queen Victoria ' * 3} {POISON}",))
    (document,) = library.documents()
    near = {"document_id": document.document_id, "document": document.name, "page": 1, "start": 0, "end": 20}
    run_id = runs.start_run(library, "answer")
    answer = Answer(
        text=POISON + BLOCKS, finished="complete", reason=None, not_in_documents=False,
        sentences=(Sentence(POISON, 0, len(POISON), "none"),), citations=(),
        steps=({"tool": "search_documents", "input": POISON, "hits": 1, "documents": 1, "seconds": 0.1},),
        nearest=({**near, "text": "x", "score": 0.1},), backend=POISON, model=POISON, profile=POISON, run_id=run_id,
        chat_id="c1", context={"window": 100, "left_out": [{"document": POISON, "page": 1, "tokens": 5}]},
        timings={"first_token_s": 1.0, "prompt_tokens": 50},
    )  # fmt: skip
    chats.finish(library, chats.begin(library, "c1", POISON, run_id), answer)
    runs.finish_run(library, run_id, "complete")
    chats.fail(library, chats.begin(library, "c1", POISON, run_id), ModelNotFound(POISON, POISON))
    url = app_server().url
    page, proxy = sink()
    page.goto(f"{url}/?c=c1")
    _wait_for_answers(page)
    page.get_by_test_id("stAlert").first.wait_for()
    page.get_by_test_id("stExpander").first.click()
    _receipts(page).first.get_by_role("button").click()
    page.keyboard.press("Escape")
    page.locator('a[href$="-101"]').first.click()
    page.locator(".st-key-source").wait_for()
    shown = page.get_by_test_id("stMain").inner_text()
    assert shown.count("evil.docmind.test") > 10
    assert page.locator('[data-testid=stMain] img[src*="evil"], [data-testid=stMain] iframe').count() == 0
    assert page.locator('a[href*="evil"]').count() == 0
    for place in ("Documents", "Models", "Performance"):
        page.get_by_role("link", name=place, exact=True).click()
        page.get_by_role("heading", name=place, exact=True).wait_for()
        time.sleep(1)
        assert page.locator('a[href*="evil"], img[src*="evil"]').count() == 0
    assert proxy.hosts == set()


def test_a_library_that_cannot_be_opened_says_why_on_the_page(app_server, page, config):
    """And what to do."""
    Library(config)
    with sqlite3.connect(config.database) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    page.goto(app_server().url)
    page.get_by_text("was made by a newer DocMind").first.wait_for()
    page.get_by_text("Install the newer DocMind again").first.wait_for()
