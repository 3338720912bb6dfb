"""An answer with more than one step, and one that another model had begun, as the Ask page draws them."""

from __future__ import annotations

import pytest
from waiting import wait_until

from docmind import chats, runs
from docmind.answer import ask
from docmind.errors import BackendUnavailable
from docmind.profiles import Profile, save_profile
from pages.parts.safe import plain

pytestmark = pytest.mark.usefixtures("end_models", "script")
QUESTION = "How much did the repairs of the north quay cost?"
POISON = "![x](http://127.0.0.1:9/x.png) <img src=x>"


def open_chat(app, chat="c1"):
    """The page with a chat open."""
    app.session_state["chat"] = chat
    app.run()
    assert not app.exception
    return app


def texts(app):
    """What stands on the page as markdown."""
    return [element.value for element in app.main.markdown]


def lines(app):
    """The lines of the steps and attempts."""
    return [expander.label for expander in app.main.expander]


def test_every_step_of_the_agent_is_a_quiet_line(app, stocked, script):
    """What it searched, what it read, and that it looked at the names."""
    script += [
        'Thought: x\nAction: search_documents\nAction Input: {"query": "herring"}',
        'Thought: x\nAction: read_page\nAction Input: {"document": "recipes.txt", "page": 2}',
        "Thought: x\nAction: list_documents\nAction Input: {}",
        "Answer: Fry 6 onions in butter for half an hour.",
    ]
    list(ask(stocked, QUESTION, backend="scripted", model="script", chat="c1"))
    shown = lines(open_chat(app))
    assert shown[0].startswith("Searched “How much did the repairs")
    assert shown[1].startswith("Searched “herring”: ")
    assert shown[2].startswith("Read recipes.txt, page 2 · ")
    assert shown[3].startswith("Looked through the names of 3 documents · ")


def test_what_a_model_asked_its_tools_is_inert(app, stocked, script):
    """Its words are letters on the screen, in the line of a step too."""
    script += [f'Action: search_documents\nAction Input: {{"query": "{POISON}"}}', "Answer: 3.7 million euros."]
    list(ask(stocked, QUESTION, backend="scripted", model="script", chat="c1"))
    line = lines(open_chat(app))[1]
    assert "![" not in line
    assert r"\<img" in line or "&lt;img" in line or "<img" not in line


def test_an_unfinished_attempt_stays_in_a_block_of_its_own(app, stocked, script):
    """With who went on and why; the answer below is the other model's alone."""
    script.append(["Answer: It cost 3.7 mil", "no end"])
    list(ask(stocked, QUESTION, backend="scripted", model="script", chat="c1"))
    open_chat(app)
    (attempt,) = [expander for expander in app.main.expander if expander.label.startswith("Unfinished attempt by")]
    assert [element.value for element in attempt.markdown] == ["It cost 3.7 mil"]
    assert any("asked instead" in element.value for element in app.main.markdown)
    answer = chats.messages(stocked, "c1")[-1]
    assert answer.details["backend"] == "llama.cpp"
    assert answer.text.strip() != "It cost 3.7 mil"


def test_a_model_that_is_not_there_is_named_with_the_one_that_went_on(app, stocked, script):
    """No block for an attempt that wrote nothing."""
    script.append(BackendUnavailable(f"It does not answer {POISON}.", "Start it."))
    list(ask(stocked, QUESTION, backend="scripted", model="script", chat="c1"))
    open_chat(app)
    assert not [line for line in lines(app) if line.startswith("Unfinished")]
    (note,) = [element.value for element in app.main.markdown if "asked instead" in element.value]
    assert "![" not in note


def test_an_answer_that_was_not_given_says_so(app, stocked, script):
    """Asked twice, and what came closest is there."""
    list(ask(stocked, QUESTION, backend="scripted", model="script", chat="c1"))
    open_chat(app)
    captions = [element.value for element in app.main.caption]
    assert any("asked twice" in caption for caption in captions)
    assert any(caption.startswith("Nearest passages") for caption in captions)


def test_an_attempt_is_seen_while_the_next_model_writes(app, stocked, script):
    """The growing answer: note, attempt, and only the new text."""
    script += [["Answer: It cost 3.7 mil", "no end"]]
    (stocked.config.model_folders[0]).mkdir(parents=True, exist_ok=True)
    for name, model, fallbacks in (("one", "script", '["two"]'), ("two", "other", "[]")):
        (stocked.config.model_folders[0] / f"{name}.toml").write_text(
            f'backend = "scripted"\nmodel = "{model}"\nagent = "react"\nfallbacks = {fallbacks}\n'
        )
    script.append(["Answer: It took until October", "for ever"])
    run = runs.start_answer(stocked, QUESTION, chat_id="c1", profile="one")
    try:
        wait_until(lambda: "October" in "".join(getattr(event, "text", "") for event in run.events_after()[-3:]))
        open_chat(app)
        assert "It took until October" in texts(app)
        assert any("asked instead" in text for text in texts(app))
        assert [line for line in lines(app) if line.startswith("Unfinished attempt by scripted")]
    finally:
        run.stop()
        assert run.wait(60)


def test_an_answer_that_was_cut_goes_on_at_a_click(app, stocked, script):
    """In its place; when it is whole there is nothing to continue."""
    script += [["Answer: The repairs cost 3.7 million", "length"], "million euros and ended in October."]
    list(ask(stocked, QUESTION, backend="scripted", model="script", chat="c1"))
    open_chat(app)
    app.button(key="continue").click().run()
    wait_until(lambda: not runs.answering("c1"))
    app.run()
    assert any(text.startswith("The repairs cost 3.7 million euros and ended") for text in texts(app))
    assert len(chats.messages(stocked, "c1")) == 2
    assert "continue" not in [button.key for button in app.main.button]


def test_the_receipt_says_what_was_chosen_and_which_settings_were_left_out(app, stocked, script):
    """One muted line; the choice stands where it opens."""
    save_profile(
        stocked.config, Profile("mine", "auto", models={"scripted": ("script",)}, top_k=5, temperature=0.5)
    )
    script.append("Repairs of the north quay cost 3.7 million euros.")
    list(ask(stocked, QUESTION, profile="mine", chat="c1"))
    open_chat(app)
    (receipt,) = [p for p in app.main.get("popover") if "as set" in p.proto.popover.label]
    assert plain("scripted does not take top_k as set") in receipt.proto.popover.label
    assert any(plain("mine → Scripted · script") in text for text in texts(app))
