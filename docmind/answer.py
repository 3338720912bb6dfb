"""A question → an answer one can check: search, pack, one call of the model, proof. Knows no Streamlit.

`ask` is a generator of what happens; the last event is the `Answer`. This is the direct way, for models that cannot
drive an agent: the search is made by the program, and the model is called once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from docmind import chats, runs
from docmind.backends import backend as find_backend
from docmind.citations import Citation, Sentence, cite, is_refusal, split_sentences, strip_markers
from docmind.context import as_json, pack
from docmind.errors import BackendError, DocMindError, ModelNotFound, ProfileError
from docmind.parse.boxes import boxes_for
from docmind.profiles import Profile, find_profile
from docmind.prompts import NOT_IN_DOCUMENTS, direct_messages

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from docmind.backends import ModelInfo
    from docmind.citations import Evidence
    from docmind.context import Packed
    from docmind.library import Library, Page
    from docmind.search import Hit

log = logging.getLogger(__name__)

Finished = Literal["complete", "stopped", "cut", "failed"]
HITS = 12  # passages looked at for one answer; what is not given to the model is listed
# Below this score of the best passage the documents do not answer, and no model is asked to. Of 297 questions whose
# answer was in the library none scored below it; of 245 whose document was left out 131 did (docs/decisions.md).
LEAST_SCORE = 0.5
NEAREST = 3  # passages shown when the documents do not answer
MAX_QUESTION_CHARACTERS = 4_000


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
class _Progress:
    """What an answer has come to so far; kept when it is stopped or cut."""

    raw: str = ""
    shown: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    receipt: dict[str, Any] = field(default_factory=dict)  # the last message of the model
    retrieval_seconds: float | None = None
    first_token_seconds: float | None = None


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
) -> Iterator[AnswerEvent]:
    """Answer a question from the documents in the library.

    Args:
        profile: Its name; None: the starter. `backend` and `model` take the place of what it names.
        chat: Id of a chat that keeps question and answer; made when it is new. None: neither is kept.
        stop: Setting it ends the answer within about a second; what was written so far is kept.

    Yields:
        StepStarted, StepFinished, ModelWaiting, TextDelta, and last the Answer.

    Raises:
        DocMindError: Nothing can be answered: the library is empty, the model is not there, …
    """
    question = question.strip()[:MAX_QUESTION_CHARACTERS]
    if not question:
        raise DocMindError("There is no question.", "Write one.", reason="no_question")
    started = time.monotonic()
    chosen = _with_overrides(find_profile(library.config, profile), backend, model)
    # The model is checked, and starts to load, before the embedder: its absence is an answer within a second.
    info = _find_model(library, chosen)
    if library.counts()["passages"] == 0:
        raise DocMindError(
            "There are no documents yet.", "Add some first: `docmind add FILE_OR_FOLDER`.", reason="library_empty"
        )
    llm: Any = find_backend(chosen.backend).build(library.config, info.name, _options(chosen))
    llm.start()

    run_id = runs.start_run(library, "answer")
    progress = _Progress()
    hits: list[Hit] = []
    packed: Packed | None = None
    pages: dict[tuple[str, int], Page] = {}
    finished: Finished = "failed"
    reason: str | None = None
    refused = False
    try:
        hits = yield from _search_step(library, question, collections, documents, progress)
        refused = not hits or hits[0].score < LEAST_SCORE
        if refused or (stop is not None and stop.is_set()):
            finished, reason = ("complete", None) if refused else ("stopped", "stopped")
        else:
            llm.warm_up()  # the reading speed decides how much evidence goes in
            packed = _pack(library, llm, chosen, question, hits)
            # Read now: the text is checked against its hash, and a document removed meanwhile keeps its last proof.
            pages = {(e.document_id, e.page): library.page(e.document_id, e.page) for e in packed.evidence}
            with _stops(llm, stop):
                yield from _write(llm, chosen, question, packed.evidence, progress, started)
            finished, reason = _how_it_ended(progress.receipt)
            refused = is_refusal(progress.raw)
        if refused:
            yield from _show(progress, NOT_IN_DOCUMENTS if not progress.shown else "")
    except (GeneratorExit, KeyboardInterrupt):
        finished, reason = "stopped", "stopped"
        raise
    except BackendError as error:
        finished, reason = ("cut" if progress.shown else "failed"), error.reason
        log.error("answer %s: %s", run_id, error.reason)
        if not progress.shown:
            raise
    finally:
        answer = _finish(
            library, question, chosen, info, run_id, chat, hits, packed, pages, progress, finished, reason, refused,
            started,
        )  # fmt: skip
    yield answer


# The steps --------------------------------------------------------------------------------------------------------


def _search_step(
    library: Library, question: str, collections: Sequence[str], documents: Sequence[str], progress: _Progress
) -> Generator[AnswerEvent, None, list[Hit]]:
    """Search, and say so. Returns the hits."""
    from docmind.search import search

    yield StepStarted("search_documents", question)
    started = time.monotonic()
    hits = search(library, question, HITS, collections=collections, documents=documents)
    seconds = round(time.monotonic() - started, 3)
    progress.retrieval_seconds = seconds
    progress.steps.append({"tool": "search_documents", "input": question, "hits": len(hits), "seconds": seconds})
    yield StepFinished("search_documents", question, len(hits), len({hit.document_id for hit in hits}), seconds)
    return hits


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


def _write(
    llm: Any, profile: Profile, question: str, evidence: Sequence[Evidence], progress: _Progress, started: float
) -> Iterator[AnswerEvent]:
    """One call of the model, streamed."""
    arguments: dict[str, Any] = {"max_tokens": profile.max_output_tokens}
    for name in ("temperature", "top_p", "top_k"):
        if getattr(profile, name) is not None:
            arguments[name] = getattr(profile, name)
    if profile.stop:
        arguments["stop"] = list(profile.stop)
    stream = llm.stream_chat(direct_messages(question, evidence, profile.system_prompt), **arguments)
    is_enough = False
    try:
        for response in stream:
            progress.receipt = dict(response.raw or {})
            phase = progress.receipt.get("phase")
            if phase in ("waiting", "loading", "reading"):
                receipt = progress.receipt
                yield ModelWaiting(phase, receipt.get("ahead", 0), receipt.get("done", 0), receipt.get("total", 0))
            if response.delta and not is_enough:
                if progress.first_token_seconds is None:
                    progress.first_token_seconds = round(time.monotonic() - started, 3)
                progress.raw += response.delta
                spans = split_sentences(progress.raw)
                if profile.max_sentences and len(spans) > profile.max_sentences:
                    # Stopped, not closed: its last message has the figures of the call.
                    is_enough = True
                    progress.raw = progress.raw[: spans[profile.max_sentences - 1][1]]
                    llm.stop()
                yield from _show(progress, "")
    finally:
        stream.close()
    if is_enough:
        progress.receipt["finish_reason"] = "stop"
    yield from _show(progress, "", everything=True)


def _show(progress: _Progress, text: str, *, everything: bool = False) -> Iterator[TextDelta]:
    """What can be shown of the answer so far: a "[" that may become a mark is held back until it is decided."""
    progress.raw += text
    raw = progress.raw
    if not everything and not text:
        bracket = max(raw.rfind("["), raw.rfind("【"))
        if bracket >= 0 and len(raw) - bracket < 16:
            raw = raw[:bracket]
        raw = raw.rstrip()  # a space before a mark goes with it
    shown = strip_markers(raw)
    if len(shown) > len(progress.shown) and shown.startswith(progress.shown):
        delta = shown[len(progress.shown) :]
        progress.shown = shown
        yield TextDelta(delta)
    elif everything:
        progress.shown = shown


def _how_it_ended(receipt: dict[str, Any]) -> tuple[Finished, str | None]:
    """Completeness is proven by the finish reason, never assumed from a stream that ends."""
    reason = receipt.get("finish_reason")
    if reason == "stop":
        return "complete", None
    if reason == "stopped":
        return "stopped", "stopped"
    return "cut", "cut_at_limit" if reason == "length" else "no_end_marker"


def _finish(
    library: Library, question: str, profile: Profile, info: ModelInfo, run_id: str, chat: str | None,
    hits: Sequence[Hit], packed: Packed | None, pages: Mapping[tuple[str, int], Page], progress: _Progress,
    finished: Finished, reason: str | None, refused: bool, started: float,
) -> Answer:  # fmt: skip
    """Prove the sentences, close the run, keep the messages."""
    evidence = packed.evidence if packed else ()
    sentences, cited = cite(progress.raw, evidence, question=question)
    receipt = progress.receipt
    answer = Answer(
        text=strip_markers(progress.raw),
        finished=finished,
        reason=reason,
        not_in_documents=refused,
        sentences=tuple(sentences),
        citations=tuple(_citation(citation, pages[citation.document_id, citation.page]) for citation in cited),
        steps=tuple(progress.steps),
        nearest=tuple(_nearest(hit, question) for hit in hits[:NEAREST]) if refused or not cited else (),
        backend=profile.backend,
        model=info.name,
        profile=profile.name,
        run_id=run_id,
        chat_id=chat,
        context={
            "window": info.context_window if packed is None else receipt.get("context_window", info.context_window),
            "sent_tokens": receipt.get("prompt_tokens"),
            "counted_tokens": receipt.get("prompt_tokens"),
            "parts": _parts(packed, receipt, profile) if packed else {},
            "left_out": [as_json(left) for left in packed.left_out] if packed else [],
        },
        timings={
            "retrieval_s": progress.retrieval_seconds,
            "first_token_s": progress.first_token_seconds,
            "total_s": round(time.monotonic() - started, 3),
            "prompt_tokens": receipt.get("prompt_tokens"),
            "answer_tokens": receipt.get("answer_tokens"),
            "tokens_per_second": receipt.get("tokens_per_second"),
        },
    )
    # The receipt holds figures only: the words stay in the chat, where the person can delete them.
    runs.add_event(library, run_id, "receipt", {
        "finished": finished, "reason": reason, "backend": profile.backend, "model": info.name,
        "profile": profile.name, "timings": answer.timings, "citations": len(cited),
    })  # fmt: skip
    runs.finish_run(library, run_id, finished)
    if chat is not None and finished != "failed":
        chats.keep(library, chat, question, answer)
    log.info("answer %s %s %s", run_id, finished, json.dumps(answer.timings))
    return answer


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


def _with_overrides(profile: Profile, backend: str | None, model: str | None) -> Profile:
    """The profile with another backend or model in its place."""
    from dataclasses import replace

    if backend is None and model is None:
        return profile
    if backend is not None and backend != profile.backend and model is None:
        raise ProfileError(
            f"Which model of {backend}?", "Name it with --model; `docmind backends` lists them.", reason="model_missing"
        )
    same = (backend or profile.backend) == profile.backend
    return replace(
        profile, name="", backend=backend or profile.backend, model=model or profile.model,
        options=profile.options if same else {},
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


@contextmanager
def _stops(llm: Any, stop: threading.Event | None) -> Iterator[None]:
    """Stop the model when the event is set, also while it says nothing."""
    if stop is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            if stop.is_set():
                llm.stop()
                return

    watcher = threading.Thread(target=watch, name="docmind-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
