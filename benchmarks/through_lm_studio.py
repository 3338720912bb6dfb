"""What our LM Studio adapter costs: words per second through it ÷ through LM Studio's own Python package.

    python benchmarks/through_lm_studio.py [--rounds 15] [--tokens 200] [--pace 200]

The stand-in server of the tests writes at its own pace, in a process of its own. `decode` is at that pace, which is
what a person sees of a fast model; `flat_out` lets the stand-in write as fast as it can, which shows what each word
costs us at most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import in_turns
import lmstudio
import machine
import psutil
from llama_index.core.llms import ChatMessage

from docmind.backends import lm_studio
from docmind.config import Config

REPOSITORY = Path(__file__).parents[1]
QUESTION = "The committee met again on Tuesday and discussed the budget for the harbour."
MODEL = "qwen/qwen3-4b-2507"


def bare(model, tokens):
    """What `in_turns.measure` wants, read with the package alone."""
    started = time.perf_counter()
    stream = model.respond_stream(QUESTION, config={"maxTokens": tokens})
    times = [time.perf_counter() for fragment in stream if fragment.content]
    assert len(times) == tokens
    return started, times[0], times[-1], len(times)


def through_adapter(llm, tokens):
    """The same through `LMStudioLLM`."""
    started = time.perf_counter()
    messages = [ChatMessage(role="user", content=QUESTION)]
    times = [time.perf_counter() for r in llm.stream_chat(messages, max_tokens=tokens) if r.delta]
    assert len(times) == tokens
    return started, times[0], times[-1], len(times)


def measure(rounds, tokens, pace=None):
    """Both, taking turns."""
    command = [sys.executable, "-m", "tests.servers.lm_studio", *(["--pace", str(pace)] if pace else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        url = process.stdout.readline().strip()
        with (
            tempfile.TemporaryDirectory() as home,
            lmstudio.Client(url.removeprefix("http://")) as client,
        ):
            llm = lm_studio.build(Config(home=Path(home)), MODEL, {"url": url})
            llm.warm_up()
            model = client.llm.model(MODEL)
            return in_turns.measure(lambda: bare(model, tokens), lambda: through_adapter(llm, tokens), rounds)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pace", type=float, default=200.0, help="words a second of the stand-in")
    arguments = parser.parse_args()
    load_before = psutil.getloadavg()[0]
    result = {
        "load_average_before": round(load_before, 2),
        "decode": measure(arguments.rounds, arguments.tokens, arguments.pace),
        "flat_out": measure(arguments.rounds, 10 * arguments.tokens),
        "settings": {"tokens": arguments.tokens, "pace": arguments.pace},
    }
    machine.write("lm_studio", result)


if __name__ == "__main__":
    main()
