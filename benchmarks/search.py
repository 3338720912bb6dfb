"""Search time at 10,000 and 100,000 passages: p50 and p95, whole and by step.

    python benchmarks/search.py [PASSAGES …]

The library is synthetic: texts are drawn word by word from the XQuAD articles (so word frequencies are those of real
prose) and vectors are random. That changes what is found, not what it costs. "cold" is the first search after opening
the library (the vector file is derived); "rerank" is MaxSim over 30 passages that are not in the cache, which is a
forward pass of the embedding model and hardly depends on the size of the library.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np

from docmind import embed
from docmind import search as steps
from docmind.library import NewPassage, open_library
from docmind.parse import DocumentInfo, ParsedPage

QUESTIONS = 20
PAGES_PER_DOCUMENT = 100
PASSAGES_PER_PAGE = 4
WORDS_PER_PASSAGE = 170  # about 230 tokens


def fill(library, words, passages, random_source) -> None:
    """Insert documents until there are so many passages."""
    identity = embed.identity()
    vectors = np.random.default_rng(0)
    for number in range(passages // (PAGES_PER_DOCUMENT * PASSAGES_PER_PAGE)):
        pages, pieces = [], []
        for page in range(1, PAGES_PER_DOCUMENT + 1):
            text = ""
            for _ in range(PASSAGES_PER_PAGE):
                start = len(text)
                text += " ".join(random_source.choices(words, k=WORDS_PER_PASSAGE)) + "\n"
                vector = vectors.standard_normal(identity.dimension).astype(np.float32)
                pieces.append(NewPassage(page, start, len(text), text[start:], vector / np.linalg.norm(vector)))
            pages.append(ParsedPage(page, text, "text"))
        library.insert_document(
            DocumentInfo("text", len(pages), ""), pages, pieces, path=Path(f"/synthetic/{number}.txt"),
            sha256=f"{number:064x}"[::-1], title=f"document {number}", size_bytes=1, state="ready", reason=None,
            hint="", collections=[], identity=identity,
        )  # fmt: skip


def timed(function, *arguments):
    """Result and milliseconds of one call."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - started) * 1000


def measure(passages, words, questions) -> dict:
    """One size."""
    with tempfile.TemporaryDirectory() as home:
        library = open_library(home)
        fill(library, words, passages, random.Random(0))
        _, derive = timed(library.vector_index)
        library = open_library(home)
        _, cold = timed(library.search, questions[0])
        columns: dict[str, list[float]] = {name: [] for name in ("embed", "dense", "bm25", "rerank", "again", "whole")}
        for question in questions[1:]:
            steps._cache.clear()
            _, whole = timed(library.search, question)
            _, again = timed(library.search, question)
            steps._cache.clear()
            vector, embed_ms = timed(embed.embed_query, question)
            dense, dense_ms = timed(steps.dense_search, library.vector_index(), vector, 100)
            bm25, bm25_ms = timed(steps.bm25_search, library, question, 100)
            _, rerank = timed(
                steps.rerank, library, question, steps.fuse([dense, bm25])[:30], library.vector_index(), vector
            )
            for name, value in zip(columns, (embed_ms, dense_ms, bm25_ms, rerank, again, whole), strict=True):
                columns[name].append(value)
        return {
            "passages": library.counts()["passages"],
            "derive_vector_file_ms": round(derive),
            "cold_ms": round(cold),
            **{
                f"{name}_ms": {
                    "p50": round(statistics.median(values), 1),
                    "p95": round(sorted(values)[int(0.95 * len(values))], 1),
                }
                for name, values in columns.items()
            },
        }


def main() -> None:
    source = Path(__file__).parents[2] / "shared" / "data" / "qa" / "xquad.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    words = [word for row in rows for text in row["evidence"] for word in text.split()]
    questions = [row["question"] for row in rows][:: len(rows) // QUESTIONS][:QUESTIONS]
    embed.embed_query("load the model outside the time")
    sizes = [int(size) for size in sys.argv[1:]] or [10_000, 100_000]
    machine.write("search", {"questions": QUESTIONS - 1, "sizes": [measure(size, words, questions) for size in sizes]})


if __name__ == "__main__":
    main()
