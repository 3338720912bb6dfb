"""Conversations kept in the library: questions, answers, and the quotes that prove them. Knows no model.

A question is kept the moment it is asked, with an empty answer beside it that grows while it is written, so that
nothing is lost whatever ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from docmind import runs, store
from docmind.library import now

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from docmind.answer import Answer
    from docmind.errors import DocMindError
    from docmind.library import Library

TITLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. Times are ISO 8601 in UTC."""

    chat_id: str
    title: str
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class Message:
    """A question or an answer.

    Attributes:
        finished: "complete", "stopped", "cut" or "failed"; None for a question, and for an answer that is being
            written now.
        sentences: Of an answer, as `docmind.citations.Sentence` has them.
        citations: As in the contract, with `page_sha256`; the quote is empty when its document was removed.
        details: What else belongs to an answer: reason, hint, steps, timings, context, model, nearest passages.
    """

    message_id: int
    role: str
    text: str
    run_id: str | None
    finished: str | None
    created_at: str
    sentences: tuple[dict[str, Any], ...] = ()
    citations: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


# Writing an answer ------------------------------------------------------------------------------------------------


def begin(library: Library, chat_id: str, question: str, run_id: str) -> int:
    """Keep a question, and an answer that is still empty; the chat is made when it is new. Returns the answer's id."""
    moment = now()
    with store.writing(library.path) as db:
        db.execute(
            "INSERT INTO chats VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at",
            (chat_id, _title(question), moment, moment),
        )
        db.execute(
            "INSERT INTO messages (chat_id, role, text, created_at) VALUES (?, 'user', ?, ?)",
            (chat_id, question, moment),
        )
        added = db.execute(
            "INSERT INTO messages (chat_id, role, text, run_id, created_at) VALUES (?, 'assistant', '', ?, ?)",
            (chat_id, run_id, moment),
        )
        return int(added.lastrowid or 0)


def reopen(library: Library, message: Message, run_id: str) -> bool:
    """An answer that had ended goes on in another run, and what was written stays; False: it goes on already."""
    with store.writing(library.path) as db:
        changed = db.execute(
            "UPDATE messages SET run_id = ?, finished = NULL WHERE id = ? AND run_id IS ?",
            (run_id, message.message_id, message.run_id),
        )
        return bool(changed.rowcount)


def keep_partial(library: Library, message_id: int, text: str) -> None:
    """What an answer has come to so far; a chat deleted meanwhile stays deleted."""
    with store.writing(library.path) as db:
        db.execute("UPDATE messages SET text = ? WHERE id = ? AND finished IS NULL", (text, message_id))


def keep_attempts(
    library: Library, message_id: int, attempts: Sequence[dict[str, Any]], fallbacks: Sequence[dict[str, Any]]
) -> None:
    """What models that gave up had written; the text of the answer begins anew."""
    details = json.dumps({"attempts": list(attempts), "fallbacks": list(fallbacks)})
    with store.writing(library.path) as db:
        db.execute(
            "UPDATE messages SET text = '', details = ? WHERE id = ? AND finished IS NULL", (details, message_id)
        )


def finish(library: Library, message_id: int, answer: Answer, error: DocMindError | None = None) -> None:
    """Keep an answer's end: text, sentences, quotes, figures, and the error that cut it; one transaction."""
    details = {
        "reason": answer.reason, "not_in_documents": answer.not_in_documents, "steps": answer.steps,
        "asked": answer.asked, "fallbacks": answer.fallbacks, "attempts": answer.attempts,
        "backend": answer.backend, "model": answer.model, "profile": answer.profile,
        "context": answer.context, "timings": answer.timings,
        "choice": answer.choice, "url": answer.url, "settings_left_out": answer.settings_left_out,
        # Where they are, not what they say: that goes with the document.
        "nearest": [{key: value for key, value in near.items() if key != "text"} for near in answer.nearest],
    }  # fmt: skip
    if error is not None:
        details |= {"message": str(error), "hint": error.hint}
    with store.writing(library.path) as db:
        changed = db.execute(
            "UPDATE messages SET text = ?, finished = ?, sentences = ?, details = ? WHERE id = ?",
            (answer.text, answer.finished, json.dumps([asdict(s) for s in answer.sentences]), json.dumps(details),
             message_id),
        )  # fmt: skip
        if not changed.rowcount:
            return
        db.execute("DELETE FROM citations WHERE message_id = ?", (message_id,))  # of an answer that went on
        db.executemany(
            # A document may have been removed while it was quoted: its words do not come back.
            "INSERT INTO citations SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,"
            " iif(there, ?9, ''), iif(there, ?10, '[]')"
            " FROM (SELECT EXISTS (SELECT 1 FROM documents WHERE id = ?3) AS there)",
            [
                (message_id, c["number"], c["document_id"], c["document"], c["page"], c["page_sha256"],
                 c["start"], c["end"], c["quote"], json.dumps(c["boxes"]))
                for c in answer.citations
            ],
        )  # fmt: skip


def fail(library: Library, message_id: int, error: DocMindError | None) -> None:
    """Keep why a question got no answer, and what to do; None is an error of the program itself."""
    details = {"reason": "internal", "message": "Something in DocMind went wrong.", "hint": "The log has the details."}
    if error is not None:
        details = {"reason": error.reason, "message": str(error), "hint": error.hint}
    with store.writing(library.path) as db:
        db.execute(
            "UPDATE messages SET finished = 'failed', details = ? WHERE id = ?", (json.dumps(details), message_id)
        )


# Conversations ----------------------------------------------------------------------------------------------------


def list_chats(library: Library, search: str = "", limit: int = 200) -> list[Chat]:
    """The chats, the one used last first; with `search` only those whose title, questions or answers hold it."""
    pattern = "%" + search.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    with store.reading(library.path) as db:
        rows = db.execute(
            r"""SELECT id, title, created_at, updated_at FROM chats c WHERE title LIKE ?1 ESCAPE '\' OR EXISTS
                (SELECT 1 FROM messages m WHERE m.chat_id = c.id AND m.text LIKE ?1 ESCAPE '\')
                ORDER BY updated_at DESC, id LIMIT ?2""",
            (pattern, limit),
        )
        return [Chat(*row) for row in rows]


def messages(library: Library, chat_id: str) -> list[Message]:
    """The messages of a chat in order; none for a chat that is not there.

    An answer whose process died is "cut", with the reason "interrupted".
    """
    with store.reading(library.path) as db:
        quotes: dict[int, list[dict[str, Any]]] = {}
        for row in db.execute(
            "SELECT c.* FROM citations c JOIN messages m ON m.id = c.message_id WHERE m.chat_id = ? ORDER BY c.number",
            (chat_id,),
        ):
            citation = {key: row[key] for key in row.keys() if key != "message_id"}  # noqa: SIM118 - a Row is no dict
            quotes.setdefault(row["message_id"], []).append({**citation, "boxes": json.loads(row["boxes"])})
        rows = db.execute(
            "SELECT m.*, r.state, r.pid, r.started_at FROM messages m LEFT JOIN runs r ON r.id = m.run_id"
            " WHERE m.chat_id = ? ORDER BY m.id",
            (chat_id,),
        ).fetchall()
    return [_message(row, tuple(quotes.get(row["id"], ()))) for row in rows]


def newest(library: Library, chat_id: str) -> tuple[int, str | None, str | None] | None:
    """A chat's last message: `message_id`, `run_id` and `finished`, which differ when something was said since."""
    with store.reading(library.path) as db:
        row = db.execute(
            "SELECT id, run_id, finished FROM messages WHERE chat_id = ? ORDER BY id DESC LIMIT 1", (chat_id,)
        ).fetchone()
    return tuple(row) if row else None


def rename(library: Library, chat_id: str, title: str) -> None:
    """Give a chat another title; an empty one changes nothing."""
    if title.strip():
        with store.writing(library.path) as db:
            db.execute("UPDATE chats SET title = ? WHERE id = ?", (_title(title), chat_id))


def delete(library: Library, chat_id: str) -> None:
    """Delete a chat with all its messages and quotes, for good."""
    with store.writing(library.path) as db:
        db.execute("DELETE FROM chats WHERE id = ?", (chat_id,))
        db.execute("INSERT OR REPLACE INTO meta VALUES ('has_to_forget', 1)")
    store.forget(library.path)


def _title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"


def _message(row: sqlite3.Row, citations: tuple[dict[str, Any], ...]) -> Message:
    finished, details = row["finished"], json.loads(row["details"])
    is_lost = row["role"] == "assistant" and finished is None and not runs.is_going(row)
    if is_lost:
        finished, details = "cut", {**details, "reason": "interrupted"}
    return Message(
        row["id"], row["role"], row["text"], row["run_id"], finished, row["created_at"],
        tuple(json.loads(row["sentences"])), citations, details,
    )  # fmt: skip
