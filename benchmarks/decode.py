"""What the child process costs: decode speed and first token through it, against bare llama-cpp-python.

    python benchmarks/decode.py [--rounds 15] [--tokens 96]

Both hold the starter with the same threads, batch and window, each in a process of its own started with the same
environment; they take turns, so that a busy machine is busy for both. Reported are medians, and the median of the
ratios of neighbouring turns. Time includes everything from the call to the last (or first) token as the caller sees it:
for the child the pipe and LlamaIndex's response objects, for bare llama.cpp its own `create_completion` stream.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import psutil

from docmind.backends import llama_cpp
from docmind.config import Config

WORDS = "The committee met again on Tuesday and discussed the budget for the harbour. "
PROMPT = "<|im_start|>user\n{text}\nWrite a long story about it.<|im_end|>\n<|im_start|>assistant\n"

BARE = """
import json, sys, time
import llama_cpp
load = json.loads(sys.argv[1])
llm = llama_cpp.Llama(load["path"], n_ctx=load["window"], n_batch=load["batch"], n_ubatch=load["batch"],
                      n_threads=load["writing_threads"], n_threads_batch=load["threads"], verbose=False)
print("ready", flush=True)
for line in sys.stdin:
    prompt, tokens = json.loads(line)
    started = time.perf_counter()
    times = []
    for piece in llm.create_completion(prompt, max_tokens=tokens, temperature=0.0, stream=True):
        times.append(time.perf_counter() - started)
    times = times[:tokens]  # the last piece of a stream carries only the finish reason
    print(json.dumps([times[0], (len(times) - 1) / (times[-1] - times[0]) if len(times) > 2 else None]), flush=True)
"""


def bare(process, prompt, tokens):
    """First-token seconds and tokens per second of bare llama.cpp."""
    process.stdin.write(json.dumps([prompt, tokens]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def through_child(llm, prompt, tokens):
    """The same through the child process and LlamaIndex."""
    started = time.perf_counter()
    times = [
        time.perf_counter() - started
        for response in llm.stream_complete(prompt, formatted=True, max_tokens=tokens, temperature=0.0)
        if response.delta
    ]
    return times[0], (len(times) - 1) / (times[-1] - times[0]) if len(times) > 2 else None


def measure(rounds, tokens):
    """All figures of one run."""
    config = Config(home=Path(tempfile.mkdtemp()))
    llm = llama_cpp.build(config, llama_cpp.STARTER, {"context_window": 4096})
    ready = llm.warm_up()
    load = {**llm._child.load, "writing_threads": ready["writing_threads"]}
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    process = subprocess.Popen(
        [sys.executable, "-c", BARE, json.dumps(load)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    decode, first, rows = [], [], []
    for turn in range(rounds + 1):
        # A prompt of its own in each turn, so that no prefix is reused; the same for both.
        prompt = PROMPT.format(text=f"Turn {turn}. " + WORDS * 14)
        pair = [lambda p=prompt: bare(process, p, tokens), lambda p=prompt: through_child(llm, p, tokens)]
        order = (0, 1) if turn % 2 else (1, 0)
        result = {which: pair[which]() for which in order}
        if turn == 0:
            continue  # both warm up
        (bare_first, bare_speed), (child_first, child_speed) = result[0], result[1]
        rows.append([bare_first, bare_speed, child_first, child_speed])
        decode.append(child_speed / bare_speed)
        first.append(child_first / bare_first)
    process.stdin.close()
    process.wait()
    llm.close()
    bare_first, bare_speed, child_first, child_speed = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "decode_ratio": round(statistics.median(decode), 3),
        "first_token_ratio": round(statistics.median(first), 3),
        "bare_tokens_per_second": round(bare_speed, 1),
        "child_tokens_per_second": round(child_speed, 1),
        "bare_first_token_seconds": round(bare_first, 3),
        "child_first_token_seconds": round(child_first, 3),
        "rounds": [[round(value, 3) for value in row] for row in rows],
        "settings": {**load, "path": Path(load["path"]).name, "tokens": tokens},
    }


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    load_before = psutil.getloadavg()[0]
    result = measure(arguments.rounds, arguments.tokens)
    machine.write("decode", {"load_average_before": round(load_before, 2), **result})


if __name__ == "__main__":
    main()
