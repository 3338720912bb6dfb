"""A question → an answer one can check: search, pack, ask the model, proof. Knows no Streamlit.

`ask` is a generator of what happens; the last event is the `Answer`. A profile answers in one of two ways: "direct",
for models that cannot drive an agent, makes the search and calls the model once; "react" makes the same search and lets
the model go on with tools when it has to (docmind.agent). A model that fails is followed by the next one allowed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from docmind import breaker, chats, continuing, history, routing, runs, tools
from docmind.backends import ModelInfo
from docmind.backends import backend as find_backend
from docmind.backends.places import checked_place, where_text_goes
from docmind.background import follow
from docmind.citations import Citation, Sentence, cite, is_refusal, split_sentences, strip_markers
from docmind.context import as_json
from docmind.errors import BackendError, BackendUnavailable, DocMindError
from docmind.events import FellBack, ModelWaiting, Phase, StepFinished, StepStarted, TextDelta, TextLeaves
from docmind.follow_up import standalone
from docmind.history import History, Turn
from docmind.parse.boxes import boxes_for
from docmind.profiles import AUTO, Profile
from docmind.prompts import ANSWER_GRAMMAR, NO_ANSWER, NOT_IN_DOCUMENTS, REACT, direct_messages, observation_text
from docmind.tools import Reading
from docmind.transcript import answer_so_far, read_step, without_partial_tag, without_thinking

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from llama_index.core.llms import ChatMessage

    from docmind.library import Library, Page
    from docmind.search import Hit

log = logging.getLogger(__name__)

Finished = Literal["complete", "stopped", "cut", "failed"]
# Below this score of the best passage the documents do not answer, and no model is asked to. Of 612 questions whose
# answer was in the library one scored below it; of the same with their document left out 230 did (docs/decisions.md).
LEAST_SCORE = 0.54
NEAREST = 3  # passages shown when the documents do not answer
MAX_QUESTION_CHARACTERS = 4_000
KEEP_SECONDS = 3.0  # how often a growing answer is kept in its chat
STOP_POLL_SECONDS = 0.05
LONGEST_MARK = 64  # characters of a "[1, 2, 3]" that is held back until it is decided
SPARE_TOKENS = 16  # what a chat template adds around a message
STEP_TOKENS = 640  # of the window, at most an eighth, kept for the agent's own thoughts and calls
# How long the conversation before may take to read, in shares of the first-token target: it is read only once.
HISTORY_SHARE = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of an answer. `as_json` is the contract's form.

    Attributes:
        text: As shown: the model's own [1] marks are taken out, since the numbers in `sentences` are the proven ones.
        asked: The question as the model was told it.
        nearest: When the documents do not answer, the passages that came closest.
        fallbacks: Models that gave up, and those that went on.
        attempts: What they had written.
        choice: What `auto` came to and why; None where nothing was to be chosen.
        url: Of the server whose model wrote it; None: a model in this program.
        settings_left_out: Settings of the profile that the backend has nothing for, or that its server refused.
    """

    text: str
    finished: Finished
    reason: str | None
    not_in_documents: bool
    sentences: tuple[Sentence, ...]
    citations: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]
    nearest: tuple[dict[str, Any], ...]
    backend: str
    model: str
    profile: str
    run_id: str
    chat_id: str | None
    context: dict[str, Any]
    timings: dict[str, Any]
    asked: str = ""
    fallbacks: tuple[dict[str, Any], ...] = ()
    attempts: tuple[dict[str, Any], ...] = ()
    choice: str | None = None
    url: str | None = None
    settings_left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The answer as `docmind ask --json` prints it."""
        return {
            "answer": self.text,
            "asked": self.asked,
            "finished": self.finished,
            "reason": self.reason,
            "not_in_documents": self.not_in_documents,
            "sentences": [
                {"text": s.text, "support": s.support, "citations": list(s.citations), "is_claim": s.is_claim}
                for s in self.sentences
            ],
            "citations": list(self.citations),
            "steps": list(self.steps),
            "nearest": list(self.nearest),
            "backend": self.backend,
            "model": self.model,
            "profile": self.profile,
            "choice": self.choice,
            "url": self.url,
            "settings_left_out": list(self.settings_left_out),
            "run": self.run_id,
            "chat": self.chat_id,
            "fallbacks": list(self.fallbacks),
            "attempts": list(self.attempts),
            "context": self.context,
            "timings": self.timings,
        }


AnswerEvent = StepStarted | StepFinished | ModelWaiting | TextLeaves | TextDelta | FellBack | Answer


@dataclass(slots=True)
class _Work:
    """An answer in the making; what it has come to is kept when it is stopped or cut."""

    library: Library
    question: str
    run_id: str
    chat: str | None
    message_id: int | None  # where the chat keeps the answer
    stop: threading.Event | None
    started: float
    reading: Reading
    query: str = ""  # what is searched for
    asked: str = ""  # the question as the model is told it
    turns: list[Turn] = field(default_factory=list)  # of the chat, before this one
    before: History = field(default_factory=History)  # of these what the model is given
    profile: Profile | None = None
    choice: str | None = None
    model: ModelInfo | None = None
    hits: list[Hit] = field(default_factory=list)  # of the first search
    raw: str = ""
    shown: str = ""
    fallbacks: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    wrote: dict[str, tuple[Profile, ModelInfo]] = field(default_factory=dict)  # of each attempt, by "backend · model"
    receipt: dict[str, Any] = field(default_factory=dict)  # the last message of the model
    model_calls: int = 0
    first_token_seconds: float | None = None
    kept_at: float = 0.0
    finished: Finished = "failed"
    reason: str | None = None
    refused: bool = False
    error: DocMindError | None = None
    url: str | None = None  # of the server whose model writes; None: it runs in this program

    @property
    def is_stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()


def ask(
    library: Library,
    question: str,
    *,
    profile: str | None = None,
    backend: str | None = None,
    model: str | None = None,
    collections: Sequence[str] = (),
    documents: Sequence[str] = (),
    chat: str | None = None,
    continues: bool = False,
    stop: threading.Event | None = None,
    run_id: str | None = None,
) -> Iterator[AnswerEvent]:
    """Answer a question from the documents in the library.

    Args:
        profile: Its name; None: the starter. `backend` and `model` take the place of what it names.
        chat: Id of a chat that keeps the question at once and the answer as it grows; made when it is new. What was
            said in it before is known to the model. None: neither is kept.
        continues: The chat's last answer, which was cut or stopped, goes on, with the model that wrote it and what it
            had read; nothing else is asked.
        stop: Setting it ends the answer within about a second; what was written so far is kept.
        run_id: Of the run that is recorded; None: a new one.

    Yields:
        StepStarted, StepFinished, TextLeaves, ModelWaiting, TextDelta, FellBack, and last the Answer.

    Raises:
        DocMindError: Nothing can be answered: the library is empty, the model is not there, …
    """
    if continues:
        yield from _ask_on(library, chat, stop, run_id)
        return
    question = question.strip()[:MAX_QUESTION_CHARACTERS]
    if not question:
        raise DocMindError("There is no question.", "Write one.", reason="no_question")
    turns = history.turns_of(library, chat)
    run_id = runs.start_run(library, "answer", run_id)
    message_id = None if chat is None else chats.begin(library, chat, question, run_id)
    now = time.monotonic()
    work = _Work(
        library, question, run_id, chat, message_id, stop, now, Reading(library, collections, documents, stop=stop),
        query=standalone(question, [turn.query for turn in turns]), asked=question, turns=turns,
        kept_at=now,
    )  # fmt: skip
    yield from _to_its_end(
        work, lambda: _answer(work, routing.with_fallbacks(library.config, _chosen(work, profile, backend, model)))
    )


def _to_its_end(work: _Work, begin: Callable[[], Iterator[AnswerEvent]]) -> Iterator[AnswerEvent]:
    """The events of an answer and last the Answer; whatever ends it, what there is of it is kept."""
    answer: Answer | None = None
    try:
        yield from begin()
    except (GeneratorExit, KeyboardInterrupt):
        work.finished, work.reason = "stopped", "stopped"
        raise
    except DocMindError as error:
        if error.reason == "stopped":  # in the middle of a search
            work.finished, work.reason = "stopped", "stopped"
        else:
            work.finished, work.reason, work.error = ("cut" if work.shown else "failed"), error.reason, error
            log.error("answer %s: %s", work.run_id, error.reason)
            if not work.shown:
                raise
    finally:
        answer = _finish(work)
    if answer is not None:
        yield answer


def _chosen(work: _Work, profile: str | None, backend: str | None, model: str | None) -> Profile:
    """The profile to begin with."""
    config = work.library.config
    work.profile = routing.choose(config, profile, backend, model)
    if work.profile.backend == AUTO:
        work.choice = routing.resolve(config, work.profile).words
    return work.profile


def _answer(work: _Work, route: Sequence[Profile]) -> Iterator[AnswerEvent]:
    """The first model that is able to answers; how it went is in `work`."""
    if work.library.counts()["passages"] == 0:
        raise DocMindError(
            "There are no documents yet.", "Add some first: `docmind add FILE_OR_FOLDER`.", reason="library_empty"
        )
    failure: BackendError | None = None
    for place, profile in enumerate(route):
        is_last = place + 1 == len(route)
        try:
            rest = None if is_last else breaker.resting(profile)
            if rest is not None:
                raise rest
            yield from _attempt(work, profile)
            if work.finished != "stopped":
                breaker.note(profile, None)
            return
        except BackendError as error:
            breaker.note(profile, error)
            if failure is None or work.shown:  # what was chosen has to be mended; a text is cut by its own error
                failure = error
            if work.is_stopped or is_last or not routing.can_another_help(error):
                break
            yield _fall_back(work, profile, route[place + 1], error)
    assert failure is not None
    if work.attempts and not work.shown:  # the last one wrote nothing: what there is stays
        last = work.attempts.pop()
        work.raw = work.shown = last["text"]
        work.profile, work.model = work.wrote[last["model"]]
    raise failure


def _attempt(work: _Work, profile: Profile) -> Iterator[AnswerEvent]:
    """One model's answer: search, pack, write."""
    library = work.library
    # The model is checked, and starts to load, before the embedder: its absence is an answer within a second.
    work.profile, work.model = profile, routing.find_model(library.config, profile)
    work.profile = profile = routing.for_model(profile, work.model)
    llm: Any = find_backend(profile.backend).build(library.config, work.model.name, routing.options(profile))
    work.url = getattr(llm, "url", None)
    try:
        if work.url is not None:
            place = checked_place(library.config, work.url, carries_text=True)
            if place != "this device":
                yield TextLeaves(place, where_text_goes(work.url)[1])
        routing.free_memory(but=profile.backend)
        yield from _by_model(work, llm, profile)
    finally:
        llm.release()


def _by_model(work: _Work, llm: Any, profile: Profile) -> Iterator[AnswerEvent]:
    """The answer of a model that is there."""
    llm.start()
    if not work.reading.steps:
        yield StepStarted("search_documents", work.query)
        work.hits = tools.find(work.reading, work.query)
        yield tools.step_finished(work.reading.steps[-1])
    is_agent = profile.agent == "react"
    work.refused = not work.hits or (work.hits[0].score < LEAST_SCORE and not is_agent)
    if work.refused:
        work.finished = "complete"
    else:
        yield from _load(work, llm)  # the reading speed decides how much evidence goes in
        if work.is_stopped:
            work.finished, work.reason = "stopped", "stopped"
            return
        _give(work, llm, profile)
        yield from (_by_agent if is_agent else _directly)(work, llm, profile)
        work.refused = is_refusal(work.raw)
        if not work.raw.strip() and work.finished == "complete":
            work.raw, work.reason = NO_ANSWER, "no_answer"
            yield from _show(work, everything=True)
    if work.refused and not work.shown:
        work.raw = NOT_IN_DOCUMENTS
        yield from _show(work, everything=True)


def _fall_back(work: _Work, before: Profile, after: Profile, error: BackendError) -> FellBack:
    """Note that a model gave up; what it wrote stays as an attempt, and what was found is used again."""
    event = FellBack(_named(before), _named(after), error.reason, str(error), work.shown)
    log.warning("answer %s: %s, on with another model", work.run_id, error.reason)
    work.fallbacks.append(
        {"from": event.before, "to": event.after, "reason": error.reason, "message": str(error), "hint": error.hint}
    )
    if work.shown:
        work.attempts.append({"text": work.shown, "model": event.before, "reason": error.reason})
        assert work.profile is not None
        assert work.model is not None
        work.wrote[event.before] = work.profile, work.model
    work.raw = work.shown = ""
    work.receipt, work.first_token_seconds, work.error = {}, None, None
    work.reading.steps = work.reading.steps[:1]
    if work.message_id is not None:  # whatever happens next, this is kept
        chats.keep_attempts(work.library, work.message_id, work.attempts, work.fallbacks)
    return event


def _named(profile: Profile) -> str:
    return f"{profile.backend} · {profile.model or profile.name}"


# An answer that was cut -------------------------------------------------------------------------------------------


def _ask_on(
    library: Library, chat: str | None, stop: threading.Event | None, run_id: str | None
) -> Iterator[AnswerEvent]:
    """The chat's last answer goes on."""
    question, message = continuing.unfinished(library, chat)
    assert chat is not None
    turn, evidence, pages = continuing.read_for(library, chat)
    details = message.details
    run_id = runs.start_run(library, "answer", run_id)
    if not chats.reopen(library, message, run_id):
        runs.finish_run(library, run_id, "failed")
        raise DocMindError("This answer goes on already.", "Wait for it.", reason="nothing_to_continue")
    now = time.monotonic()
    read_tokens = ((details.get("context") or {}).get("parts") or {}).get("evidence") or 0
    reading = Reading(
        library, evidence=evidence, pages=pages, steps=list(details.get("steps") or []), evidence_tokens=read_tokens,
        budget_tokens=read_tokens,
    )  # fmt: skip
    work = _Work(
        library, question, run_id, chat, message.message_id, stop, now, reading, query=turn.query, asked=turn.asked,
        turns=history.turns_of(library, chat), raw=message.text, shown=message.text, kept_at=now,
        fallbacks=list(details.get("fallbacks") or []), attempts=list(details.get("attempts") or []),
        choice=details.get("choice"), url=details.get("url"),
    )  # fmt: skip
    # With the model that wrote it, and no other: never two in one text.
    name, backend, model = str(details.get("profile") or ""), str(details["backend"]), str(details["model"])
    work.profile = Profile(name, backend, model)
    work.model = ModelInfo(model, (details.get("context") or {}).get("window"), None, None, loaded=False)
    yield from _to_its_end(work, lambda: _go_on(work, name, turn))


def _go_on(work: _Work, name: str, turn: Turn) -> Iterator[AnswerEvent]:
    """One more call of the model."""
    original = work.raw
    yield TextDelta(original)  # it is read on the screen already
    assert work.profile is not None
    profile = _chosen(work, name or None, work.profile.backend, work.profile.model)
    config = work.library.config
    work.model = routing.find_model(config, profile)
    llm: Any = find_backend(profile.backend).build(config, work.model.name, routing.options(profile))
    try:
        if work.url != getattr(llm, "url", None):
            raise BackendUnavailable(
                f"{profile.backend} · {profile.model} is at another address now.", "Ask again instead.",
                reason="model_missing",
            )  # fmt: skip
        routing.free_memory(but=profile.backend)
        llm.start()
        yield from _load(work, llm)
        if work.is_stopped:
            work.finished, work.reason = "stopped", "stopped"
            return
        written = continuing.to_go_on_from(original)
        limit_tokens = (llm.metadata.context_window - profile.max_output_tokens) // 2
        work.before = history.fitting(
            work.library, work.turns, llm.count_tokens_many, within=None,
            limit_tokens=min(profile.history_tokens, limit_tokens), tokens_per_second=llm.prefill_tokens_per_second,
            target_seconds=HISTORY_SHARE * config.first_token_target_seconds, is_agent=False,
        )  # fmt: skip
        before = _before(work, is_agent=False)
        messages = continuing.messages(turn, written, profile.system_prompt, before)

        def read(text: str, is_all: bool) -> str:
            return continuing.joined(written, _spoken(text, is_all), is_all=is_all)

        yield from _call(work, llm, profile, messages, routing.call_arguments(profile), read)
        if work.raw == written:  # it said nothing new: what there was stays as it was
            work.raw = original
            yield from _show(work, everything=True)
            if work.finished == "complete":
                work.finished, work.reason = "cut", "no_answer"
    finally:
        llm.release()


# The steps --------------------------------------------------------------------------------------------------------


def _load(work: _Work, llm: Any) -> Iterator[AnswerEvent]:
    """Wait until the model is in memory; a stop ends the waiting and lets it load on."""
    failure: list[DocMindError] = []

    def load() -> None:
        try:
            llm.warm_up()
        except DocMindError as error:
            failure.append(error)

    started, told = time.monotonic(), None
    was_loaded = llm.is_loaded
    loading = threading.Thread(target=load, name="docmind-load", daemon=True)
    loading.start()
    while loading.is_alive() and not work.is_stopped:
        percent, seconds = llm.load_percent, int(time.monotonic() - started)
        waiting = ModelWaiting("loading", done=percent or 0, total=0 if percent is None else 100, seconds=seconds)
        if waiting != told and not was_loaded:
            yield (told := waiting)
        loading.join(STOP_POLL_SECONDS)
    if failure:
        raise failure[0]


def _give(work: _Work, llm: Any, profile: Profile) -> None:
    """Decide what the model is given: of the chat before, and of what was found."""
    config, is_agent = work.library.config, profile.agent == "react"
    window = llm.metadata.context_window
    header = direct_messages("", [], REACT if is_agent else profile.system_prompt)
    room = window - llm.count_tokens(header) - profile.max_output_tokens - SPARE_TOKENS
    room -= min(STEP_TOKENS, window // 8) if is_agent else 0
    speed, reach = llm.prefill_tokens_per_second, work.reading
    within: frozenset[str] | None = None
    if reach.collections or reach.documents:  # what is selected now, whatever was before
        selected = tools.within_reach(work.library, reach.collections, reach.documents)
        within = frozenset(document.document_id for document in selected)
    work.before = history.fitting(
        work.library, work.turns, llm.count_tokens_many, within=within,
        limit_tokens=min(profile.history_tokens, room // 2), tokens_per_second=speed,
        target_seconds=HISTORY_SHARE * config.first_token_target_seconds, is_agent=is_agent,
    )  # fmt: skip
    # A model without history is asked the question, whose evidence says what it is about; or what it means where only
    # the year differs.
    work.asked = work.question if work.before.turns or work.question in work.query else work.query
    room -= work.before.tokens + llm.count_tokens_many([work.asked])[0]
    known = work.before.evidence
    work.reading = Reading(
        work.library, reach.collections, reach.documents, llm.count_tokens_many, room_tokens=max(room, 0),
        tokens_per_second=speed, target_seconds=config.first_token_target_seconds,
        first_number=max((piece.number for piece in known), default=0) + 1, evidence=known,
        pages=dict(work.before.pages), steps=[{**reach.steps[0], "evidence": []}], hits=list(work.hits),
        stop=work.stop,
    )  # fmt: skip
    tools.give(work.reading, work.hits)


def _new_evidence(work: _Work) -> Sequence[Any]:
    """What was found for this question and is not in the conversation already."""
    return work.reading.evidence[len(work.before.evidence) :]


def _before(work: _Work, *, is_agent: bool) -> list[ChatMessage]:
    return [message for turn in work.before.turns for message in history.turn_messages(turn, is_agent)]


def _directly(work: _Work, llm: Any, profile: Profile) -> Iterator[AnswerEvent]:
    """One call of the model."""
    messages = direct_messages(
        work.asked, _new_evidence(work), profile.system_prompt, _before(work, is_agent=False)
    )  # fmt: skip
    yield from _call(work, llm, profile, messages, routing.call_arguments(profile), _spoken)


def _by_agent(work: _Work, llm: Any, profile: Profile) -> Iterator[AnswerEvent]:
    """The agent, and where it ends without an answer one more call that has to give one."""
    from docmind import agent as agents

    has_grammar = routing.takes(profile, "grammar")
    arguments = routing.call_arguments(profile)
    agent = agents.make_agent(
        llm, work.reading, _before(work, is_agent=True), arguments, has_grammar=has_grammar
    )  # fmt: skip
    found = _new_evidence(work)
    observation = observation_text(found) if found else f"Observation: {tools.NOTHING_NEW}"
    work_on = agents.work(agent, work.reading, work.asked, observation, work.stop)

    async def opened() -> Any:
        return work_on

    yield from _receive(work, llm, profile, follow(opened, work.stop, llm.stop), _step_text)
    if not work.raw and work.finished != "stopped" and not work.is_stopped:
        if has_grammar:
            arguments["grammar"] = ANSWER_GRAMMAR
        yield from _call(work, llm, profile, agent.forced(), arguments, _step_text)


def _call(
    work: _Work, llm: Any, profile: Profile, messages: Sequence[ChatMessage], arguments: dict[str, Any],
    read: Callable[[str, bool], str],
) -> Iterator[AnswerEvent]:  # fmt: skip
    """One call of the model, streamed."""
    stream = follow(lambda: llm.astream_chat(messages, **arguments), work.stop, llm.stop)
    yield from _receive(work, llm, profile, stream, read)


def _receive(
    work: _Work, llm: Any, profile: Profile, stream: Generator[Any, None, None], read: Callable[[str, bool], str]
) -> Iterator[AnswerEvent]:
    """What comes from the model, until it has ended.

    Args:
        read: Gives the answer in what the model has written in a call, and whether that is all.
    """
    text, is_enough = "", False
    try:
        for event in stream:
            if isinstance(event, StepStarted | StepFinished):
                yield event
                continue
            work.receipt = receipt = dict(event.raw or {})
            work.model_calls += "finish_reason" in receipt
            phase = receipt.get("phase")
            if phase in ("waiting", "loading", "reading", "thinking"):
                yield ModelWaiting(
                    cast("Phase", phase), receipt.get("ahead", 0), receipt.get("done", 0), receipt.get("total", 0)
                )
            if not event.delta or is_enough:
                continue
            text = event.message.content or ""
            work.raw = read(text, False)
            if work.raw and work.first_token_seconds is None:
                work.first_token_seconds = round(time.monotonic() - work.started, 3)
            spans = split_sentences(work.raw) if profile.max_sentences else []
            if profile.max_sentences and len(spans) > profile.max_sentences:
                # Stopped, not closed: its last message has the figures of the call.
                is_enough = True
                work.raw = work.raw[: spans[profile.max_sentences - 1][1]]
                llm.stop()
            yield from _show(work)
    finally:
        stream.close()
    if is_enough:
        work.receipt["finish_reason"] = "stop"
    else:
        work.raw = read(text, True)
    work.finished, work.reason = _how_it_ended(work.receipt)
    if work.is_stopped and not work.raw:  # between two calls
        work.finished, work.reason = "stopped", "stopped"
    if work.raw and work.first_token_seconds is None:
        work.first_token_seconds = round(time.monotonic() - work.started, 3)
    yield from _show(work, everything=True)


def _spoken(text: str, is_all: bool) -> str:
    """A direct answer: all but thoughts."""
    return without_thinking(text if is_all else without_partial_tag(text))


def _step_text(text: str, is_all: bool) -> str:
    """The answer in an agent's step, with or without the word in front; none in a call of a tool."""
    # Half of a pair that JSON spelled out is no text to SQLite.
    return (read_step(text).text if is_all else answer_so_far(text)).encode("utf-8", "replace").decode()


def _show(work: _Work, *, everything: bool = False) -> Iterator[TextDelta]:
    """What can be shown of the answer so far: a "[" that may become a mark is held back until it is decided."""
    raw = work.raw
    if not everything:
        bracket = max(raw.rfind("["), raw.rfind("【"))
        if bracket >= 0 and len(raw) - bracket < LONGEST_MARK:
            raw = raw[:bracket]
        raw = raw.rstrip()  # a space before a mark goes with it
    shown = strip_markers(raw)
    is_held_back = not everything and work.shown.startswith(shown)
    if shown != work.shown and not is_held_back:
        goes_on = shown.startswith(work.shown)
        delta = shown[len(work.shown) :] if goes_on else shown
        work.shown = shown
        yield TextDelta(delta, replaces=not goes_on)
    if work.message_id is not None and time.monotonic() - work.kept_at > KEEP_SECONDS:
        work.kept_at = time.monotonic()
        chats.keep_partial(work.library, work.message_id, work.shown)


def _how_it_ended(receipt: dict[str, Any]) -> tuple[Finished, str | None]:
    """Completeness is proven by the finish reason, never assumed from a stream that ends."""
    reason = receipt.get("finish_reason")
    if reason == "stop":
        return "complete", "context_cut" if receipt.get("context_cut") else None
    if reason == "stopped":
        return "stopped", "stopped"
    return "cut", "cut_at_limit" if reason == "length" else "no_end_marker"


def _finish(work: _Work) -> Answer | None:
    """Prove the sentences, close the run, keep the messages. None when there is nothing to show for it."""
    library, profile, model, reading, receipt = work.library, work.profile, work.model, work.reading, work.receipt
    answer: Answer | None = None
    timings = _timings(work)  # once: the answer, its receipt and the log say the same
    if profile is not None and model is not None and work.finished != "failed":
        sentences, cited = cite(work.raw, reading.evidence, question=work.query)
        nearest = _best_of_each_page(reading.hits)[:NEAREST] if work.refused or not cited else []
        answer = Answer(
            text=strip_markers(work.raw),
            asked=work.asked,
            finished=work.finished,
            reason=work.reason,
            not_in_documents=work.refused,
            sentences=tuple(sentences),
            citations=tuple(
                _citation(citation, reading.pages[citation.document_id, citation.page]) for citation in cited
            ),
            steps=tuple(reading.steps),
            nearest=tuple(_nearest(hit, work.query) for hit in nearest),
            fallbacks=tuple(work.fallbacks),
            attempts=tuple(work.attempts),
            backend=profile.backend,
            model=model.name,
            profile=profile.name,
            choice=work.choice,
            url=work.url,
            settings_left_out=routing.all_left_out(profile, receipt),
            run_id=work.run_id,
            chat_id=work.chat,
            context={
                "window": receipt.get("context_window", model.context_window),
                "sent_tokens": receipt.get("counted_tokens", receipt.get("prompt_tokens")),
                "counted_tokens": receipt.get("prompt_tokens"),
                "parts": _parts(work, profile) if receipt else {},
                "left_out": [as_json(left) for left in reading.left_out],
            },
            timings=timings,
        )
    # The receipt holds figures only: the words stay in the chat, where the person can delete them.
    runs.add_event(library, work.run_id, "receipt", {
        "finished": work.finished, "reason": work.reason, "backend": profile and profile.backend,
        "model": model and model.name, "profile": profile and profile.name, "timings": timings,
        "citations": len(answer.citations) if answer else 0,
    })  # fmt: skip
    if work.message_id is not None:
        if answer is not None:
            chats.finish(library, work.message_id, answer, work.error)
        else:
            chats.fail(library, work.message_id, work.error)
    runs.finish_run(library, work.run_id, work.finished)
    log.info("answer %s %s %s", work.run_id, work.finished, json.dumps(timings))
    return answer


def _timings(work: _Work) -> dict[str, Any]:
    receipt = work.receipt
    return {
        "retrieval_s": round(sum(step["seconds"] for step in work.reading.steps), 3) if work.reading.steps else None,
        "first_token_s": work.first_token_seconds,
        "total_s": round(time.monotonic() - work.started, 3),
        "prompt_tokens": receipt.get("prompt_tokens"),
        "answer_tokens": receipt.get("answer_tokens"),
        "tokens_per_second": receipt.get("tokens_per_second"),
        "model_calls": work.model_calls,
    }


def _parts(work: _Work, profile: Profile) -> dict[str, int | None]:
    """What the window is used for, in tokens; `cached` of the prompt were read by an earlier call."""
    prompt, evidence, before = work.receipt.get("prompt_tokens"), work.reading.evidence_tokens, work.before.tokens
    return {
        "instructions_and_question": None if prompt is None else max(prompt - evidence - before, 0),
        "conversation": before,
        "evidence": evidence,
        "evidence_budget": work.reading.budget_tokens,
        "answer_limit": profile.max_output_tokens,
        "cached": work.receipt.get("cached_tokens"),
    }


def _citation(citation: Citation, page: Page) -> dict[str, Any]:
    """A citation with the boxes its quote covers on the page."""
    fields = asdict(citation)
    quote = fields.pop("text")
    found = boxes_for(page.boxes, citation.start, citation.end) if page.boxes else []
    boxes = [[round(float(x), 2) for x in box] for box in found]
    return {**fields, "quote": quote, "boxes": boxes, "page_sha256": page.sha256}


def _best_of_each_page(hits: Sequence[Hit]) -> list[Hit]:
    """The passages without a second one of the same page."""
    pages: dict[tuple[str, int], Hit] = {}
    for hit in hits:
        pages.setdefault((hit.document_id, hit.page), hit)
    return list(pages.values())


def _nearest(hit: Hit, question: str) -> dict[str, Any]:
    """A passage that came close, by its sentence that shares most words with the question."""
    from docmind.search import query_words

    asked = set(query_words(question))
    spans = split_sentences(hit.text) or [(0, len(hit.text))]
    start, end = max(spans, key=lambda span: len(asked & set(query_words(hit.text[span[0] : span[1]]))))
    return {
        "document_id": hit.document_id, "document": hit.document, "page": hit.page, "start": hit.start + start,
        "end": hit.start + end, "text": hit.text[start:end], "score": hit.score,
    }  # fmt: skip
