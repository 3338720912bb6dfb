"""Pages per second of `docmind add` against LlamaIndex's default pipeline, on the same PDFs, in turn, in one process.

    python benchmarks/ingest.py [PDF …]      (default: three files of ../shared/data/qa/pdf)

Both read PDF files, cut, and embed with the same MiniLM object. What differs is what is measured:
- DocMind: pypdfium2 with word boxes in a limited process, passages of 254 tokens, everything committed to the library.
- default: pypdf, SentenceSplitter() (1,024 tokens, 200 overlap), embedded; of each chunk MiniLM reads the first 256
  tokens only, so three quarters of the text are in no vector. Nothing is stored.
- whole text: the same with SentenceSplitter(256, 20), so that, as in DocMind, all of the text is in a vector.
Model loading is outside the time.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import machine
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from pypdf import PdfReader

from docmind import embed
from docmind.library import open_library

DEFAULT = ("PEPSICO_2023Q1_EARNINGS.pdf", "BESTBUY_2024Q2_10Q.pdf", "ULTABEAUTY_2023Q4_EARNINGS.pdf", "xquad_00.pdf")
ROUNDS = 3


def docmind_pages(files: list[Path]) -> float:
    """Pages per second of DocMind, into a new library."""
    with tempfile.TemporaryDirectory() as home:
        library = open_library(home)
        started = time.perf_counter()
        pages = sum(result.pages or 0 for file in files for result in library.add(file))
        return pages / (time.perf_counter() - started)


def llama_index_pages(files: list[Path], splitter: SentenceSplitter) -> float:
    """Pages per second of a LlamaIndex pipeline."""
    started = time.perf_counter()
    pages = [
        Document(text=page.extract_text(), metadata={"file_name": file.name, "page_label": number})
        for file in files
        for number, page in enumerate(PdfReader(file).pages, start=1)
    ]
    IngestionPipeline(transformations=[splitter, embed.load_embedding()]).run(documents=pages)
    return len(pages) / (time.perf_counter() - started)


def main() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data" / "qa" / "pdf"
    files = [Path(name) for name in sys.argv[1:]] or [folder / name for name in DEFAULT]
    embed.embed_query("load the model outside the time")
    rows = []
    for _ in range(ROUNDS):
        rows.append(
            (
                docmind_pages(files),
                llama_index_pages(files, SentenceSplitter()),
                llama_index_pages(files, SentenceSplitter(chunk_size=256, chunk_overlap=20)),
            )
        )
        print("pages/s:", ", ".join(f"{value:.2f}" for value in rows[-1]), file=sys.stderr)
    ours, default, whole = (statistics.median(column) for column in zip(*rows, strict=True))
    machine.write(
        "ingest",
        {
            "files": [file.name for file in files],
            "docmind_pages_per_second": round(ours, 2),
            "llama_index_default_pages_per_second": round(default, 2),
            "llama_index_whole_text_pages_per_second": round(whole, 2),
            "docmind_to_default": round(statistics.median(a / b for a, b, _ in rows), 2),
            "docmind_to_whole_text": round(statistics.median(a / c for a, _, c in rows), 2),
            "rounds": ROUNDS,
        },
    )


if __name__ == "__main__":
    main()
