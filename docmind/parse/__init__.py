"""File → pages: text, word boxes, and what could not be read and why. Knows no model and no index.

`Parser.parse` is what ingestion calls: it reads one file in a disposable process under limits and yields what it finds.
Importing this is cheap: no PDF library is loaded outside the reading process.
"""

from docmind.parse.kinds import kind_of
from docmind.parse.pages import DocumentInfo, Kind, PageSource, ParsedPage, ParseEnd, ParseEvent
from docmind.parse.parser import Parser
from docmind.parse.reasons import FILE_REASONS, PAGE_REASONS, FileReason, PageReason, Reason, refusal

__all__ = [
    "FILE_REASONS",
    "PAGE_REASONS",
    "DocumentInfo",
    "FileReason",
    "Kind",
    "PageReason",
    "PageSource",
    "ParseEnd",
    "ParseEvent",
    "ParsedPage",
    "Parser",
    "Reason",
    "kind_of",
    "refusal",
]
