"""What a result was measured on, and where it is written."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "llama-index-core",
    "llama-cpp-python",
    "sentence-transformers",
    "torch",
    "pypdfium2",
    "pypdf",
    "numpy",
    "streamlit",
    "ollama",
)


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def write(name: str, result: dict[str, Any]) -> None:
    """Print the result and write it to benchmarks/results/NAME.json with the machine and the versions."""
    machine = {
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    versions = {package: metadata.version(package) for package in PACKAGES}
    record = {"measured_at": datetime.now(UTC).date().isoformat(), "machine": machine, "versions": versions, **result}
    print(json.dumps(result, indent=2))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
