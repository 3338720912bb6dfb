"""How threads should wait and how many should write: the reasons for two settings of the llama.cpp backend.

    python benchmarks/threads.py [--rounds 3] [--busy 2]

Threads of one computation either spin or sleep (OMP_WAIT_POLICY=passive) while they wait for each other; with spinning
they lose their turn whenever another program runs. Each setting reads 128 tokens and writes 10, in a process of its
own, in turns, first as the machine is and then beside so many busy loops. Medians, tokens per second. Linux builds of
llama-cpp-python use OpenMP; where a build does not, the setting has no effect.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import psutil

from docmind.backends import llama_cpp
from docmind.config import Config

PROBE = """
import json, sys, time
import llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_batch=128, n_ubatch=128, verbose=False)
figures = {}
for threads in json.loads(sys.argv[2]) * 2:
    llm._ctx.set_n_threads(threads, threads)
    llm.reset()
    started = time.perf_counter()
    llm.eval(list(range(100, 228)))
    figures.setdefault(f"reading_{threads}", []).append(128 / (time.perf_counter() - started))
    for token in range(10):
        started = time.perf_counter()
        llm.eval([500 + token])
        seconds = time.perf_counter() - started
        figures.setdefault(f"writing_{threads}", []).append(1 / seconds)
        if seconds > 1:
            break
print(json.dumps(figures))
"""


def probe(path, policy, threads):
    """The figures of one process under one policy."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy == "sleep":
        environment["OMP_WAIT_POLICY"] = "passive"
    command = [sys.executable, "-c", PROBE, str(path), json.dumps(threads)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def measure(rounds, busy):
    """Medians for both policies, beside so many busy loops."""
    found = llama_cpp.models(Config(home=Path(tempfile.mkdtemp())))
    path = next(model.path for model in found if model.name == llama_cpp.STARTER)
    threads = sorted({1, psutil.cpu_count(logical=False) or 1})
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    collected = {}
    try:
        for _ in range(rounds):
            for policy in ("spin", "sleep"):
                for name, values in probe(path, policy, threads).items():
                    collected.setdefault(policy, {}).setdefault(name, []).extend(values)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    return {
        policy: {name: round(statistics.median(values), 1) for name, values in sorted(figures.items())}
        for policy, figures in collected.items()
    }


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=psutil.cpu_count(logical=False) or 1)
    arguments = parser.parse_args()
    load = round(psutil.getloadavg()[0], 2)
    result = {"as_it_is": measure(arguments.rounds, 0), "beside_busy_loops": measure(arguments.rounds, arguments.busy)}
    machine.write("threads", {"load_average_before": load, "busy_loops": arguments.busy, **result})


if __name__ == "__main__":
    main()
