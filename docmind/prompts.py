"""The words the model is told. Each fixed part stays byte for byte the same, so that its KV prefix is reused.

A small model follows one short instruction and gets worse with every rule more (docs/decisions.md), so the starter's
profile brings its own. None is asked to write [1] marks: proof is found by docmind.citations, with or without them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from docmind.context import evidence_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.llms import ChatMessage

    from docmind.citations import Evidence

NOT_IN_DOCUMENTS = "Not in your documents."
NO_ANSWER = "There is no answer in the passages that the model was given."

DIRECT = (
    "Answer the question in one or two short sentences, using only the numbered evidence. "
    "Use the evidence's own words and numbers. "
    f"If the evidence does not answer the question, say: {NOT_IN_DOCUMENTS}"
)


def direct_messages(
    question: str, evidence: Sequence[Evidence], system_prompt: str = "", before: Sequence[ChatMessage] = ()
) -> list[ChatMessage]:
    """Instructions, the conversation before, evidence and question."""
    from llama_index.core.llms import ChatMessage, MessageRole

    return [
        ChatMessage(role=MessageRole.SYSTEM, content=system_prompt or DIRECT),
        *before,
        ChatMessage(role=MessageRole.USER, content=direct_question(question, evidence)),
    ]


def direct_question(question: str, evidence: Sequence[Evidence]) -> str:
    """Evidence and question; the best evidence last, next to the question, where a small model looks."""
    if not evidence:
        return f"Question: {question}"
    read = "\n".join(evidence_text(piece) for piece in reversed(evidence))
    return f"Evidence:\n\n{read}\nQuestion: {question}"


# The agent: a header of our own, a quarter of LlamaIndex's, the same bytes for every question ------------------------

REACT = """You answer questions from the person's documents. You write in this form only:

Thought: what you need, in a few words
Action: the name of a tool
Action Input: its input as JSON

or, when the evidence answers the question:

Thought: what the evidence says, in a few words
Answer: the answer in one to four sentences, in the evidence's own words and numbers

Tools:
search_documents {"query": "words to look for"} finds passages
read_page {"document": "name", "page": 1} reads a page
list_documents {} names the documents

Answer as soon as the evidence is there. Search again, in other words, only when it is not. Never invent an observation.
If the documents do not answer the question, write: Answer: Not in your documents."""

FIRST_THOUGHT = "I look into the documents first."
LAST_THOUGHT = "The evidence answers the question."
FORCED = "\n\nUse no more tools. Answer now from the evidence above. Begin with: Answer:"
STOP = ("\nObservation:",)

# The same form as a grammar (GBNF) for models that can be held to it: llama.cpp.
_TEXT = r"""
text ::= [^\n]+ ("\n" [^\n]+)*
"""
STEP_GRAMMAR = (
    r"""
root ::= "Thought: " line "\n" (answer | action)
line ::= [^\n]{1,160}
answer ::= "Answer: " text
action ::= "Action: " (search | read | list)
search ::= "search_documents\nAction Input: {\"query\": \"" string "\"}"
read ::= "read_page\nAction Input: {\"document\": \"" string "\", \"page\": " [1-9] [0-9]{0,4} "}"
list ::= "list_documents\nAction Input: {}"
string ::= [^"\\\n]{1,120}
"""
    + _TEXT
)
ANSWER_GRAMMAR = 'root ::= "Answer: " text\n' + _TEXT


def action_text(tool: str, arguments: dict[str, Any], thought: str = FIRST_THOUGHT) -> str:
    """A step as the agent's form has it."""
    return f"Thought: {thought}\nAction: {tool}\nAction Input: {json.dumps(arguments, ensure_ascii=False)}"


def observation_text(evidence: Sequence[Evidence]) -> str:
    """What a search gave, as the agent reads it; the best piece last, next to where it writes."""
    return "Observation:\n\n" + "\n".join(evidence_text(piece) for piece in reversed(evidence))
