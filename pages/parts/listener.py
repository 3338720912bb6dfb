"""What the screen's own widgets cannot do: report a click on a citation, take the key "/", keep the end in view.

One invisible component. Its script lives as long as the browser's page and hears every click, however often Streamlit
draws the page anew; only the mounted component of the moment passes a click on.
"""

from __future__ import annotations

from typing import Any, Final

import streamlit as st

# Chips are links to "#cite-<message>-<number>". Nothing of an answer is in this script; it puts nothing on the page.
_JS: Final = r"""
let report = null;   // passes a click to the script's run of the moment; null while no page listens
let waiting = null;  // a click that nobody listened to yet
let kept = null;     // the chip that was clicked, to be kept where it is while the chat narrows around it

const read = (href) => {
  const found = /^#cite-(\d{1,15})-(\d{1,9})$/.exec(href ?? "");
  return found && { message: Number(found[1]), number: Number(found[2]), at: Date.now() };
};

const clicked = (event) => {
  const link = event.composedPath().find((node) => node.nodeName === "A");
  const chip = read(link?.getAttribute("href"));
  if (!chip) return;
  event.preventDefault();  // no jump, and with Ctrl or the middle button no new tab
  event.stopPropagation();
  if (event.type === "auxclick") return;
  keepInPlace(link.getAttribute("href"), link);
  if (report) report(chip); else waiting = chip;
};

// The pane takes half of the width: lines break anew, and what was read would jump. Until the page has settled, or the
// person scrolls, the chip stays at its height. Where there is no room beside the chat, the pane comes into view. It
// comes when the server has drawn it, late on a busy machine; settled is what has not moved for a while.
const PATIENCE_MILLISECONDS = 60000;
const SETTLED_MILLISECONDS = 1500;
const HEAD_PIXELS = 60;  // Streamlit's own bar lies over the top of the page
const keepInPlace = (href, link) => {
  const same = () => [...document.querySelectorAll(`a[href="${href}"]`)];
  const last = performance.now() + PATIENCE_MILLISECONDS;
  kept = { place: Math.max(0, same().indexOf(link)), top: link?.getBoundingClientRect().top, until: last, last };
  const follow = (mine) => {
    const now = performance.now();
    if (kept !== mine || now > mine.until) return;  // what was clicked stays in view: the end is not followed meanwhile
    const chip = same()[mine.place];
    const pane = document.querySelector(".st-key-source");
    const scroller = chip?.closest('[data-testid="stMain"]');
    if (scroller && pane) {
      const [chipBox, paneBox] = [chip.getBoundingClientRect(), pane.getBoundingClientRect()];
      const isBeside = paneBox.left >= chipBox.right - 1;
      const before = scroller.scrollTop;
      mine.top ??= scroller.clientHeight / 2;  // where it was clicked is not known: into the middle
      scroller.scrollTop += isBeside ? chipBox.top - mine.top : paneBox.top - HEAD_PIXELS;
      const isDrawing = pane.querySelector('[data-testid="stSpinner"]')
        || document.querySelector('[data-test-script-state="running"]');
      const isMoving = scroller.scrollTop !== before || isDrawing || mine.until === mine.last;
      if (isMoving) mine.until = Math.min(now + SETTLED_MILLISECONDS, mine.last - 1);
    }
    requestAnimationFrame(() => follow(mine));
  };
  requestAnimationFrame(() => follow(kept));
};
const letGo = () => { kept = null; };

const isTyping = (node) => node?.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(node?.nodeName ?? "");
const pressed = (event) => {
  letGo();
  if (event.key !== "/" || event.ctrlKey || event.altKey || event.metaKey || isTyping(event.composedPath()[0])) return;
  const box = document.querySelector('[data-testid="stChatInputTextArea"]:not(:disabled)');
  if (!box || document.querySelector('[role="dialog"][aria-modal="true"]')) return;
  event.preventDefault();
  box.focus();
};

// A new question comes into view and the answer stays there while it grows, until the person scrolls away; a chat that
// was opened shows its end. Streamlit does so only where the question box is the page's own last element.
const NEAR_PIXELS = 120;
let chat = null, followedUntil = 0, isAtEnd = true;
const scroller = () => document.querySelector('[data-testid="stMain"]');
const keepEnd = () => {
  const main = scroller();
  if (main) {
    const now = performance.now();
    const address = new URLSearchParams(location.search).get("c");
    if (document.querySelector(".st-key-stop")) {
      if (now > followedUntil) isAtEnd = true;  // it has just been asked
      followedUntil = now + SETTLED_MILLISECONDS;
    } else if (address !== chat && document.querySelector('[data-testid="stChatMessage"]')) {
      [chat, followedUntil, isAtEnd] = [address, now + SETTLED_MILLISECONDS, true];
    }
    if (now < followedUntil && isAtEnd && !kept) main.scrollTop = main.scrollHeight;
  }
  setTimeout(() => requestAnimationFrame(keepEnd), 100);
};
const lookedAround = () => {
  const main = scroller();
  if (main) isAtEnd = main.scrollHeight - main.clientHeight - main.scrollTop < NEAR_PIXELS;
};
for (const moved of ["wheel", "touchmove", "keyup"]) {
  document.addEventListener(moved, () => setTimeout(lookedAround, 50), { passive: true });
}
keepEnd();

// This module is loaded once in the life of a page; a component mounted again finds it loaded.
document.addEventListener("click", clicked, true);
document.addEventListener("auxclick", clicked, true);
document.addEventListener("keydown", pressed);
for (const moved of ["wheel", "touchmove", "pointerdown"]) document.addEventListener(moved, letGo, { passive: true });
// A click before it was loaded went into the address.
waiting = read(location.hash);
if (waiting) {
  keepInPlace(location.hash);
  history.replaceState(history.state, "", location.pathname + location.search);
}

export default function ({ setTriggerValue }) {
  const mine = (chip) => setTriggerValue("chip", chip);
  report = mine;
  if (waiting && Date.now() - waiting.at < 10000) mine(waiting);
  waiting = null;
  return () => { if (report === mine) report = null; };
}
"""
# The component itself takes no room, nor does the gap that Streamlit leaves around it.
_CSS: Final = ":host { display: none; }"
_listener = st.components.v2.component("docmind_listener", js=_JS, css=_CSS)
_HIDDEN: Final = "<style>.st-key-listener, div:has(> .st-key-listener) { display: none; }</style>"


def listen() -> tuple[int, int] | None:
    """Listens to this page; call it once in each run.

    Returns:
        (message, number) of the citation that was clicked in this run, None when none was.
    """
    st.html(_HIDDEN)
    with st.container(key="listener"):
        said = _listener(key="docmind_listener", on_chip_change=_nothing).chip
    return _chip(said)


def _nothing() -> None:
    """The trigger needs a callback to exist; its value is read in the run."""


def _chip(said: Any) -> tuple[int, int] | None:
    """The chip that a browser says was clicked; anything else than two numbers is none."""
    match said:
        case {"message": int(message), "number": int(number)} if message >= 0 and number >= 0:
            return message, number
    return None
