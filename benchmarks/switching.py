"""Looking for backends, switching between two, and going on with an answer that was cut.

`python benchmarks/switching.py`: the starter in its child process, and the tests' Ollama stand-in in a process of its
own, in which the starter writes too, so that both sides compute the same. Each figure has its measure beside it, in
one run:

- detection: all backends at once, beside the slowest one alone;
- switch: from the question to the first word when the model is another than before, beside the same when it is not.
  The starter stays in memory meanwhile; a model of our own above half a gigabyte gives it back and is loaded anew
  (`to_llama_cpp_large`: measured with the starter, as if it were one);
- continue: from the click to the next word of an answer that was cut, beside the first word of its beginning.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from machine import write

from docmind import answer as answers
from docmind import routing
from docmind.backends import REGISTRY, backend, llama_cpp
from docmind.config import Config
from docmind.events import TextDelta
from docmind.library import Library

ROUNDS = 8
QUESTION = "How much did the repairs of the north quay cost, and when did they end?"
OURS = {"backend": "llama.cpp", "model": llama_cpp.STARTER}
# Answers at once: chosen by hand it would drive the agent, whose first words are thoughts.
THEIRS = {"profile": "theirs"}
PROFILES = {
    "theirs": 'backend = "ollama"\nmodel = "qwen3:4b"\nagent = "direct"\nfallbacks = []\n',
    "short": f'backend = "llama.cpp"\nmodel = "{llama_cpp.STARTER}"\ntemperature = 0.0\nmax_output_tokens = 8\n'
    "fallbacks = []\n",
}


def main() -> None:
    """Measures and prints."""
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root), str(root / "tests")]
    from conftest import write_files

    with tempfile.TemporaryDirectory() as folder:
        library = Library(Config(home=Path(folder) / "home"))
        for _ in library.add(write_files(Path(folder) / "files")):
            pass
        library.config.model_folders[0].mkdir(parents=True, exist_ok=True)
        for name, text in PROFILES.items():
            (library.config.model_folders[0] / f"{name}.toml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "tests.servers.ollama", "--starter"]
        server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        try:
            os.environ["OLLAMA_HOST"] = server.stdout.readline().strip()
            result = {
                "detection": detection(library.config),
                "switch": switches(library),
                "continue": continuing(library),
            }
        finally:
            server.kill()
            server.wait()
        llama_cpp.close_all()
    write("switching", result)


def detection(config: Config) -> dict:
    """Seconds, all at once and each alone."""

    def look(name: str) -> float:
        started = time.perf_counter()
        backend(name).detect(config)
        return time.perf_counter() - started

    def look_at_all() -> float:
        started = time.perf_counter()
        threads = [threading.Thread(target=look, args=(name,)) for name in REGISTRY]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    look_at_all()  # the first time imports what each needs
    alone = {name: median([look(name) for _ in range(ROUNDS)]) for name in REGISTRY}
    together = median([look_at_all() for _ in range(ROUNDS)])
    return {
        "all_seconds": together,
        "alone_seconds": alone,
        "all_by_slowest": round(together / max(alone.values()), 2),
    }


def first_word(library: Library, **chosen: str) -> float:
    """Seconds from the question to the first word."""
    started = time.perf_counter()
    stop = threading.Event()
    stream = answers.ask(library, QUESTION, stop=stop, **chosen)
    event = None
    for event in stream:
        if isinstance(event, TextDelta):
            seconds = time.perf_counter() - started
            stop.set()
            list(stream)
            return seconds
    raise AssertionError(event)


def switches(library: Library) -> dict:
    """Seconds to the first word, staying and switching, by where it goes."""
    rows = {}
    ways = (
        ("to_llama_cpp", OURS, THEIRS, routing.SMALL_BYTES),
        ("to_llama_cpp_large", OURS, THEIRS, 0),
        ("to_ollama", THEIRS, OURS, routing.SMALL_BYTES),
    )
    for name, here, other, small_bytes in ways:
        routing.SMALL_BYTES = small_bytes
        staying, switching = [], []
        for _ in range(ROUNDS):
            first_word(library, **other)
            switching.append(first_word(library, **here))
            staying.append(first_word(library, **here))
        rows[name] = {
            "staying_seconds": median(staying),
            "switching_seconds": median(switching),
            "added_seconds": round(median(switching) - median(staying), 3),
        }
    return rows


def continuing(library: Library) -> dict:
    """Seconds to the next word of an answer that was cut, beside those to its first."""
    first, following = [], []
    for number in range(ROUNDS):
        answer = list(answers.ask(library, QUESTION, profile="short", chat=f"c{number}"))[-1]
        assert answer.reason == "cut_at_limit", answer
        first.append(answer.timings["first_token_s"])
        started = time.perf_counter()
        words = (e for e in answers.ask(library, "", chat=f"c{number}", continues=True) if isinstance(e, TextDelta))
        next(words)  # what was written before
        next(words)
        following.append(time.perf_counter() - started)
        list(words)
    return {
        "first_word_seconds": median(first),
        "next_word_seconds": median(following),
        "next_by_first": round(median(following) / median(first), 2),
    }


def median(values: list[float]) -> float:
    """The middle, in milliseconds' precision."""
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
