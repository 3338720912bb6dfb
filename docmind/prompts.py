"""The words the model is told. Each fixed part stays byte for byte the same, so that its KV prefix is reused.

A small model follows one short instruction and gets worse with every rule more (docs/decisions.md), so the starter's
profile brings its own. None is asked to write [1] marks: proof is found by docmind.citations, with or without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from docmind.context import evidence_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.llms import ChatMessage

    from docmind.citations import Evidence

NOT_IN_DOCUMENTS = "Not in your documents."

DIRECT = (
    "Answer the question in one or two short sentences, using only the numbered evidence. "
    "Use the evidence's own words and numbers. "
    f"If the evidence does not answer the question, say: {NOT_IN_DOCUMENTS}"
)


def direct_messages(question: str, evidence: Sequence[Evidence], system_prompt: str = "") -> list[ChatMessage]:
    """Instructions, evidence, question; the best evidence last, next to the question, where a small model looks."""
    from llama_index.core.llms import ChatMessage, MessageRole

    read = "\n".join(evidence_text(piece) for piece in reversed(evidence))
    return [
        ChatMessage(role=MessageRole.SYSTEM, content=system_prompt or DIRECT),
        ChatMessage(role=MessageRole.USER, content=f"Evidence:\n\n{read}\nQuestion: {question}"),
    ]
