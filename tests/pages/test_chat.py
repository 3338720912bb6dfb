"""The Ask page and the sidebar in every state, without a browser."""

from __future__ import annotations

import itertools
import re
import shutil

import pytest
from waiting import PATIENCE_SECONDS, wait_until

from docmind import chats, detection, runs
from docmind.backends import backend

pytestmark = pytest.mark.usefixtures("end_models")
QUESTION = "How many containers did the harbour of Ellmere handle in 2023?"
POISON = "![x](http://127.0.0.1:9/x.png) :material/home: $a$ <img src=x> [l](http://127.0.0.1:9/)"


def _markdown(app):
    return [element.value for element in app.main.markdown]


def _captions(app):
    return [element.value for element in app.main.caption]


def _labels(buttons):
    return [button.label for button in buttons]


def _run_to_the_end(app):
    """Draw until no answer is being written."""
    app.run()
    wait_until(lambda: not runs.answering(app.session_state["chat"]))
    return app.run()


def _ask(app, question=QUESTION):
    app.chat_input[0].set_value(question).run()
    return _run_to_the_end(app)


def _answer(library, chat="c1", question="How long is the quay?", text="It is 300 metres long.", **details):
    """A finished answer without a model."""
    from docmind.answer import Answer
    from docmind.citations import Sentence

    run_id = runs.start_run(library, "answer")
    message_id = chats.begin(library, chat, question, run_id)
    given = {
        "finished": "complete", "reason": None, "not_in_documents": False, "nearest": (), "citations": (),
        "sentences": (Sentence(text, 0, len(text), "none"),), "steps": (), "context": {}, "timings": {},
    } | details  # fmt: skip
    answer = Answer(text=text, backend="llama.cpp", model="m", profile="starter", run_id=run_id, chat_id=chat, **given)
    chats.finish(library, message_id, answer)
    runs.finish_run(library, run_id, answer.finished)
    return message_id


def test_an_empty_library_offers_a_drop_area_and_a_sample(app):
    """Nothing else stands in the way."""
    app.run()
    assert not app.exception
    assert [element.value for element in app.main.subheader] == ["Ask your own documents"]
    assert "Try with a sample" in _labels(app.main.button)
    assert len(app.main.get("file_uploader")) == 1


def test_suggested_questions_ask_at_one_click(app, stocked):
    """Made from the person's own documents."""
    app.run()
    suggestions = [button for button in app.main.button if button.key.startswith("suggestion-")]
    assert suggestions
    suggestions[0].click().run()
    _run_to_the_end(app)
    asked, answered = chats.messages(stocked, app.session_state["chat"])
    assert asked.text.startswith("What does ")
    assert answered.finished


def test_a_question_is_answered_with_a_chip_and_a_receipt(app, stocked):
    """From the real model, drawn from the library."""
    _ask(app.run())
    assert not app.exception
    (asked, answered) = chats.messages(stocked, app.session_state["chat"])
    assert asked.text in _markdown(app)
    chip = f"[:blue-badge[1]](#cite-{answered.message_id}-1)"
    assert any(text.endswith(chip) for text in _markdown(app))
    assert any("1 quoted" in caption for caption in _captions(app))
    assert any(label.startswith("Searched “How many containers") for label in (e.label for e in app.main.expander))
    assert app.query_params["c"] == app.session_state["chat"]
    assert any(answered.details["model"] in popover.proto.popover.label for popover in app.main.get("popover"))


def test_what_the_documents_do_not_hold_shows_the_nearest_passages(app, stocked):
    """And no model was asked."""
    _ask(app.run(), "Who won the chess championship of Ruritania?")
    answered = chats.messages(stocked, app.session_state["chat"])[-1]
    assert "Not in your documents." in _markdown(app)
    assert any(
        caption.startswith("Nearest passages: ") and f"(#cite-{answered.message_id}-101)" in caption
        for caption in _captions(app)
    )


def test_a_chip_opens_the_source_and_closing_it_gives_the_chat_its_width_back(app, stocked):
    """The state a click leaves behind is enough."""
    _ask(app.run())
    answered = chats.messages(stocked, app.session_state["chat"])[-1]
    app.session_state["source"] = {"message": answered.message_id, "number": 1, "zoom": 1.0}
    app.run()
    assert not app.exception
    citation = answered.citations[0]
    assert any(f"page {citation['page']}" in text for text in _markdown(app) + _captions(app))
    close = next(button for button in app.main.button if "lose" in (button.label + str(button.help)))
    close.click().run()
    assert "source" not in app.session_state


def test_a_sentence_without_proof_is_marked_and_says_what_is_missing(app, stocked):
    """Amber, not red; a click explains."""
    message_id = _answer(stocked)
    app.query_params["c"] = "c1"
    app.run()
    assert any(text.endswith(f"[:orange-badge[⚠]](#cite-{message_id}-1001)") for text in _markdown(app))
    assert any("1 without proof" in caption for caption in _captions(app))
    app.session_state["source"] = {"message": message_id, "number": 1001, "zoom": 1.0}
    app.run()
    assert "**Without proof**" in _markdown(app)
    assert "“It is 300 metres long.”" in _markdown(app)


@pytest.mark.parametrize(
    ("finished", "reason", "words"),
    [
        ("stopped", "stopped", "Stopped. What was written so far is kept."),
        ("cut", "cut_at_limit", "Cut off. The answer reached its length limit."),
        ("cut", "crashed", "Cut off. crashed"),
    ],
)
def test_an_answer_that_did_not_end_says_so_and_can_be_asked_again(app, stocked, finished, reason, words):
    """What was written is there."""
    _answer(stocked, finished=finished, reason=reason)
    app.query_params["c"] = "c1"
    app.run()
    assert words in _captions(app) + [warning.value for warning in app.main.warning]
    assert any(text.startswith("It is 300 metres long.") for text in _markdown(app))
    assert "Ask again" in _labels(app.main.button)


def test_a_question_that_failed_says_why_and_what_to_do(app, library, insert):
    """The question is not lost."""
    insert(library, "a.txt", ("Some text.",))
    run = runs.start_answer(library, "Anything?", chat_id="c1", backend="llama.cpp", model="gone")
    assert run.wait(PATIENCE_SECONDS)
    app.query_params["c"] = "c1"
    app.run()
    assert "Anything?" in _markdown(app)
    assert "llama.cpp has no model 'gone'." in app.main.error[0].value
    assert "There are" in app.main.error[0].value


def test_chats_are_listed_opened_and_searched(app, stocked):
    """All from the sidebar."""
    _answer(stocked, "c1", "About quays")
    _answer(stocked, "c2", "About bees")
    app.run()
    assert {"About quays", "About bees"} <= set(_labels(app.sidebar.button))
    next(button for button in app.sidebar.button if button.label == "About quays").click().run()
    assert app.session_state["chat"] == "c1"
    assert "About quays" in _markdown(app)
    app.sidebar.text_input[0].set_value("bees").run()
    assert "**About quays**" not in _labels(app.sidebar.button)
    assert "About bees" in _labels(app.sidebar.button)
    app.sidebar.text_input[0].set_value("").run()
    next(button for button in app.sidebar.button if button.label == "New chat").click().run()
    assert app.session_state["chat"] not in ("c1", "c2")


@pytest.mark.parametrize("action", ["Rename", "Delete"])
def test_a_dialog_stays_open_when_a_slow_backend_answers(app, stocked, monkeypatch, action):
    """What was typed into it would be lost."""
    _answer(stocked)
    app.run()
    looks = itertools.count()
    monkeypatch.setattr(detection, "said", lambda config: min(next(looks), 3))  # something else at the first four looks
    app.menu_button(key="menu-c1").click(action).run()
    assert not app.exception
    assert action in _labels(app.button)


def test_a_chat_of_an_address_that_leads_nowhere_is_an_empty_one(app, stocked):
    """As after it was deleted in another tab."""
    app.query_params["c"] = "gone"
    app.run()
    assert not app.exception
    assert [element.value for element in app.main.subheader] == ["What would you like to know?"]


def test_names_and_answers_of_strangers_stay_letters(app, library, insert):
    """In the list of chats, the question, the answer, the nearest passages and the suggestions."""
    insert(library, "![x](http:__x.png).txt", ("Queen Victoria, Queen Victoria and Queen Victoria.",))
    document = library.documents()[0]
    near = {"document_id": document.document_id, "document": document.name, "page": 1, "start": 0, "end": 5, "score": 0}
    _answer(library, "c1", POISON, POISON, nearest=({**near, "text": "Queen"},))
    app.run()
    texts = _labels(app.sidebar.button) + _labels(app.main.button)
    app.query_params["c"] = "c1"
    next(button for button in app.sidebar.button if "x.png" in button.label).click().run()
    assert not app.exception
    texts += _labels(app.sidebar.button) + _markdown(app) + _captions(app)
    assert sum("x.png" in text for text in texts) >= 4
    for text in texts:
        assert not re.search(r"(?<!\\)(?:!\[|\]\(http|<img|\$a)|:material/home", text)


def test_the_model_of_the_sidebar_answers_the_next_question(app, stocked):
    """Chosen by hand, without a profile made for it."""
    folder = stocked.config.home / "models"
    folder.mkdir(exist_ok=True)
    info = backend("llama.cpp").models(stocked.config)[0]
    shutil.copyfile(info.path, folder / "second-model.gguf")
    app.run()
    app.sidebar.selectbox[1].set_value("second-model").run()
    assert app.session_state["profile"] is None
    _ask(app)
    answered = chats.messages(stocked, app.session_state["chat"])[-1]
    assert (answered.details["model"], answered.details["profile"]) == ("second-model", "")


def test_a_new_visit_takes_the_starter_when_the_model_used_last_is_gone(app, stocked):
    """And does not stumble over it."""
    _answer(stocked)
    app.run()
    assert app.session_state["model"] == backend("llama.cpp").models(stocked.config)[0].name  # "m" is not there
    assert app.session_state["profile"] == "starter"


def test_a_new_visit_goes_on_with_the_model_used_last(app, stocked):
    """A reload of the browser is a new visit."""
    folder = stocked.config.home / "models"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(backend("llama.cpp").models(stocked.config)[0].path, folder / "second-model.gguf")
    run = runs.start_answer(stocked, QUESTION, chat_id="c1", backend="llama.cpp", model="second-model")
    assert run.wait(PATIENCE_SECONDS)
    app.run()
    assert (app.session_state["model"], app.session_state["profile"]) == ("second-model", None)


def test_filters_limit_what_is_searched(app, stocked):
    """By document."""
    app.run()
    bees = stocked.document("beekeeping.md").document_id
    next(m for m in app.main.multiselect if m.label == "Documents").set_value([bees]).run()
    _ask(app, "How much honey does a colony need to survive the winter?")
    answered = chats.messages(stocked, app.session_state["chat"])[-1]
    assert answered.details["steps"][0]["documents"] == 1
    assert {citation["document"] for citation in answered.citations} <= {"beekeeping.md"}
