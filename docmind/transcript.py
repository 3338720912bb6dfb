"""What a model wrote, read as a step: its thoughts, the tool it calls, or its answer. Knows no model and no tool.

Small models follow the ReAct form loosely: markers in bold or missing, a call as JSON or as a function, an observation
they make up, thoughts that never end. `read_step` gives the first thing of all this that can be used; `answer_so_far`
gives, while text still comes, what of it is certain to be the answer. A marker is never part of either.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

# So many characters without a marker are an answer: models that think aloud before a call write a line or two.
PLAIN_ANSWER_CHARACTERS: Final = 240

# "Thought:", "**Action Input:**", "### Final Answer:", "> answer：" at the beginning of a line.
_MARK: Final = re.compile(
    r"^[ \t>*_#`\-]*(thought|action[ \t_]input|action|observation|final[ \t]answer|answer|question)"
    r"[ \t*_`]*[:：][ \t]*(?:[*_`]+(?=\s|$))?",
    re.IGNORECASE | re.MULTILINE,
)
_MARKS: Final = ("thought", "action input", "action", "observation", "final answer", "answer", "question")
# "Let me look. Action: search_documents Action Input: {…}" on one line.
_INLINE_ACTION: Final = re.compile(
    r"(?<=\S)[ \t]+(?=action[ \t]*[:：][ \t]*[`*]*[a-z]+_[a-z]|action[ \t_]input[ \t]*[:：])", re.IGNORECASE
)
# What a reasoning model thinks, as the common templates tag it.
_THINKING: Final = re.compile(r"<(think|thinking|reasoning|thought)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_THINKING_END: Final = re.compile(r"\A.*?</(?:think|thinking|reasoning|thought)>", re.DOTALL | re.IGNORECASE)
_THINKING_TAGS: Final = ("<think>", "<thinking>", "<reasoning>", "<thought>")
_TOOL_CALL: Final = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FENCE: Final = re.compile(r"\A\s*```[a-z]*\n(.*?)(?:\n```\s*\Z|\Z)", re.DOTALL)
_CALL: Final = re.compile(r"\A[`*\s]*([A-Za-z_]\w*)\s*\((.*)\)[`*\s.]*\Z", re.DOTALL)
# Begins as a call without markers does: however long it gets, it is no answer.
_CALL_BEGINS: Final = re.compile(r"\s*(?:\{|\[\s*\{|<tool_call>|[`*]*[a-z]+_[a-z_]+\s*\()")
_PAIR: Final = re.compile(r"""["']?(\w+)["']?\s*[:=]\s*(?:"([^"]*)"|'([^']*)'|(\d+))""")
# "Action: None" and its like mean that no tool is wanted.
_NO_ACTION: Final = frozenset({"", "none", "no action", "no action needed", "n/a", "na", "null"})
_ANSWERING: Final = frozenset({"answer", "final answer", "finish", "respond", "response", "final_answer"})


@dataclass(frozen=True, slots=True)
class Step:
    """What a model wants: a tool when `tool` is set, else it answers with `text`; neither is a step without use.

    Attributes:
        arguments: Of the tool by name; under "" a text that names none.
    """

    text: str = ""
    thought: str = ""
    tool: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


def without_thinking(text: str) -> str:
    """The text without what stands in thinking tags, those included; an unclosed tag hides what follows it."""
    text = _THINKING.sub("", text)
    # Some templates write the opening tag into the prompt: then only its end is in the text.
    return _THINKING_END.sub("", text).lstrip()


def read_step(text: str) -> Step:
    """The first thing in a complete text that can be used: a call of a tool, or an answer."""
    body = without_thinking(text)
    fenced = _FENCE.match(body)
    if fenced and (_MARK.search(fenced[1]) or fenced[1].lstrip().startswith("{")):
        body = fenced[1]
    lead, sections = _sections(body)
    if len(lead) >= PLAIN_ANSWER_CHARACTERS and not _CALL_BEGINS.match(body):
        return Step(lead)
    thought = " ".join(content for mark, content in sections if mark == "thought").strip() or lead
    for place, (mark, content) in enumerate(sections):
        if mark == "answer" and content:
            return Step(content, thought)
        if mark == "action":
            given = next((c for m, c in sections[place + 1 :] if m == "action input"), "")
            step = _action(content, given, thought)
            if step is not None:
                return step
    called = _TOOL_CALL.search(body)
    step = _json_call((called[1] if called else lead).strip()) or _function_call(lead)
    if step is not None:
        return step
    if called or lead.startswith("{") or sections:
        return Step(thought=thought)
    return Step(lead)


def answer_so_far(text: str) -> str:
    """What of a growing text is certain to be the answer; longer with every call, never with a marker in it."""
    body = without_thinking(without_partial_tag(text))
    if body.startswith(("```", "<")) or _CALL_BEGINS.match(body):
        return ""
    lead, sections = _sections(_without_partial_mark(body))
    if len(lead) >= PLAIN_ANSWER_CHARACTERS:
        return lead
    for mark, content in sections:
        if mark == "answer" and content:
            return content
        if mark == "action":
            return ""
    return ""


def _sections(body: str) -> tuple[str, list[tuple[str, str]]]:
    """The text in front of the first marker, and what follows each marker, up to an observation the model made up."""
    body = _INLINE_ACTION.sub("\n", body)
    marks = list(_MARK.finditer(body))
    lead = body[: marks[0].start() if marks else len(body)].strip()
    sections: list[tuple[str, str]] = []
    for place, found in enumerate(marks):
        name = re.sub(r"[\s_]+", " ", found[1].lower()).removeprefix("final ")
        if name == "observation":
            break
        end = marks[place + 1].start() if place + 1 < len(marks) else len(body)
        content = body[found.end() : end].strip()
        if name != "answer":
            content = content.strip("`").strip()
        if _MARK.match(content):  # one marker right behind the other
            sections += [(name, ""), *_sections(content)[1]]
        else:
            sections.append((name, content))
    return lead, sections


def _action(content: str, given: str, thought: str) -> Step | None:
    """The call that an action names; None when it names none."""
    if content.startswith("{"):  # all of it as JSON
        step = _json_call(content)
        return step and Step("", thought, step.tool, step.arguments)
    name = content.split("\n", 1)[0].strip().strip("*_`\"'.[]<>").strip()
    if name.lower() in _NO_ACTION:
        return None
    if name.lower() in _ANSWERING:
        arguments = _arguments(given)
        text = str(next(iter(arguments.values()), "")) if arguments else ""
        return Step(text, thought) if text else None
    called = _CALL.match(name)
    if called:
        return Step("", thought, called[1], _arguments(given or called[2]))
    if not given and "\n" in content:  # the input without its marker
        given = content.split("\n", 1)[1]
    return Step("", thought, name.split()[0], _arguments(given))


def _json_call(text: str) -> Step | None:
    """A call as models trained for function calling write it: {"name": …, "arguments": {…}}."""
    try:
        called = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(called, list) and called:
        called = called[0]
    if not isinstance(called, dict):
        return None
    name = called.get("name") or called.get("tool") or called.get("action") or called.get("function")
    arguments = called.get("arguments", called.get("parameters", called.get("action_input", called.get("input", {}))))
    if isinstance(arguments, str):
        arguments = _arguments(arguments)
    return Step(tool=name, arguments=arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _function_call(text: str) -> Step | None:
    """A call as a program would write it: search_documents("north quay")."""
    called = _CALL.match(text)
    return Step(tool=called[1], arguments=_arguments(called[2])) if called and "_" in called[1] else None


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call, however they are written; a text that names none stands under ""."""
    text = text.strip().strip("`").strip()
    start, end = text.find("{"), text.rfind("}")
    inner = text[start : end + 1] if 0 <= start < end else text[start:] if start >= 0 else text
    try:
        read = json.loads(inner)
    except (ValueError, RecursionError):
        read = {name: double or single or int(number[:9] or 0) for name, double, single, number in _PAIR.findall(inner)}
    if isinstance(read, dict) and read:
        return read
    plain = text.strip("{}[]()\"' \n")
    return {"": plain} if plain else {}


def _without_partial_mark(body: str) -> str:
    """Without an end that may become a marker: at the beginning of the last line, or right behind another marker."""
    start = body.rfind("\n") + 1
    while found := _MARK.match(body[start:]):
        start += found.end()
    line = re.sub(r"[\s_]+", " ", body[start:].lower().lstrip(" \t>*_#`-"))
    return body[:start] if any(mark.startswith(line.rstrip("*_` ")) for mark in _MARKS) else body


def without_partial_tag(text: str) -> str:
    """Without a last word that may become a thinking tag."""
    start = text.rfind("<")
    if start >= 0 and any(tag.startswith(text[start:].lower()) for tag in _THINKING_TAGS):
        return text[:start]
    return text
