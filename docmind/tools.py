"""What an agent may do while it answers: search, read a page, list the documents. All of it only reads.

The program decides which documents are within reach; nothing a model writes widens that. What was asked before is not
done again. Every tool gives text for the model, and what it read is kept as numbered evidence for the proof.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from docmind.citations import Evidence
from docmind.context import MIN_EVIDENCE_TOKENS, LeftOut, Packed, evidence_text, pack
from docmind.events import StepFinished
from docmind.search import search

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from docmind.library import Document, Library, Page
    from docmind.search import Hit

HITS: Final = 12  # passages looked at for one search; what is not given to the model is listed
MAX_CALLS: Final = 8  # tools used for one answer, the first search included
LISTED_DOCUMENTS: Final = 50
NOTHING_NEW: Final = "Nothing new was found. Answer from the evidence above."
NO_ROOM: Final = "There is no room to read more. Answer from the evidence above."


@dataclass(slots=True)
class Reading:
    """What one answer may read, and what it has read so far.

    Attributes:
        collections, documents: Only documents in one of these; empty: all.
        count_tokens: The model's own count for each text.
        room_tokens: What of the window is left for evidence.
        tokens_per_second, target_seconds: How fast the model reads, and how long one step's evidence may take.
        stop: Setting it ends a search that waits for a server.
        first_number: Of the next piece of evidence.
        evidence: All that the model was given, numbered.
        pages: The pages it stands on, as they were then: a document removed meanwhile keeps its last proof.
        steps: As in the contract, with what each gave the model under "evidence".
        hits: Of all searches, without repetition, in the order they were found.
    """

    library: Library
    collections: Sequence[str] = ()
    documents: Sequence[str] = ()
    count_tokens: Callable[[list[str]], list[int]] = lambda texts: [len(text) // 4 for text in texts]
    room_tokens: int = 0
    tokens_per_second: float | None = None
    target_seconds: float = 3.0
    stop: threading.Event | None = None
    first_number: int = 1
    evidence: list[Evidence] = field(default_factory=list)
    pages: dict[tuple[str, int], Page] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    evidence_tokens: int = 0
    budget_tokens: int = 0


def find(reading: Reading, query: str) -> list[Hit]:
    """Search within reach; the step is recorded, nothing is given to the model yet."""
    started = time.monotonic()
    hits = search(
        reading.library, query, HITS, collections=reading.collections, documents=reading.documents, stop=reading.stop
    )
    known = {hit.passage_id for hit in reading.hits}
    reading.hits.extend(hit for hit in hits if hit.passage_id not in known)
    reading.steps.append(
        {
            "tool": "search_documents", "input": query, "hits": len(hits),
            "documents": len({hit.document_id for hit in hits}),
            "seconds": round(time.monotonic() - started, 3), "evidence": [],
        }
    )  # fmt: skip
    return hits


def give(reading: Reading, hits: Sequence[Hit]) -> Packed:
    """Put what was found into the model's hands, as far as time and window allow, under the last step."""
    new = [hit for hit in hits if not _is_known(reading, hit.document_id, hit.page, hit.start, hit.end)]
    packed = pack(
        reading.library,
        new,
        reading.count_tokens,
        window_tokens=reading.room_tokens,
        reserved_tokens=0,
        tokens_per_second=reading.tokens_per_second,
        target_seconds=reading.target_seconds,
    )
    numbered = tuple(
        replace(piece, number=number) for number, piece in enumerate(packed.evidence, start=reading.first_number)
    )
    packed = replace(packed, evidence=numbered)
    _keep(reading, packed.evidence, packed.tokens)
    reading.left_out.extend(packed.left_out)
    reading.budget_tokens = max(reading.budget_tokens, packed.budget_tokens)
    return packed


def step_finished(step: Mapping[str, Any]) -> StepFinished:
    """The event for a step as it is recorded."""
    return StepFinished(step["tool"], step["input"], step["hits"], step["documents"], step["seconds"])


# The tools --------------------------------------------------------------------------------------------------------


def search_documents(reading: Reading, query: str) -> str:
    """Passages about other words than those searched for so far."""
    hits = find(reading, query)
    packed = give(reading, hits)
    if packed.evidence:
        return "\n".join(evidence_text(piece) for piece in reversed(packed.evidence))
    return NO_ROOM if packed.left_out else NOTHING_NEW


def read_page(reading: Reading, document: str, page: int) -> str:
    """A page of a document, from its top as far as there is room."""
    started = time.monotonic()
    found = _document_meant(reading, document)
    step = {
        "tool": "read_page", "input": f"{document}, page {page}", "hits": 0, "documents": 0, "seconds": 0.0,
        "evidence": [],
    }  # fmt: skip
    reading.steps.append(step)
    if found is None:
        text = f"There is no document '{document}'. Use list_documents to see the names."
    else:
        passages = reading.library.passages_of_page(found.document_id, page)
        if not passages:
            text = f"'{found.name}' has no text on page {page}; it has {found.pages} pages."
        else:
            speed = reading.tokens_per_second or 0.0
            room = min(reading.room_tokens, max(round(speed * reading.target_seconds), MIN_EVIDENCE_TOKENS))
            end, used = passages[0].start, 0
            for passage, size in zip(passages, reading.count_tokens([p.text for p in passages]), strict=True):
                if used + size > room:
                    break
                end, used = passage.end, used + size
            step |= {"hits": 1, "documents": 1}
            stored = reading.library.page(found.document_id, page)
            start = passages[0].start
            if end <= start:
                text = NO_ROOM
            elif _is_known(reading, found.document_id, page, start, end):
                text = NOTHING_NEW
            else:
                piece = Evidence(
                    reading.first_number, found.document_id, found.name, page, start, end, stored.text[start:end]
                )
                _keep(reading, [piece], used)
                text = evidence_text(piece)
    step["seconds"] = round(time.monotonic() - started, 3)
    return text


def list_documents(reading: Reading) -> str:
    """Names and pages of the documents within reach."""
    started = time.monotonic()
    within = within_reach(reading.library, reading.collections, reading.documents)
    lines = [f"{document.name} ({document.pages} pages)" for document in within[:LISTED_DOCUMENTS]]
    if len(within) > LISTED_DOCUMENTS:
        lines.append(f"and {len(within) - LISTED_DOCUMENTS:,} more: search for what you need")
    reading.steps.append(
        {
            "tool": "list_documents", "input": "", "hits": 0, "documents": len(within),
            "seconds": round(time.monotonic() - started, 3), "evidence": [],
        }
    )  # fmt: skip
    return "\n".join(lines)


def _keep(reading: Reading, pieces: Sequence[Evidence], tokens: int) -> None:
    """Remember what the model was given, and the page it stands on, checked against its hash."""
    for piece in pieces:
        key = (piece.document_id, piece.page)
        page = reading.pages.get(key) or reading.library.page(*key)
        reading.pages[key] = page
        reading.evidence.append(piece)
        reading.steps[-1]["evidence"].append(
            [piece.number, piece.document_id, piece.page, piece.start, piece.end, page.sha256]
        )
    reading.first_number += len(pieces)
    reading.room_tokens = max(reading.room_tokens - tokens, 0)
    reading.evidence_tokens += tokens


def _is_known(reading: Reading, document_id: str, page: int, start: int, end: int) -> bool:
    """Whether the model was given this part of a page already."""
    return any(
        (piece.document_id, piece.page) == (document_id, page) and piece.start <= start and end <= piece.end
        for piece in reading.evidence
    )


def within_reach(library: Library, collections: Sequence[str], documents: Sequence[str]) -> list[Document]:
    """The documents a search sees: those in both filters.

    Raises:
        DocumentNotFound: One of `documents` is not there.
    """
    ids = {library.document(key).document_id for key in documents}
    return [
        document
        for document in library.documents()
        if (not collections or set(document.collections) & set(collections))
        and (not ids or document.document_id in ids)
    ]


def _document_meant(reading: Reading, name: str) -> Document | None:
    """The document within reach that a model means: its name, or a part of it that fits one only."""
    wanted = name.strip().lower()
    within = within_reach(reading.library, reading.collections, reading.documents)
    exact = [d for d in within if wanted in (d.name.lower(), d.document_id.lower())]
    close = exact or [d for d in within if wanted and (wanted in d.name.lower() or wanted == d.title.lower())]
    return close[0] if len(close) == 1 or exact else None
