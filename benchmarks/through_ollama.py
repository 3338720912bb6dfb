"""What our Ollama adapter costs: words per second through it ÷ through a bare HTTP reader of the same stream.

    python benchmarks/through_ollama.py [--rounds 15] [--tokens 200] [--pace 200]

The stand-in server of the tests writes at its own pace, in a process of its own; the two readers take turns, so that a
busy machine is busy for both. `decode` is at that pace, which is what a person sees of a fast model; `flat_out` lets
the stand-in write as fast as it can, which shows what each word costs us at most. Reported are medians, and the median
of the ratios of neighbouring turns. Time runs from the first word to the last, as the caller sees them: for the adapter
that includes the event loop in its thread and LlamaIndex's response objects, for the bare reader httpx and `json`.

(Not named ollama.py: a script's folder is searched first, and DocMind would import it in place of Ollama's client.)
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import httpx
import in_turns
from llama_index.core.llms import ChatMessage

from docmind.backends import ollama
from docmind.config import Config

MODEL = "qwen3:4b"
QUESTION = "The committee met again on Tuesday and discussed the budget for the harbour."


def bare(url, tokens):
    """What `in_turns.measure` wants, read with httpx alone."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "options": {"num_ctx": 8192, "num_predict": tokens},
        "stream": True,
    }
    started = time.perf_counter()
    times = []
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{url}/api/chat", json=body) as answer,
    ):
        for line in answer.iter_lines():
            event = json.loads(line)
            if event["message"]["content"]:
                times.append(time.perf_counter())
    assert event["done"]
    assert len(times) == tokens
    return started, times[0], times[-1], len(times)


def through_adapter(llm, tokens):
    """The same through `OllamaLLM`."""
    started = time.perf_counter()
    messages = [ChatMessage(role="user", content=QUESTION)]
    times = [time.perf_counter() for r in llm.stream_chat(messages, max_tokens=tokens) if r.delta]
    assert len(times) == tokens
    return started, times[0], times[-1], len(times)


def measure(rounds, tokens, pace=None):
    """Both, taking turns."""
    with in_turns.stand_in("ollama", pace) as url, tempfile.TemporaryDirectory() as home:
        llm = ollama.build(Config(home=Path(home)), MODEL, {"url": url})
        return in_turns.measure(lambda: bare(url, tokens), lambda: through_adapter(llm, tokens), rounds)


if __name__ == "__main__":
    in_turns.at_both_paces("ollama", __doc__.splitlines()[0], measure)
