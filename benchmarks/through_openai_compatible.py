"""What our adapter for OpenAI-compatible servers costs: words per second through it ÷ the same server bare.

    python benchmarks/through_openai_compatible.py [--rounds 9] [--tokens 100]

The server is llama.cpp's own on the bundled model, in a process of its own; the two readers take turns, so that a busy
machine is busy for both. Reported are medians, and the median of the ratios of neighbouring turns. Time runs from the
first word to the last, as the caller sees them: for the adapter that includes the event loop in its thread and
LlamaIndex's response objects, for the bare reader httpx and `json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import httpx
import in_turns
import machine
import psutil
from llama_index.core.llms import ChatMessage

from docmind.backends import openai_compatible
from docmind.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import llama_server

QUESTION = "Tell a very long story about a sailor who never comes home."
# Otherwise a model this small comes to an end whenever it likes.
GRAMMAR = 'root ::= sentence+\nsentence ::= [A-Z] [a-z, ]{40,90} ". "'


def bare(url, tokens):
    """What `in_turns.measure` wants, read with httpx alone."""
    body = {"model": "starter", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens,
            "temperature": 0.1, "grammar": GRAMMAR, "stream": True}  # fmt: skip
    started = time.perf_counter()
    times = []
    with (
        httpx.Client(trust_env=False, timeout=600) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        times.extend(
            time.perf_counter()
            for line in answer.iter_lines()
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content")
        )
    return started, times[0], times[-1], len(times)


def through_adapter(llm, tokens):
    """The same through `OpenAICompatibleLLM`."""
    started = time.perf_counter()
    stream = llm.stream_chat([ChatMessage(role="user", content=QUESTION)], max_tokens=tokens, grammar=GRAMMAR)
    times = [time.perf_counter() for response in stream if response.delta]
    return started, times[0], times[-1], len(times)


def measure(rounds, tokens):
    """Both, taking turns."""
    with llama_server.serve() as url, tempfile.TemporaryDirectory() as home:
        llm = openai_compatible.build(Config(home=Path(home)), "starter", {"url": url})
        return in_turns.measure(lambda: bare(url, tokens), lambda: through_adapter(llm, tokens), rounds)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=100)
    arguments = parser.parse_args()
    load_before = psutil.getloadavg()[0]
    result = {
        "load_average_before": round(load_before, 2),
        "decode": measure(arguments.rounds, arguments.tokens),
        "settings": {"tokens": arguments.tokens, "threads": 1},
    }
    machine.write("openai_compatible", result)


if __name__ == "__main__":
    main()
