"""What the child process of transformers costs: tokens per second through it ÷ bare transformers on the same folder.

    python benchmarks/through_transformers.py [--rounds 9] [--tokens 64]

The folder is a Llama of the starter's size (30 layers of 576, some 100 million parameters) with random weights, which
never ends by itself. Both hold it with the same number type, threads and environment, each in a process of its own:
bare is `generate` with transformers' own `TextIteratorStreamer`. Bare reads the whole prompt each time, the child keeps
what it has read, so only the words that follow the first are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import in_turns
import machine
import psutil
from llama_index.core.llms import ChatMessage

from docmind.backends import transformers
from docmind.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import tiny_model

QUESTION = "The committee met again and discussed the budget for the harbour. " * 8
BARE = """
import json, os, sys, threading, time
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=sys.argv[3])

class Times(TextIteratorStreamer):
    def put(self, value):
        super().put(value)
        seen.append(time.perf_counter())

print("ready", flush=True)
for line in sys.stdin:
    question, tokens = json.loads(line)
    seen, asked = [], time.perf_counter()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                        return_tensors="pt", return_dict=True)
    model.generate(**ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=1,
                   streamer=Times(tokenizer, skip_prompt=True, timeout=600))
    print(json.dumps([asked, seen[1:]]), flush=True)  # the first thing put is the prompt
"""


def bare(process, tokens):
    """What `in_turns.measure` wants, of bare transformers."""
    process.stdin.write(json.dumps([QUESTION, tokens]) + "\n")
    process.stdin.flush()
    asked, seen = json.loads(process.stdout.readline())
    assert len(seen) == tokens
    return asked, seen[0], seen[-1], len(seen)


def through_child(llm, tokens):
    """The same through `TransformersLLM`; tokens that make one character together come as one piece."""
    started = time.perf_counter()
    messages = [ChatMessage(role="user", content=QUESTION)]
    times = []
    for response in llm.stream_chat(messages, max_tokens=tokens, temperature=0.0):
        if response.delta:
            times.append(time.perf_counter())
    assert response.raw["answer_tokens"] == tokens
    return started, times[0], times[-1], tokens


def measure(rounds, tokens):
    """Both, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tiny_model.make(home / "models" / "starter-size", layers=30, hidden=576)
        llm = transformers.build(Config(home=home), "starter-size", {"temperature": 0.0})
        ready = llm.warm_up()
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # as the child has it: benchmarks/threads.py
        process = subprocess.Popen(
            [sys.executable, "-c", BARE, str(home / "models" / "starter-size"), str(llm._child.load["threads"]),
             ready["dtype"]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            assert process.stdout.readline() == "ready\n"
            return in_turns.measure(lambda: bare(process, tokens), lambda: through_child(llm, tokens), rounds)
        finally:
            process.kill()
            process.wait()
            llm.close()


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    load_before = psutil.getloadavg()[0]
    result = {
        "load_average_before": round(load_before, 2),
        "decode": measure(arguments.rounds, arguments.tokens),
        "settings": {"tokens": arguments.tokens},
    }
    machine.write("transformers", result)


if __name__ == "__main__":
    main()
