"""Seconds of `import docmind` in a new process, beside a bare Python in the same run.

    python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time

import machine

ROUNDS = 15


def seconds(code: str) -> float:
    """Of one new process that runs the code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    seconds("import docmind")  # write the byte code
    rows = [(seconds("pass"), seconds("import docmind")) for _ in range(ROUNDS)]
    bare, ours = (statistics.median(column) for column in zip(*rows, strict=True))
    machine.write(
        "import_time",
        {
            "bare_python_seconds": round(bare, 4),
            "import_docmind_seconds": round(ours, 4),
            "ratio": round(statistics.median(b / a for a, b in rows), 2),
            "rounds": ROUNDS,
        },
    )


if __name__ == "__main__":
    main()
