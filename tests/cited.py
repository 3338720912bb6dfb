"""A file read into a library as ingestion does, but without a model, and citations of it as answers carry them."""

from __future__ import annotations

import hashlib

import numpy as np

from docmind.embed import EmbeddingIdentity
from docmind.library import NewPassage
from docmind.parse import DocumentInfo, ParsedPage, Parser
from docmind.parse.boxes import boxes_for

MADE_UP = EmbeddingIdentity("made-up", 8, np.eye(8, dtype=np.float32)[0])


def put(library, path):
    """Reads a file into the library; gives the document's id."""
    with Parser(library.config) as parser:
        events = list(parser.parse(path))
    info = next(event for event in events if isinstance(event, DocumentInfo))
    pages = [event for event in events if isinstance(event, ParsedPage)]
    content = path.read_bytes()
    document_id, _ = library.insert_document(
        info,
        pages,
        [NewPassage(page.number, 0, len(page.text), page.text, MADE_UP.canary) for page in pages if page.text],
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        title="",
        size_bytes=len(content),
        state="ready",
        reason=None,
        hint="",
        collections=(),
        identity=MADE_UP,
    )
    return document_id


def cite(library, document_id, quote, page=1, number=1):
    """A citation of a quote that stands on a page."""
    stored = library.page(document_id, page)
    start = stored.text.index(quote)
    return {
        "number": number,
        "document_id": document_id,
        "document": library.document(document_id).name,
        "page": page,
        "start": start,
        "end": start + len(quote),
        "quote": quote,
        "boxes": boxes_for(stored.boxes, start, start + len(quote)) if stored.boxes else [],
        "page_sha256": stored.sha256,
    }
