"""Why a file or a page could not be read: the closed list, once, with what to do about each.

Owns the words. docs/reasons.md lists exactly these codes (a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from docmind.errors import DocumentError

if TYPE_CHECKING:
    from pathlib import Path

FileReason = Literal[
    "not_found",
    "not_a_file",
    "not_readable",
    "empty_file",
    "too_large",
    "unsupported_type",
    "wrong_type",
    "encrypted",
    "damaged",
    "no_pages",
    "no_text",
    "memory_limit",
    "time_limit",
    "stalled",
    "worker_crashed",
    "too_much_text",
    "changed_while_reading",
    "disk_full",
    "stopped",
]

PageReason = Literal["blank", "scanned", "unreadable", "not_reached"]


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code says to a person: `meaning` is a clause that follows a file name, `hint` one sentence."""

    meaning: str
    hint: str


FILE_REASONS: Final[dict[FileReason, Reason]] = {
    "not_found": Reason("is not there", "Check the path; the file may have been moved or renamed."),
    "not_a_file": Reason("is a folder, a pipe or a device, not a file", "Choose the files themselves."),
    "not_readable": Reason(
        "may not be read by you, or its drive does not answer", "Check the file's permissions and its drive."
    ),
    "empty_file": Reason("is empty (0 bytes)", "Fetch or save the file again; a download may have been cut off."),
    "too_large": Reason(
        "is larger than DocMind reads (PDF 1 GB, text 32 MB)", "Split the file into parts and add those."
    ),
    "unsupported_type": Reason(
        "is of a kind DocMind does not read", "DocMind reads PDF, TXT and Markdown: export it as PDF and add that."
    ),
    "wrong_type": Reason(
        "is not what its name says", "Open it in the program it belongs to, export it as PDF and add that."
    ),
    "encrypted": Reason(
        "is locked with a password",
        "Remove the password, for instance with `qpdf --decrypt --password=… locked.pdf open.pdf`, then add it again.",
    ),
    "damaged": Reason(
        "is damaged and no reader could open it",
        "Fetch it again from where it came, or repair it, for instance with `qpdf broken.pdf repaired.pdf`.",
    ),
    "no_pages": Reason("is a PDF without pages", "Export the document again from the program that made it."),
    "no_text": Reason(
        "has no text on any page",
        "Run text recognition, for instance `ocrmypdf scan.pdf text.pdf`, and add the result.",
    ),
    "memory_limit": Reason(
        "needs more memory than one file may use", "Print or export it as a simpler PDF, or add it in parts."
    ),
    "time_limit": Reason(
        "needs more computing time than its pages justify", "Print or export it as a simpler PDF, or add it in parts."
    ),
    "stalled": Reason(
        "gave nothing for too long", "Check the drive it is on, copy the file to a local folder, then add it again."
    ),
    "worker_crashed": Reason(
        "made the reading process stop", "Add it once more; if it happens again, print it to a new PDF and add that."
    ),
    "too_much_text": Reason(
        "holds more text or pages than DocMind keeps of one file", "Split the file; what was read is kept."
    ),
    "changed_while_reading": Reason(
        "was changed while it was read", "Wait until whatever writes it has finished, then add it again."
    ),
    "disk_full": Reason("does not fit on the disk", "Free some space, then add it again; what was added is safe."),
    "stopped": Reason("was stopped before its end", "Add it again to finish it."),
}

PAGE_REASONS: Final[dict[PageReason, Reason]] = {
    "blank": Reason("has nothing, or nearly nothing, on it", "Nothing to do."),
    "scanned": Reason(
        "shows a picture, or letters that say nothing about themselves, but has no text",
        "Run text recognition on the file, for instance `ocrmypdf scan.pdf text.pdf`, and add the result.",
    ),
    "unreadable": Reason("could not be read by either reader", "Fetch the file again, or print it to a new PDF."),
    "not_reached": Reason(
        "was not reached before reading ended", "See the reason of the file; add the file again to try once more."
    ),
}


def refusal(reason: FileReason, path: Path, detail: str = "", hint: str = "") -> DocumentError:
    """The error that refuses a file; `detail` replaces the general meaning, `hint` the general hint."""
    known = FILE_REASONS[reason]
    return DocumentError(f"{path.name or path} {detail or known.meaning}.", hint or known.hint, reason=reason)
