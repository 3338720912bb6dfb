"""A question → an answer one can check: search, pack, one call of the model, proof. Knows no Streamlit.

`ask` is a generator of what happens; the last event is the `Answer`. This is the direct way, for models that cannot
drive an agent: the search is made by the program, and the model is called once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from docmind import chats, runs
from docmind.backends import backend as find_backend
from docmind.background import follow
from docmind.citations import Citation, Sentence, cite, is_refusal, split_sentences, strip_markers
from docmind.context import as_json, pack
from docmind.errors import DocMindError, ModelNotFound, ProfileError
from docmind.parse.boxes import boxes_for
from docmind.profiles import Profile, find_profile
from docmind.prompts import NOT_IN_DOCUMENTS, direct_messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docmind.backends import ModelInfo
    from docmind.citations import Evidence
    from docmind.config import Config
    from docmind.context import Packed
    from docmind.library import Library, Page
    from docmind.search import Hit

log = logging.getLogger(__name__)

Finished = Literal["complete", "stopped", "cut", "failed"]
HITS = 12  # passages looked at for one answer; what is not given to the model is listed
# Below this score of the best passage the documents do not answer, and no model is asked to. Of 612 questions whose
# answer was in the library one scored below it; of the same with their document left out 230 did (docs/decisions.md).
LEAST_SCORE = 0.54
NEAREST = 3  # passages shown when the documents do not answer
MAX_QUESTION_CHARACTERS = 4_000
KEEP_SECONDS = 3.0  # how often a growing answer is kept in its chat
STOP_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A tool begins: what it is asked."""

    tool: str
    input: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A tool ended: how many passages in how many documents, in how many seconds."""

    tool: str
    input: str
    hits: int
    documents: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelWaiting:
    """The model is not writing yet.

    Attributes:
        phase: "waiting" for another question's answer, "loading" the model, "reading" the prompt.
        ahead: Questions before this one, while waiting.
        done, total: Tokens of the prompt, while reading.
    """

    phase: Literal["waiting", "loading", "reading"]
    ahead: int = 0
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer as shown."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of an answer. `as_json` is the contract's form.

    Attributes:
        text: As shown: the model's own [1] marks are taken out, since the numbers in `sentences` are the proven ones.
        nearest: When the documents do not answer, the passages that came closest.
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

    def as_json(self) -> dict[str, Any]:
        """The answer as `docmind ask --json` prints it."""
        return {
            "answer": self.text,
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
            "run": self.run_id,
            "chat": self.chat_id,
            "fallbacks": [],
            "context": self.context,
            "timings": self.timings,
        }


AnswerEvent = StepStarted | StepFinished | ModelWaiting | TextDelta | Answer


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
    profile: Profile | None = None
    model: ModelInfo | None = None
    hits: list[Hit] = field(default_factory=list)
    packed: Packed | None = None
    pages: dict[tuple[str, int], Page] = field(default_factory=dict)
    raw: str = ""
    shown: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    receipt: dict[str, Any] = field(default_factory=dict)  # the last message of the model
    retrieval_seconds: float | None = None
    first_token_seconds: float | None = None
    kept_at: float = 0.0
    finished: Finished = "failed"
    reason: str | None = None
    refused: bool = False
    error: DocMindError | None = None

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
    stop: threading.Event | None = None,
    run_id: str | None = None,
) -> Iterator[AnswerEvent]:
    """Answer a question from the documents in the library.

    Args:
        profile: Its name; None: the starter. `backend` and `model` take the place of what it names.
        chat: Id of a chat that keeps the question at once and the answer as it grows; made when it is new. None:
            neither is kept.
        stop: Setting it ends the answer within about a second; what was written so far is kept.
        run_id: Of the run that is recorded; None: a new one.

    Yields:
        StepStarted, StepFinished, ModelWaiting, TextDelta, and last the Answer.

    Raises:
        DocMindError: Nothing can be answered: the library is empty, the model is not there, …
    """
    question = question.strip()[:MAX_QUESTION_CHARACTERS]
    if not question:
        raise DocMindError("There is no question.", "Write one.", reason="no_question")
    run_id = runs.start_run(library, "answer", run_id)
    message_id = None if chat is None else chats.begin(library, chat, question, run_id)
    now = time.monotonic()
    work = _Work(library, question, run_id, chat, message_id, stop, now, kept_at=now)
    answer: Answer | None = None
    try:
        yield from _answer(work, profile, backend, model, collections, documents)
    except (GeneratorExit, KeyboardInterrupt):
        work.finished, work.reason = "stopped", "stopped"
        raise
    except DocMindError as error:
        work.finished, work.reason, work.error = ("cut" if work.shown else "failed"), error.reason, error
        log.error("answer %s: %s", run_id, error.reason)
        if not work.shown:
            raise
    finally:
        answer = _finish(work)
    if answer is not None:
        yield answer


def _answer(
    work: _Work,
    profile: str | None,
    backend: str | None,
    model: str | None,
    collections: Sequence[str],
    documents: Sequence[str],
) -> Iterator[AnswerEvent]:
    """Search, pack, one call of the model; how it went is in `work`."""
    library = work.library
    work.profile = chosen = _chosen(library.config, profile, backend, model)
    # The model is checked, and starts to load, before the embedder: its absence is an answer within a second.
    work.model = _find_model(library, chosen)
    if library.counts()["passages"] == 0:
        raise DocMindError(
            "There are no documents yet.", "Add some first: `docmind add FILE_OR_FOLDER`.", reason="library_empty"
        )
    llm: Any = find_backend(chosen.backend).build(library.config, work.model.name, _options(chosen))
    llm.start()
    yield from _search_step(work, collections, documents)
    work.refused = not work.hits or work.hits[0].score < LEAST_SCORE
    if work.refused:
        work.finished = "complete"
    else:
        yield from _load(work, llm)  # the reading speed decides how much evidence goes in
        if work.is_stopped:
            work.finished, work.reason = "stopped", "stopped"
            return
        work.packed = packed = _pack(library, llm, chosen, work.question, work.hits)
        # Read now: the text is checked against its hash, and a document removed meanwhile keeps its last proof.
        work.pages = {(e.document_id, e.page): library.page(e.document_id, e.page) for e in packed.evidence}
        yield from _write(work, llm, chosen, packed.evidence)
        work.finished, work.reason = _how_it_ended(work.receipt)
        work.refused = is_refusal(work.raw)
    if work.refused:
        yield from _show(work, NOT_IN_DOCUMENTS if not work.shown else "")


# The steps --------------------------------------------------------------------------------------------------------


def _search_step(work: _Work, collections: Sequence[str], documents: Sequence[str]) -> Iterator[AnswerEvent]:
    """Search, and say so."""
    from docmind.search import search

    question = work.question
    yield StepStarted("search_documents", question)
    started = time.monotonic()
    work.hits = search(work.library, question, HITS, collections=collections, documents=documents)
    seconds = round(time.monotonic() - started, 3)
    work.retrieval_seconds = seconds
    count, in_documents = len(work.hits), len({hit.document_id for hit in work.hits})
    work.steps.append(
        {"tool": "search_documents", "input": question, "hits": count, "documents": in_documents, "seconds": seconds}
    )
    yield StepFinished("search_documents", question, count, in_documents, seconds)


def _load(work: _Work, llm: Any) -> Iterator[AnswerEvent]:
    """Wait until the model is in memory; a stop ends the waiting and lets it load on."""
    failure: list[DocMindError] = []

    def load() -> None:
        try:
            llm.warm_up()
        except DocMindError as error:
            failure.append(error)

    if not llm.is_loaded:
        yield ModelWaiting("loading")
    loading = threading.Thread(target=load, name="docmind-load", daemon=True)
    loading.start()
    while loading.is_alive() and not work.is_stopped:
        loading.join(STOP_POLL_SECONDS)
    if failure:
        raise failure[0]


def _pack(library: Library, llm: Any, profile: Profile, question: str, hits: Sequence[Hit]) -> Packed:
    """The evidence that fits time and window."""
    instructions = llm.count_tokens(direct_messages(question, [], profile.system_prompt))
    return pack(
        library,
        hits,
        llm.count_tokens_many,
        window_tokens=llm.metadata.context_window,
        reserved_tokens=instructions + profile.max_output_tokens + 16,
        tokens_per_second=llm.prefill_tokens_per_second,
        target_seconds=library.config.first_token_target_seconds,
    )


def _write(work: _Work, llm: Any, profile: Profile, evidence: Sequence[Evidence]) -> Iterator[AnswerEvent]:
    """One call of the model, streamed."""
    arguments: dict[str, Any] = {"max_tokens": profile.max_output_tokens}
    for name in ("temperature", "top_p", "top_k"):
        if getattr(profile, name) is not None:
            arguments[name] = getattr(profile, name)
    if profile.stop:
        arguments["stop"] = list(profile.stop)
    messages = direct_messages(work.question, evidence, profile.system_prompt)
    stream = follow(lambda: llm.astream_chat(messages, **arguments), work.stop, llm.stop)
    is_enough = False
    try:
        for response in stream:
            work.receipt = receipt = dict(response.raw or {})
            phase = receipt.get("phase")
            if phase in ("waiting", "loading", "reading"):
                yield ModelWaiting(phase, receipt.get("ahead", 0), receipt.get("done", 0), receipt.get("total", 0))
            if response.delta and not is_enough:
                if work.first_token_seconds is None:
                    work.first_token_seconds = round(time.monotonic() - work.started, 3)
                work.raw += response.delta
                spans = split_sentences(work.raw) if profile.max_sentences else []
                if profile.max_sentences and len(spans) > profile.max_sentences:
                    # Stopped, not closed: its last message has the figures of the call.
                    is_enough = True
                    work.raw = work.raw[: spans[profile.max_sentences - 1][1]]
                    llm.stop()
                yield from _show(work, "")
    finally:
        stream.close()
    if is_enough:
        work.receipt["finish_reason"] = "stop"
    yield from _show(work, "", everything=True)


def _show(work: _Work, text: str, *, everything: bool = False) -> Iterator[TextDelta]:
    """What can be shown of the answer so far: a "[" that may become a mark is held back until it is decided."""
    work.raw += text
    raw = work.raw
    if not everything and not text:
        bracket = max(raw.rfind("["), raw.rfind("【"))
        if bracket >= 0 and len(raw) - bracket < 16:
            raw = raw[:bracket]
        raw = raw.rstrip()  # a space before a mark goes with it
    shown = strip_markers(raw)
    if len(shown) > len(work.shown) and shown.startswith(work.shown):
        delta = shown[len(work.shown) :]
        work.shown = shown
        yield TextDelta(delta)
    elif everything:
        work.shown = shown
    if work.message_id is not None and time.monotonic() - work.kept_at > KEEP_SECONDS:
        work.kept_at = time.monotonic()
        chats.keep_partial(work.library, work.message_id, work.shown)


def _how_it_ended(receipt: dict[str, Any]) -> tuple[Finished, str | None]:
    """Completeness is proven by the finish reason, never assumed from a stream that ends."""
    reason = receipt.get("finish_reason")
    if reason == "stop":
        return "complete", None
    if reason == "stopped":
        return "stopped", "stopped"
    return "cut", "cut_at_limit" if reason == "length" else "no_end_marker"


def _finish(work: _Work) -> Answer | None:
    """Prove the sentences, close the run, keep the messages. None when there is nothing to show for it."""
    library, profile, model, packed, receipt = work.library, work.profile, work.model, work.packed, work.receipt
    answer: Answer | None = None
    if profile is not None and model is not None and work.finished != "failed":
        sentences, cited = cite(work.raw, packed.evidence if packed else (), question=work.question)
        nearest = work.hits[:NEAREST] if work.refused or not cited else ()
        window = receipt.get("context_window", model.context_window)
        answer = Answer(
            text=strip_markers(work.raw),
            finished=work.finished,
            reason=work.reason,
            not_in_documents=work.refused,
            sentences=tuple(sentences),
            citations=tuple(_citation(citation, work.pages[citation.document_id, citation.page]) for citation in cited),
            steps=tuple(work.steps),
            nearest=tuple(_nearest(hit, work.question) for hit in nearest),
            backend=profile.backend,
            model=model.name,
            profile=profile.name,
            run_id=work.run_id,
            chat_id=work.chat,
            context={
                "window": model.context_window if packed is None else window,
                "sent_tokens": receipt.get("prompt_tokens"),
                "counted_tokens": receipt.get("prompt_tokens"),
                "parts": _parts(packed, receipt, profile) if packed else {},
                "left_out": [as_json(left) for left in packed.left_out] if packed else [],
            },
            timings=_timings(work),
        )
    # The receipt holds figures only: the words stay in the chat, where the person can delete them.
    runs.add_event(library, work.run_id, "receipt", {
        "finished": work.finished, "reason": work.reason, "backend": profile and profile.backend,
        "model": model and model.name, "profile": profile and profile.name, "timings": _timings(work),
        "citations": len(answer.citations) if answer else 0,
    })  # fmt: skip
    if work.message_id is not None:
        if answer is not None:
            chats.finish(library, work.message_id, answer, work.error)
        else:
            chats.fail(library, work.message_id, work.error)
    runs.finish_run(library, work.run_id, work.finished)
    log.info("answer %s %s %s", work.run_id, work.finished, json.dumps(_timings(work)))
    return answer


def _timings(work: _Work) -> dict[str, Any]:
    receipt = work.receipt
    return {
        "retrieval_s": work.retrieval_seconds,
        "first_token_s": work.first_token_seconds,
        "total_s": round(time.monotonic() - work.started, 3),
        "prompt_tokens": receipt.get("prompt_tokens"),
        "answer_tokens": receipt.get("answer_tokens"),
        "tokens_per_second": receipt.get("tokens_per_second"),
    }


def _parts(packed: Packed, receipt: Mapping[str, Any], profile: Profile) -> dict[str, int | None]:
    """What the window is used for, in tokens; `cached` of the prompt were read by an earlier call."""
    prompt = receipt.get("prompt_tokens")
    return {
        "instructions_and_question": None if prompt is None else prompt - packed.tokens,
        "evidence": packed.tokens,
        "evidence_budget": packed.budget_tokens,
        "answer_limit": profile.max_output_tokens,
        "cached": receipt.get("cached_tokens"),
    }


def _citation(citation: Citation, page: Page) -> dict[str, Any]:
    """A citation with the boxes its quote covers on the page."""
    fields = asdict(citation)
    quote = fields.pop("text")
    found = boxes_for(page.boxes, citation.start, citation.end) if page.boxes else []
    boxes = [[round(float(x), 2) for x in box] for box in found]
    return {**fields, "quote": quote, "boxes": boxes, "page_sha256": page.sha256}


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


# Choosing the model -----------------------------------------------------------------------------------------------


def _chosen(config: Config, profile: str | None, backend: str | None, model: str | None) -> Profile:
    """The named profile, with another backend or model in its place where one is named.

    A model named without a profile gets the settings any model gets: the starter's are made for a very small one.
    """
    found = find_profile(config, profile)
    if (backend or found.backend, model or found.model) == (found.backend, found.model):
        return found
    if backend is not None and backend != found.backend and model is None:
        raise ProfileError(
            f"Which model of {backend}?", "Name it with --model; `docmind backends` lists them.", reason="model_missing"
        )
    same = (backend or found.backend) == found.backend
    settings = found if profile is not None else Profile("", found.backend, found.model)
    return replace(
        settings, name="", backend=backend or found.backend, model=model or found.model,
        options=settings.options if same else {},
    )  # fmt: skip


def _find_model(library: Library, profile: Profile) -> ModelInfo:
    """The model the profile names, checked to be there without loading anything."""
    models = find_backend(profile.backend).models(library.config)
    for info in models:
        if info.name == profile.model:
            return info
    there = ", ".join(info.name for info in models) or "none"
    raise ModelNotFound(f"{profile.backend} has no model '{profile.model}'.", f"There are: {there}.")


def _options(profile: Profile) -> dict[str, Any]:
    options = dict(profile.options)
    if profile.context_window is not None:
        options["context_window"] = profile.context_window
    return options
