"""Conversations kept in the library: questions, answers, and the quotes that prove them. Knows no model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from docmind import store
from docmind.library import now

if TYPE_CHECKING:
    from docmind.answer import Answer
    from docmind.library import Library

TITLE_CHARACTERS = 60


def keep(library: Library, chat_id: str, question: str, answer: Answer) -> None:
    """Append a question and its answer to a chat, which is made when it is new; one transaction."""
    moment = now()
    with store.writing(library.path) as db:
        db.execute(
            "INSERT INTO chats VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at",
            (chat_id, question[:TITLE_CHARACTERS], moment, moment),
        )
        db.execute(
            "INSERT INTO messages (chat_id, role, text, created_at) VALUES (?, 'user', ?, ?)",
            (chat_id, question, moment),
        )
        message_id = db.execute(
            "INSERT INTO messages (chat_id, role, text, run_id, finished, sentences, created_at)"
            " VALUES (?, 'assistant', ?, ?, ?, ?, ?)",
            (
                chat_id,
                answer.text,
                answer.run_id,
                answer.finished,
                json.dumps([asdict(s) for s in answer.sentences]),
                moment,
            ),
        ).lastrowid
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
