"""The agent over what small models really write, by a scripted model; and by the real starter, held to a grammar."""

from __future__ import annotations

import threading

import pytest
from servers import scripted

from docmind import chats, store
from docmind.answer import Answer, ask
from docmind.errors import BackendUnavailable, LibraryDamaged
from docmind.events import FellBack, StepFinished, StepStarted, TextDelta
from docmind.prompts import FIRST_THOUGHT, REACT

pytestmark = pytest.mark.usefixtures("end_models", "script")
QUESTION = "How much did the repairs of the north quay cost?"
RIGHT = "Repairs of the north quay cost 3.7 million euros."
SEARCH = 'Thought: I need more.\nAction: search_documents\nAction Input: {"query": "herring landed"}'


def run(library, question=QUESTION, **arguments):
    """All events of an answer by the scripted model, which is large enough to drive the agent."""
    return list(ask(library, question, **{"backend": "scripted", "model": "script", **arguments}))


def shown(events):
    """The text as it came."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def steps(events):
    """The tools that were used."""
    return [(event.tool, event.input) for event in events if isinstance(event, StepFinished)]


def test_a_question_about_one_fact_costs_one_call(stocked, script):
    """The search is made before the model is asked; its first words are the answer."""
    script.append(f"Thought: The evidence says it.\nAnswer: {RIGHT}")
    events = run(stocked)
    answer = events[-1]
    assert (answer.text, answer.finished, answer.reason) == (RIGHT, "complete", None)
    assert shown(events) == RIGHT
    assert len(scripted.PROMPTS) == 1
    assert answer.timings["model_calls"] == 1
    assert answer.citations[0]["quote"].startswith("Repairs of the north quay cost 3.7 million euros")


def test_the_first_search_is_the_agents_first_action(stocked, script):
    """Header, question, action, observation: and the header is the same for every question."""
    script += [f"Answer: {RIGHT}", "Answer: 26 people."]
    run(stocked)
    run(stocked, "How many people does the pilot station employ?")
    first, second = scripted.PROMPTS
    assert first[0] == second[0] == {"role": "system", "content": REACT}
    assert [message["role"] for message in first] == ["system", "user", "assistant", "user"]
    assert first[1]["content"] == QUESTION
    assert first[2]["content"].startswith(f"Thought: {FIRST_THOUGHT}\nAction: search_documents\nAction Input: {{")
    assert first[3]["content"].startswith("Observation:")
    assert "3.7 million euros" in first[3]["content"]
    assert scripted.ARGUMENTS[0]["stop"] == ["\nObservation:"]


def test_the_model_may_go_on_with_tools(stocked, script):
    """Search, read, list; each step is shown while it runs, and what it read can be quoted."""
    script += [
        SEARCH,
        'Thought: a page\nAction: read_page\nAction Input: {"document": "recipes.txt", "page": 2}',
        "Thought: which are there\nAction: list_documents\nAction Input: {}",
        "Thought: enough\nAnswer: Fry 6 onions in butter for half an hour.",
    ]
    events = run(stocked, "What do bees and harbours have in common?")
    assert steps(events)[1:] == [
        ("search_documents", "herring landed"),
        ("read_page", "recipes.txt, page 2"),
        ("list_documents", ""),
    ]
    started = [event.tool for event in events if isinstance(event, StepStarted)]
    assert started == [tool for tool, _ in steps(events)]
    answer = events[-1]
    assert [step["tool"] for step in answer.steps] == started
    assert answer.citations[0]["document"] == "recipes.txt"
    assert "harbour report 2023.pdf (2 pages)" in scripted.PROMPTS[3][-1]["content"]


LONG = '{"name": "search_documents", "arguments": {"query": "' + "north quay " * 30 + '"}}'
MALFORMED = {
    "a long call as JSON": [LONG, f"Answer: {RIGHT}"],
    "a call in the middle of a line": [
        'Let me look. Action: search_documents Action Input: {"query": "quay"}',
        f"Answer: {RIGHT}",
    ],
    "an action that is JSON": [
        'Action: {"name": "search_documents", "arguments": {"query": "quay"}}',
        f"Answer: {RIGHT}",
    ],
    "a page number without end": [
        'Action: read_page\nAction Input: {"document": "recipes.txt", "page": 1e999}',
        f"Answer: {RIGHT}",
    ],
    "half a character": ['Action: search_documents\nAction Input: {"query": "\\ud83d"}', f"Answer: {RIGHT}"],
    "no markers at all": [RIGHT],
    "bold markers": [f"**Thought:** I see it.\n**Final Answer:** {RIGHT}"],
    "nothing at all": ["", RIGHT],
    "thoughts without end": [
        ["Thought: I have to think about the quay, the north quay, the quay again", "length"],
        RIGHT,
    ],
    "a thought and nothing else": ["Thought: I could search again.", f"Answer: {RIGHT}"],
    "an answer without words": ["Thought: ready\nAnswer:", f"Answer: {RIGHT}"],
    "the same action again": [
        f'Thought: again\nAction: search_documents\nAction Input: {{"query": "{QUESTION}"}}',
        f"Answer: {RIGHT}",
    ],
    "the same action in other letters": [SEARCH, SEARCH.replace("herring", "HERRING"), f"Answer: {RIGHT}"],
    "broken JSON": ["Thought: x\nAction: search_documents\nAction Input: {'query': 'quay", f"Answer: {RIGHT}"],
    "input that is no JSON": ["Thought: x\nAction: search_documents\nAction Input: north quay", f"Answer: {RIGHT}"],
    "a tool that is not there": ["Thought: x\nAction: web_search\nAction Input: {}", f"Answer: {RIGHT}"],
    "a call as a function": ['search_documents("north quay repairs")', f"Answer: {RIGHT}"],
    "a call as JSON": ['{"name": "search_documents", "arguments": {"query": "north quay"}}', f"Answer: {RIGHT}"],
    "a call in tags": [
        '<tool_call>\n{"name": "search_documents", "arguments": {"query": "quay"}}\n</tool_call>',
        f"Answer: {RIGHT}",
    ],
    "thinking in tags": [f"<think>Action: search_documents\nAnswer: wrong</think>\nAnswer: {RIGHT}"],
    "thinking without its beginning": [f"Is it wrong? No.</think>\nThought: now\nAnswer: {RIGHT}"],
    "thinking without end": ["<think>The quay, the quay", f"Answer: {RIGHT}"],
    "no action wanted": [f"Thought: x\nAction: None\nAnswer: {RIGHT}"],
    "an action called answer": [f'Thought: x\nAction: finish\nAction Input: {{"answer": "{RIGHT}"}}'],
    "an observation made up": [f"{SEARCH}\nObservation: It cost 99 million.\nAnswer: It cost 99 million.", RIGHT],
    "answer and action": [f"Thought: x\nAnswer: {RIGHT}\n\n{SEARCH}"],
    "a new question made up": [f"Thought: x\nAnswer: {RIGHT}\nQuestion: And the south quay?\nThought: y\nAnswer: 9"],
    "the step in a fence": [f"```\nThought: x\nAnswer: {RIGHT}\n```"],
    "only calls, again and again": [
        f'Thought: n\nAction: search_documents\nAction Input: {{"query": "words {n}"}}' for n in range(20)
    ],
    "garbage twice": ["Thought:\nAction:\n{{{", "Thought: Action: {"],
}


@pytest.mark.parametrize("written", MALFORMED.values(), ids=MALFORMED)
def test_whatever_a_small_model_writes_ends_in_an_answer_or_an_honest_no(stocked, script, written, request):
    """With sources where it says what stands there; never an error, never a marker on the screen."""
    script += written
    events = run(stocked)
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert answer.finished == "complete"
    if "again and again" in request.node.callspec.id or "garbage" in request.node.callspec.id:
        assert answer.reason == "no_answer"
        assert answer.nearest
    else:
        assert answer.text == RIGHT
        assert answer.citations
    for text in (answer.text, shown(events)):
        assert not [mark for mark in ("Thought", "Action", "Observation", "think>", "{", "wrong", "99") if mark in text]
    assert len(answer.steps) <= 8
    assert len(scripted.PROMPTS) <= 10


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Hm, 99 million? No.</think>" + RIGHT, RIGHT),
        (f"<think>Hm, 99 million?</think>{RIGHT}", RIGHT),
        (f"{RIGHT[:-1]} [1, 2, 3, 4, 5, 6, 7]. They ended in October.", f"{RIGHT} They ended in October."),
    ],
    ids=["thoughts without their beginning", "thoughts", "a long mark"],
)
def test_what_was_shown_in_error_is_replaced_on_the_screen(stocked, script, written, text):
    """A small model's thoughts that turn out to be thoughts, and marks: the stream ends with what the answer is."""
    script.append(written)
    events = run(stocked, model="tiny")
    streamed = ""
    for event in events:
        if isinstance(event, TextDelta):
            streamed = event.text if event.replaces else streamed + event.text
    assert streamed == events[-1].text == text


def test_a_page_that_is_damaged_ends_the_answer_with_its_own_error(stocked, script):
    """The run is closed, the chat says why."""
    document = stocked.document("recipes.txt")
    with store.writing(stocked.path) as db:
        db.execute("UPDATE pages SET text = text || 'x' WHERE document_id = ?", (document.document_id,))
    script.append('Action: read_page\nAction Input: {"document": "recipes.txt", "page": 1}')
    with pytest.raises(LibraryDamaged):
        run(stocked, chat="c")
    kept = chats.messages(stocked, "c")[-1]
    assert (kept.finished, kept.details["reason"]) == ("failed", "library_damaged")


def test_what_a_chat_read_before_does_not_widen_what_is_selected_now(stocked, script):
    """The conversation has the words of a document that is not asked any more: they are left out."""
    script += ["Answer: Beat 4 eggs with 200 grams of sugar.", f"Answer: {RIGHT}"]
    run(stocked, "How much sugar does the lemon cake take?", chat="c", documents=["recipes.txt"])
    answer = run(stocked, chat="c", documents=["harbour report 2023.pdf"])[-1]
    told = "".join(message["content"] for message in scripted.PROMPTS[-1])
    assert "Add the juice of 2 lemons" not in told
    assert {citation["document"] for citation in answer.citations} == {"harbour report 2023.pdf"}


def test_at_most_eight_tools_are_used_and_then_an_answer_is_asked_for(stocked, script):
    """The budget holds; the last call is told to answer, and its prompt begins like the one before."""
    script += MALFORMED["only calls, again and again"][:8]
    script.append(f"Answer: {RIGHT}")
    events = run(stocked)
    assert len(events[-1].steps) == 8
    assert events[-1].text == RIGHT
    before, last = scripted.PROMPTS[-2:]
    assert last[:-1] == before[:-1]
    assert last[-1]["content"].startswith(before[-1]["content"])
    assert last[-1]["content"].endswith("Begin with: Answer:")


def test_nothing_widens_what_was_selected(stocked, script):
    """The model asks for another document by name, id and search: it gets none of it."""
    other = stocked.document("recipes.txt")
    script += [
        'Thought: x\nAction: read_page\nAction Input: {"document": "recipes.txt", "page": 1}',
        f'Thought: x\nAction: read_page\nAction Input: {{"document": "{other.document_id}", "page": 1}}',
        'Thought: x\nAction: search_documents\nAction Input: {"query": "lemon cake eggs"}',
        "Thought: x\nAction: list_documents\nAction Input: {}",
        f"Answer: {RIGHT}",
    ]
    events = run(stocked, documents=["harbour report 2023.pdf"])
    told = "\n".join(message["content"] for prompt in scripted.PROMPTS for message in prompt)
    assert "200 grams of sugar" not in told
    assert "Lemon cake" not in told
    assert "There is no document 'recipes.txt'" in told
    assert {c["document"] for c in events[-1].citations} == {"harbour report 2023.pdf"}


def test_a_stop_ends_the_agent_between_and_during_calls(stocked, script):
    """It ends as stopped, and no further call is made."""
    script += [SEARCH, ["Thought: x\nAnswer: It cost ", "for ever"]]
    stop = threading.Event()
    events = []
    for event in ask(stocked, QUESTION, backend="scripted", model="script", stop=stop):
        events.append(event)
        if isinstance(event, TextDelta):
            stop.set()
    answer = events[-1]
    assert (answer.finished, answer.reason, answer.text) == ("stopped", "stopped", "It cost")
    assert len(scripted.PROMPTS) == 2


def test_a_stream_without_its_end_is_no_answer(stocked, script, config):
    """It is kept as an attempt, and the starter answers in a block of its own."""
    script.append(["Thought: x\nAnswer: It cost 3.7 mil", "no end"])
    events = run(stocked, chat="c")
    fell = next(event for event in events if isinstance(event, FellBack))
    assert (fell.before, fell.reason, fell.text) == ("scripted · script", "no_end_marker", "It cost 3.7 mil")
    answer = events[-1]
    assert answer.backend == "llama.cpp"
    assert "3.7 mil" not in answer.text.replace("3.7 million", "")
    assert answer.attempts[0]["text"] == "It cost 3.7 mil"
    assert [(f["from"], f["reason"]) for f in answer.fallbacks] == [("scripted · script", "no_end_marker")]
    kept = chats.messages(stocked, "c")[-1]
    assert kept.text == answer.text
    assert kept.details["attempts"] == [answer.attempts[0]]
    after = events.index(fell)
    assert "".join(e.text for e in events[after:] if isinstance(e, TextDelta)) == answer.text


def test_a_dead_backend_leads_to_the_next_with_the_search_made_once(stocked, script):
    """Before the first token nothing of the first model is on the screen."""
    script.append(BackendUnavailable("It does not answer.", "Start it."))
    events = run(stocked)
    answer = events[-1]
    assert (answer.backend, answer.attempts, answer.fallbacks[0]["reason"]) == ("llama.cpp", (), "unreachable")
    assert len([event for event in events if isinstance(event, StepStarted)]) == 1
    assert answer.citations


def test_a_profile_without_fallbacks_fails_with_its_own_error(stocked, script):
    """What the person wants to be told, when nothing else is allowed."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text('backend = "scripted"\nmodel = "script"\nagent = "react"\nfallbacks = []\n')
    script.append(BackendUnavailable("It does not answer.", "Start it."))
    with pytest.raises(BackendUnavailable, match="does not answer"):
        list(ask(stocked, QUESTION, profile="mine"))


def test_when_all_fail_what_was_written_first_is_kept_as_cut(stocked, script):
    """Nothing that was on the screen is lost."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text('backend = "scripted"\nmodel = "script"\nfallbacks = ["second"]\n')
    (folder / "second.toml").write_text('backend = "scripted"\nmodel = "other"\nfallbacks = []\n')
    script += [["It cost 3.7 mil", "no end"], BackendUnavailable("It does not answer.", "Start it.")]
    answer = list(ask(stocked, QUESTION, profile="mine"))[-1]
    assert (answer.finished, answer.reason, answer.text) == ("cut", "no_end_marker", "It cost 3.7 mil")
    assert (answer.model, answer.profile, answer.attempts) == ("script", "mine", ())


def test_a_text_that_is_cut_is_cut_by_its_own_models_error(stocked, script):
    """The first was not there; the second broke off: its words, its name, its reason."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text('backend = "scripted"\nmodel = "script"\nfallbacks = ["second"]\n')
    (folder / "second.toml").write_text('backend = "scripted"\nmodel = "other"\nfallbacks = []\n')
    script += [BackendUnavailable("It does not answer.", "Start it."), ["It cost 3.7 mil", "no end"]]
    answer = list(ask(stocked, QUESTION, profile="mine"))[-1]
    assert (answer.finished, answer.reason, answer.model) == ("cut", "no_end_marker", "other")


def test_a_small_model_chosen_by_hand_answers_directly(stocked, script):
    """It cannot drive the agent: its prompt has evidence and question only."""
    script.append(RIGHT)
    run(stocked, model="tiny")
    assert [message["role"] for message in scripted.PROMPTS[0]] == ["system", "user"]


@pytest.mark.parametrize("agent", ["direct", "react"])
def test_a_follow_up_is_searched_with_what_it_refers_to(stocked, script, agent):
    """The rewritten query is the step's; the model sees the conversation and the question as it was asked."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text(f'backend = "scripted"\nmodel = "script"\nagent = "{agent}"\n')
    script += [
        f"Answer: {RIGHT}" if agent == "react" else RIGHT,
        "Answer: In 2022 nothing." if agent == "react" else "x",
    ]
    first = list(ask(stocked, "What did repairs of the north quay cost in 2023?", profile="mine", chat="c"))[-1]
    second = list(ask(stocked, "And the year before?", profile="mine", chat="c"))[-1]
    assert first.steps[0]["input"] == "What did repairs of the north quay cost in 2023?"
    assert second.steps[0]["input"] == "What did repairs of the north quay cost in 2022?"
    assert second.asked == "And the year before?"
    before, after = scripted.PROMPTS
    assert after[: len(before)] == before, "what was read stands where it stood, letter for letter"
    assert RIGHT in after[len(before)]["content"]
    assert "And the year before?" in "".join(message["content"] for message in after[len(before) + 1 :])
    told = "".join(message["content"] for message in after)
    assert told.count("Repairs of the north quay cost 3.7") == before_count(before) + 1, "no passage is given twice"


def before_count(messages):
    """How often the passage stands in a prompt."""
    return "".join(message["content"] for message in messages).count("Repairs of the north quay cost 3.7")


def test_what_was_removed_is_not_told_again(stocked, script):
    """The words of a removed document are not in the conversation either, only in the answer that was given."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text('backend = "scripted"\nmodel = "script"\nagent = "direct"\n')
    script += [RIGHT, "x"]
    list(ask(stocked, QUESTION, profile="mine", chat="c"))
    stocked.remove(["harbour report 2023.pdf"])
    list(ask(stocked, "How much honey does a colony need to survive the winter?", profile="mine", chat="c"))
    told = "".join(message["content"] for message in scripted.PROMPTS[1])
    assert "ended in October" not in told
    assert QUESTION in told


def test_the_starter_works_as_an_agent_when_it_is_held_to_the_grammar(stocked):
    """135 million parameters: what it says may be poor, its form is right, and it ends in an answer or a no."""
    folder = stocked.config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text(
        'backend = "llama.cpp"\nmodel = "smollm2-135m-instruct"\nagent = "react"\ntemperature = 0.0\n'
        "max_output_tokens = 160\nfallbacks = []\n"
    )
    for question in (QUESTION, "How many people does the pilot station employ?"):
        events = list(ask(stocked, question, profile="mine"))
        answer = events[-1]
        assert answer.finished in ("complete", "cut")
        assert not [mark for mark in ("Thought:", "Action:", "Observation:") if mark in shown(events)]
        assert answer.text
