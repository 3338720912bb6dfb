"""The agent: LlamaIndex's `ReActAgent`, which has made its first search before it is asked. Knows no Streamlit.

It differs from the stock agent where small models need it: the first action and its observation are there from the
start, so that most questions take one call; the header is short and never changes, so that its KV prefix is reused;
a step that cannot be read, an action made before and a spent budget end it without an answer, and whoever runs it
then asks for one from the evidence (`forced`), where the stock agent would try again and at last fail.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import (
    ActionReasoningStep,
    BaseReasoningStep,
    ObservationReasoningStep,
    ResponseReasoningStep,
)
from llama_index.core.agent.workflow import AgentStream, ReActAgent, ToolCall, ToolCallResult
from llama_index.core.llms import ChatMessage, ChatResponse, MessageRole
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from pydantic import ConfigDict, Field, PrivateAttr
from workflows.errors import WorkflowRuntimeError

from docmind import tools
from docmind.errors import DocMindError
from docmind.events import StepFinished, StepStarted
from docmind.prompts import FIRST_THOUGHT, FORCED, REACT, STEP_GRAMMAR, STOP, action_text
from docmind.transcript import read_step

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Sequence

    from llama_index.core.llms import LLM

    from docmind.tools import Reading

# The tool's parameter that a text without a name is meant for.
_FIRST_PARAMETER = {"search_documents": "query", "read_page": "document"}
_NO_END = 1 << 40  # tokens of LlamaIndex's own memory: what fits the window is decided here


class Steps(ReActOutputParser):
    """Reads what a model wrote as its next step, whatever it is; it never raises.

    Attributes:
        calls_left: Tools it may still use.
        made: What was done already, as name and arguments.
    """

    def __init__(self, calls_left: int = tools.MAX_CALLS) -> None:
        self.calls_left = calls_left
        self.made: set[str] = set()

    def parse(self, output: str, is_streaming: bool = False) -> BaseReasoningStep:
        """The step; a response without text where there is none, and for a call that must not be made."""
        step = read_step(output.encode("utf-8", "replace").decode())
        if not step.tool:
            return ResponseReasoningStep(thought=step.thought, response=step.text, is_streaming=is_streaming)
        arguments = checked(step.tool, step.arguments)
        if arguments is None or self.calls_left < 1 or not self.is_new(step.tool, arguments):
            return ResponseReasoningStep(thought=step.thought, response="", is_streaming=is_streaming)
        self.calls_left -= 1
        return ActionReasoningStep(thought=step.thought, action=step.tool, action_input=arguments)

    def is_new(self, tool: str, arguments: dict[str, Any]) -> bool:
        """Whether this was not done before; it counts as done from now on."""
        call = json.dumps([tool, {name: str(value).strip().lower() for name, value in arguments.items()}])
        is_new = call not in self.made
        self.made.add(call)
        return is_new


def checked(tool: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments a tool takes out of those a model wrote; None when it is no tool or they do not do."""
    given = dict(arguments)
    if tool in _FIRST_PARAMETER and _FIRST_PARAMETER[tool] not in given and given:
        # Under another name, or none: the first text is what was meant.
        text = next((value for value in given.values() if isinstance(value, str) and value.strip()), None)
        if text is not None:
            given[_FIRST_PARAMETER[tool]] = text
    match tool, given:
        case "search_documents", {"query": str(query)} if query.strip():
            return {"query": query.strip()}
        case "read_page", {"document": str(document)} if document.strip():
            digits = re.match(r"\d{1,7}", str(given.get("page", 1)).strip())  # of 2, 2.0 and "2"; infinity has none
            return {"document": document.strip(), "page": max(1, int(digits[0]) if digits else 1)}
        case "list_documents", _:
            return {}
    return None


class _Prompt(ReActChatFormatter):
    """The header, the conversation before, the question, and the steps so far, always in this order."""

    before: list[ChatMessage] = Field(default_factory=list)

    def format(
        self,
        tools: Sequence[Any],
        chat_history: list[ChatMessage],
        current_reasoning: list[BaseReasoningStep] | None = None,
    ) -> list[ChatMessage]:
        """The messages; the tools stand in the header already."""
        messages = [ChatMessage(role=MessageRole.SYSTEM, content=self.system_header), *self.before, *chat_history]
        for step in current_reasoning or []:
            if isinstance(step, ActionReasoningStep):
                content = action_text(step.action, step.action_input, step.thought)
                messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=content))
            elif isinstance(step, ObservationReasoningStep):
                messages.append(ChatMessage(role=MessageRole.USER, content=step.observation))
            else:
                messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=step.get_content()))
        return messages


class DocumentAgent(ReActAgent):
    """A `ReActAgent` that hands the arguments of a call on to the model, which the stock one does not."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    arguments: dict[str, Any] = Field(default_factory=dict)
    _asked: list[ChatMessage] = PrivateAttr(default_factory=list)

    async def _get_streaming_response(self, ctx: Any, current_llm_input: list[ChatMessage]) -> ChatResponse:
        """One call of the model, with stop strings, limits and grammar; its responses go out as they come."""
        self._asked = current_llm_input
        last = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=""))
        async for response in await self.llm.astream_chat(current_llm_input, **self.arguments):
            last = response
            ctx.write_event_to_stream(
                AgentStream(
                    delta=response.delta or "",
                    response=response.message.content or "",
                    raw=response.raw,
                    current_agent_name=self.name,
                )
            )
        # Nothing at all would make the stock agent ask again; what ends without an answer is decided by `Steps`.
        if not last.message.content:
            last = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content="Thought:"), raw=last.raw)
        return last

    def forced(self) -> list[ChatMessage]:
        """The messages of the last call, told to answer now: only its end is new to the model."""
        *before, last = self._asked
        return [*before, ChatMessage(role=last.role, content=(last.content or "") + FORCED)]


def make_agent(
    llm: LLM, reading: Reading, before: Sequence[ChatMessage], arguments: dict[str, Any], *, has_grammar: bool
) -> DocumentAgent:
    """The agent for one question.

    Args:
        reading: What it may read; its steps and evidence grow while the agent works.
        before: The conversation so far.
        arguments: Of each call of the model.
        has_grammar: Whether the model can be held to a grammar.
    """

    def search_documents(query: str) -> str:
        """Find passages."""
        return "Observation:\n\n" + tools.search_documents(reading, query)

    def read_page(document: str, page: int = 1) -> str:
        """Read a page of a document."""
        return "Observation:\n\n" + tools.read_page(reading, document, page)

    def list_documents() -> str:
        """Names of the documents."""
        return "Observation:\n\n" + tools.list_documents(reading)

    functions: list[Callable[..., str]] = [search_documents, read_page, list_documents]
    own = {**arguments, "stop": [*arguments.get("stop", ()), *STOP]}
    if has_grammar:
        own["grammar"] = STEP_GRAMMAR
    return DocumentAgent(
        name="docmind",
        llm=llm,
        tools=[FunctionTool.from_defaults(function) for function in functions],
        output_parser=Steps(),
        formatter=_Prompt(system_header=REACT, before=list(before)),
        arguments=own,
    )


async def work(
    agent: DocumentAgent, reading: Reading, question: str, observation: str, stop: threading.Event | None
) -> AsyncIterator[ChatResponse | StepStarted | StepFinished]:
    """Lets the agent work on a question whose first search was made.

    Args:
        question: As the model is told it.
        observation: What the first search gave, as text.

    Yields:
        The model's responses, each with all it has written in this call; a tool's begin and end.

    Raises:
        DocMindError: The model or the library failed.
    """
    first = reading.steps[-1]
    steps = agent.output_parser
    assert isinstance(steps, Steps)
    steps.calls_left -= 1
    steps.is_new(first["tool"], {"query": first["input"]})
    context: Any = Context(agent)
    await context.store.set(
        agent.reasoning_key,
        [
            ActionReasoningStep(thought=FIRST_THOUGHT, action=first["tool"], action_input={"query": first["input"]}),
            ObservationReasoningStep(observation=observation),
        ],
    )
    handler = agent.run(
        user_msg=ChatMessage(role=MessageRole.USER, content=question),
        ctx=context,
        memory=ChatMemoryBuffer(token_limit=_NO_END),
        max_iterations=tools.MAX_CALLS + 2,  # never reached: `Steps` ends it before
    )
    is_over = False
    try:
        async for event in handler.stream_events():
            if stop is not None and stop.is_set() and isinstance(event, ToolCall | ToolCallResult):
                return
            match event:
                case AgentStream():
                    yield ChatResponse(
                        message=ChatMessage(role=MessageRole.ASSISTANT, content=event.response),
                        delta=event.delta,
                        raw=event.raw,
                    )
                case ToolCallResult():
                    failure = event.tool_output.exception  # the stock agent would show it to the model
                    if isinstance(failure, DocMindError):
                        raise failure
                    done = reading.steps[-1]
                    done["arguments"] = event.tool_kwargs
                    yield tools.step_finished(done)
                case ToolCall():
                    yield StepStarted(event.tool_name, _shown(event.tool_kwargs))
        is_over = True
        await handler
    except WorkflowRuntimeError as error:
        if isinstance(error.__cause__, DocMindError):
            raise error.__cause__ from error
        raise
    finally:
        if not is_over:
            await handler.cancel_run()


def _shown(arguments: dict[str, Any]) -> str:
    """What a tool is asked, as a step's line shows it."""
    match arguments:
        case {"query": query}:
            return str(query)
        case {"document": document, "page": page}:
            return f"{document}, page {page}"
    return ""
