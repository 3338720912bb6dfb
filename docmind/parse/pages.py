"""What reading a file yields, in this order: one `DocumentInfo`, a `ParsedPage` per page, one `ParseEnd`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from docmind.parse.reasons import FileReason, PageReason

Kind = Literal["pdf", "text", "markdown"]
PageSource = Literal["text", "ocr", "none"]

# Beyond these a file is not a document a person reads but a bomb, and the library's disk is not its target.
MAX_PAGES: Final = 50_000
MAX_PAGE_CHARACTERS: Final = 2_000_000
MAX_FILE_CHARACTERS: Final = 64_000_000
MAX_OUTLINE: Final = 2_000  # entries
MAX_TITLE: Final = 200  # characters, of a title and of a heading


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What is known about a file before its pages are read.

    Attributes:
        pages: How many pages there are, at most `MAX_PAGES`.
        title: From the metadata or the first heading, one line, at most 200 characters; "" when there is none.
            Untrusted like all text of a document.
        outline: (page, heading) pairs in the order of the document; pages are 1-based.
    """

    kind: Kind
    pages: int
    title: str
    outline: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedPage:
    """One page as read.

    Attributes:
        number: 1-based, as a reader counts.
        text: Normalised text (`docmind.parse.normalise`); offsets everywhere in DocMind are Python code points of
            exactly this string.
        produced_by: The reader and its version, "pypdfium2 5.15.2"; what a re-read compares.
        reason: Why there is no text; None when there is.
        boxes: Compact word boxes, see `docmind.parse.boxes`; b"" when the kind has no page picture.
        width, height: Points of the page as displayed (rotation and CropBox applied); 0 for text files.
    """

    number: int
    text: str
    source: PageSource
    reason: PageReason | None = None
    produced_by: str = ""
    boxes: bytes = b""
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True, slots=True)
class ParseEnd:
    """The end of a file. `reason` is None when all of every page was read, else why something is missing."""

    reason: FileReason | None = None
    hint: str = ""


ParseEvent = DocumentInfo | ParsedPage | ParseEnd


class CannotRead(Exception):
    """A reader's verdict inside the worker: the file is refused as a whole. Crosses the pipe as its code only."""

    def __init__(self, reason: FileReason) -> None:
        super().__init__(reason)
        self.reason: FileReason = reason
