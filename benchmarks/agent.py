"""What the agent and the conversation cost: calls of the model, and how much of a prompt is read again.

`python benchmarks/agent.py`: the starter in its child process, the made-up documents of the tests. A second
turn is measured twice: the agent's own second call within an answer (the forced answer after a step without use), and a
second question in a chat. "Read again" are tokens of the second prompt that the model had read before and reads anew,
as a share of that prompt; new words of course have to be read.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from pathlib import Path

from machine import write

from docmind import agent as agents
from docmind import tools
from docmind.answer import ask
from docmind.backends import llama_cpp
from docmind.config import Config
from docmind.library import Library
from docmind.prompts import ANSWER_GRAMMAR, direct_messages, observation_text

PROFILE = """
backend = "llama.cpp"
model = "smollm2-135m-instruct"
temperature = 0.0
max_output_tokens = 96
fallbacks = []
agent = "{agent}"
"""
QUESTIONS = [
    ("What did repairs of the north quay cost in 2023?", "And how many containers did the harbour handle?"),
    ("How many people does the pilot station employ?", "Who is its director?"),
    ("How much honey does a colony need to survive the winter?", "When do they swarm?"),
    ("How long does a lemon cake bake?", "How many eggs does it need?"),
]


def main() -> None:
    """Measures and prints."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import write_files

    with tempfile.TemporaryDirectory() as folder:
        library = Library(Config(home=Path(folder) / "home"))
        for _ in library.add(write_files(Path(folder) / "files")):
            pass
        models = library.config.model_folders[0]
        models.mkdir(parents=True, exist_ok=True)
        for kind in ("direct", "react"):
            (models / f"{kind}.toml").write_text(PROFILE.format(agent=kind), encoding="utf-8")
        result = {
            "chat": {kind: chat_turns(library, kind) for kind in ("direct", "react")},
            "agent_second_call": second_calls(library),
        }
        llama_cpp.close_all()
    write("agent", result)


def chat_turns(library: Library, kind: str) -> list[dict]:
    """Two questions in a chat, for each pair."""
    rows = []
    for number, pair in enumerate(QUESTIONS):
        answers = [list(ask(library, question, profile=kind, chat=f"{kind}{number}"))[-1] for question in pair]
        first, second = answers
        prompt, cached = second.timings["prompt_tokens"], second.context["parts"]["cached"]
        known = second.context["parts"]["instructions_and_question"]
        # All but this question's own evidence and words had been read or written before.
        new = second.context["parts"]["evidence"] + len(pair[1].split()) * 2 + 12
        rows.append(
            {
                "calls": [answer.timings["model_calls"] for answer in answers],
                "first_prompt_tokens": first.timings["prompt_tokens"],
                "prompt_tokens": prompt,
                "cached_tokens": cached,
                "new_tokens": new,
                "instructions_tokens": known,
                "read_again_share": round(max(prompt - cached - new, 0) / prompt, 3),
                "evaluated_share": round((prompt - cached) / prompt, 3),
            }
        )
    return rows


def second_calls(library: Library) -> list[dict]:
    """The call that forces an answer, right after the agent's first call."""
    rows = []
    llm = llama_cpp.build(library.config, llama_cpp.STARTER, {"temperature": 0.0})
    llm.warm_up()
    for question, _ in QUESTIONS:
        reading = tools.Reading(library, count_tokens=llm.count_tokens_many, room_tokens=2000, tokens_per_second=250.0)
        found = tools.give(reading, tools.find(reading, question)).evidence
        agent = agents.make_agent(llm, reading, [], {"max_tokens": 24}, has_grammar=True)

        async def run(agent=agent, reading=reading, question=question, found=found) -> list[dict]:
            events = agents.work(agent, reading, question, observation_text(found), threading.Event())
            first = [event.raw async for event in events if "finish_reason" in (getattr(event, "raw", None) or {})]
            forced = await llm.achat(agent.forced(), max_tokens=24, grammar=ANSWER_GRAMMAR)
            return [*first, forced.raw]

        *_, before, forced = asyncio.run(run())
        prompt, cached = forced["prompt_tokens"], forced["cached_tokens"]
        rows.append(
            {
                "first_prompt_tokens": before["prompt_tokens"],
                "prompt_tokens": prompt,
                "cached_tokens": cached,
                "evaluated_share": round((prompt - cached) / prompt, 3),
            }
        )
    header = llm.count_tokens(direct_messages("", [], agents.REACT)[:1])
    return [*rows, {"header_tokens": header}]


if __name__ == "__main__":
    main()
