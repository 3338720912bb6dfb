"""A question → passages, best first. Knows no chat model.

Two searches see different things: vectors find the same meaning in other words, full text finds the very words. Their
rankings are fused by reciprocal rank, and the first thirty are scored anew, word by word, with the token embeddings of
the same small model (late interaction). docs/decisions.md has what each step gained.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from docmind import embed, store, vectors
from docmind.passages import embedded_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from docmind.library import Library, Passage, VectorIndex

RRF_K = 60  # Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR 2009): the constant of the paper
# The score of a passage; all four were measured together (docs/decisions.md).
STOP_WORD_WEIGHT = 0.4  # of "what", "the", "?" in MaxSim against 1: they meet their like in any passage
MARKER_WEIGHT = 1.5  # of the model's two marker tokens, which stand for the whole question
COSINE_WEIGHT = 0.25  # of the whole passage beside MaxSim
BM25_WEIGHT = 3.6  # over RRF_K + rank among the full-text matches: at most .06
TITLE_WEIGHT = 1.0  # BM25 weight of the title column against 1 for the text
MAX_MATCHED_ROWS = 20_000  # rows BM25 may score: it costs 287 ms for the commonest words of 200,000 passages without
MAX_QUERY_WORDS = 32  # a pasted page is no question
MAX_QUERY_CHARACTERS = 4_000
CACHED_TOKEN_BYTES = 192 << 20  # token embeddings kept in memory, about 1,000 passages

# English words that find everything. Question words are among them: the answer rarely repeats them.
STOP_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers him
    his how i if in into is it its itself just let me more most my no nor not of off on once only or other our ours out
    over own same she should so some such than that the their theirs them then there these they this those through to
    too under until up very was we were what when where which while who whom whose why will with would you your
    yours""".split()
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found. `start` and `end` are code points of the stored page text.

    Attributes:
        score: About 0 to 1.2 for those scored word by word; what follows them continues below in the fused order.
    """

    rank: int
    passage_id: int
    document_id: str
    document: str
    title: str
    page: int
    start: int
    end: int
    text: str
    score: float


def search(
    library: Library,
    query: str,
    k: int = 5,
    *,
    collections: Sequence[str] = (),
    documents: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> list[Hit]:
    """The passages that answer a question, best first.

    Args:
        collections: Only documents in one of these; empty: all.
        documents: Only these documents (id, name or path); empty: all.
        stop: Setting it ends the waiting for a server that makes the question's vector.

    Raises:
        EmbeddingChanged: The library was indexed with another model.
        EmbeddingFailed: A server that was chosen for it makes no vector. The full text alone would find less, and
            nobody would see it.
        DocumentNotFound: One of `documents` or `collections` is not there.
    """
    # A lone surrogate (from a broken file name, say) is no text to SQLite or the tokenizer.
    query = query.strip()[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    allowed = _allowed_documents(library, collections, documents)
    index = library.vector_index()
    if not query or not len(index.passage_ids) or (allowed is not None and not allowed):
        return []
    config = library.config
    choice = vectors.chosen(config)
    identity, vector = vectors.embed_question(config, choice, query, stop)
    library.check_embedding(identity)
    dense = dense_search(index, vector, config.dense_candidates, allowed)
    words = bm25_search(library, query, config.bm25_candidates, allowed)
    fused = fuse([dense, words])
    best = fused[: max(config.rerank_candidates, 1)]
    reranked = rerank(library, query, best, index, vector if choice is None else None, words)
    ranked = reranked[:k]
    if k > len(reranked):
        # Below every reranked passage, and falling: the fused order says no more than that.
        lowest = reranked[-1][1] if reranked else 0.0
        rest = library.passages(fused[len(reranked) : k])
        ranked = [*reranked, *((p, lowest * len(reranked) / (len(reranked) + n)) for n, p in enumerate(rest, start=1))]
    return [
        Hit(
            rank, p.passage_id, p.document_id, p.document, p.title, p.page, p.start, p.end, p.text, round(score, 6)
        )
        for rank, (p, score) in enumerate(ranked, start=1)
    ]


def dense_search(index: VectorIndex, query: np.ndarray, count: int, allowed: frozenset[int] | None = None) -> list[int]:
    """Passage ids of the `count` vectors nearest to `query` by an exact scan, best first.

    Args:
        query: (dimension,) float32, unit length.
        allowed: Document rowids; None: all.
    """
    scores = index.vectors @ query
    if allowed is not None:
        scores[~np.isin(index.documents, np.fromiter(allowed, np.int64))] = -np.inf
    count = min(count, int(np.isfinite(scores).sum()))
    if count == 0:
        return []
    best = np.argpartition(-scores, count - 1)[:count]
    best = best[np.lexsort((best, -scores[best]))]
    return [int(i) for i in index.passage_ids[best]]


def query_words(query: str) -> list[str]:
    """The words of a question that can tell one passage from another, in order, each once."""
    words = re.findall(r"[^\W_]+", query.lower())
    telling = [word for word in dict.fromkeys(words) if word not in STOP_WORDS]
    return (telling or list(dict.fromkeys(words)))[:MAX_QUERY_WORDS]


def bm25_search(library: Library, query: str, count: int, allowed: frozenset[int] | None = None) -> list[int]:
    """Passage ids of the `count` best full-text matches, best first.

    The rarest words are matched first, and common ones only while the rows to score stay under `MAX_MATCHED_ROWS`.
    """
    words = query_words(query)
    if not words:
        return []
    with store.reading(library.path) as db:
        by_rarity = sorted((_matched_rows(db, word), word) for word in words)
        chosen: list[str] = []
        matched = 0
        for rows, word in by_rarity:
            if rows and (not chosen or matched + rows <= MAX_MATCHED_ROWS):
                chosen.append(word)
                matched += rows
        if not chosen:
            return []
        where = ""
        if allowed is not None:
            inside = ",".join(str(rowid) for rowid in sorted(allowed))
            where = (
                " AND rowid IN (SELECT p.id FROM passages p JOIN documents d ON d.id = p.document_id"
                f" WHERE d.rowid IN ({inside}))"
            )
        best = db.execute(
            f"SELECT rowid FROM passages_fts WHERE passages_fts MATCH ?{where}"
            f" ORDER BY bm25(passages_fts, {TITLE_WEIGHT}, 1.0), rowid LIMIT ?",
            (" OR ".join(_quoted(word) for word in chosen), count),
        )
        return [row[0] for row in best]


def fuse(rankings: Iterable[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion: the sum over rankings of 1 / (RRF_K + rank), best first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, passage_id in enumerate(ranking, start=1):
            scores[passage_id] = scores.get(passage_id, 0.0) + 1.0 / (RRF_K + rank)
    return sorted(scores, key=lambda passage_id: (-scores[passage_id], passage_id))


def rerank(
    library: Library,
    query: str,
    passage_ids: Sequence[int],
    index: VectorIndex,
    vector: np.ndarray | None,
    full_text: Sequence[int] = (),
) -> list[tuple[Passage, float]]:
    """Passages with their scores, best first; equal scores keep their order.

    Args:
        vector: The question's, of the same model as those of the index. None: they are another model's than the one
            that scores, and their cosines mean something else; it then takes its own.

    The score is MaxSim, the mean over the question's tokens of the best cosine with any token of the passage, with
    stop words counting less, and something for the cosine of the whole passage and for its place among the full-text
    matches (`full_text`: their ids, best first).
    Source: Khattab and Zaharia, "ColBERT" (SIGIR 2020), here with the token embeddings of a sentence model.
    """
    passages = library.passages(passage_ids)
    if not passages:
        return []
    question, asked = _whole_and_tokens(embed.embed_tokens([query])[0])
    weights = _token_weights(query, len(asked))
    texts = [_whole_and_tokens(rows) for rows in _passage_tokens(passages)]
    if vector is None:
        cosines = np.asarray([whole @ question for whole, _ in texts])
    else:
        rows = np.searchsorted(index.passage_ids, [passage.passage_id for passage in passages])
        cosines = index.vectors[np.minimum(rows, len(index.passage_ids) - 1)] @ vector
    places = {passage_id: BM25_WEIGHT / (RRF_K + rank) for rank, passage_id in enumerate(full_text, start=1)}
    scored = []
    for passage, (_, tokens), cosine in zip(passages, texts, cosines, strict=True):
        max_sim = float((asked @ tokens.T).max(axis=1) @ weights)
        score = max_sim + COSINE_WEIGHT * float(cosine) + places.get(passage.passage_id, 0.0)
        scored.append((passage, score))
    return sorted(scored, key=lambda pair: -pair[1])


def _whole_and_tokens(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `embed_tokens` gives for a text: its vector as a whole, and those of its tokens."""
    return rows[0], rows[1:]


def _token_weights(query: str, count: int) -> np.ndarray:
    """What each of the question's `count` tokens counts in MaxSim, (count,) float32, adding up to 1.

    The first and the last are the model's markers; a question that was too long for the model is cut between them.
    """
    tokens = embed.load_tokenizer().encode(query, add_special_tokens=False).tokens[: count - 2]
    is_weak = [token in STOP_WORDS or not (token[0].isalnum() or token.startswith("##")) for token in tokens]
    weights = np.ones(count, dtype=np.float32)
    weights[1 : 1 + len(tokens)][is_weak] = STOP_WORD_WEIGHT
    weights[[0, -1]] = MARKER_WEIGHT
    return np.asarray(weights / weights.sum(), dtype=np.float32)


_cache: OrderedDict[str, np.ndarray] = OrderedDict()  # by the text that was embedded
_cache_lock = threading.Lock()


def _passage_tokens(passages: Sequence[Passage]) -> list[np.ndarray]:
    """Token embeddings of passages as `embed_tokens` gives them; those computed last are kept in memory."""
    texts = [embedded_text(p.title, p.text) for p in passages]
    with _cache_lock:
        found = {text: _cache[text] for text in texts if text in _cache}
    missing = [text for text in dict.fromkeys(texts) if text not in found]
    if missing:
        computed = embed.embed_tokens(missing)
        found.update((text, tokens.astype(np.float16)) for text, tokens in zip(missing, computed, strict=True))
    with _cache_lock:
        for text in texts:
            _cache[text] = found[text]
            _cache.move_to_end(text)
        size = sum(tokens.nbytes for tokens in _cache.values())
        while size > CACHED_TOKEN_BYTES:
            size -= _cache.popitem(last=False)[1].nbytes
    return [found[text].astype(np.float32) for text in texts]


def _allowed_documents(library: Library, collections: Sequence[str], documents: Sequence[str]) -> frozenset[int] | None:
    """Rowids of the documents a search may see; None when it may see all."""
    if not collections and not documents:
        return None
    ids = [library.document(key).document_id for key in documents]
    for name in collections:
        library.check_collection(name)
    with store.reading(library.path) as db:
        marks = ",".join("?" * len(collections))
        id_marks = ",".join("?" * len(ids))
        conditions = []
        if collections:
            conditions.append(f"id IN (SELECT document_id FROM collections WHERE name IN ({marks}))")
        if documents:
            conditions.append(f"id IN ({id_marks})")
        rows = db.execute(f"SELECT rowid FROM documents WHERE {' AND '.join(conditions)}", (*collections, *ids))
        return frozenset(row[0] for row in rows)


def _matched_rows(db: sqlite3.Connection, word: str) -> int:
    """How many passages hold a word, counted no further than the cap needs."""
    row = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM passages_fts WHERE passages_fts MATCH ? LIMIT ?)",
        (_quoted(word), MAX_MATCHED_ROWS + 1),
    ).fetchone()
    return int(row[0])


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'
