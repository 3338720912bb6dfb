"""What the machine is doing: GPU, processor, memory, disk, and what this program takes of them. Knows no model.

`read` gives one reading in a few milliseconds and starts nothing; `History` keeps the last five minutes of whoever
asks. Nothing here raises: what cannot be read is None, with a reason in words. GPUs are read through NVIDIA's NVML.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from docmind.backends import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HISTORY_SECONDS = 300
# Asking a machine without a driver again may start a helper program of the driver's package each time.
ABSENT_SECONDS = 60.0
NO_DRIVER = "No NVIDIA driver was found; models run on the processor."


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process; on a GPU, its part of the GPU's memory."""

    pid: int
    name: str  # "DocMind", a backend's name for its child, or the program's name; "" when it is not known
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What it does not tell is None, and `missing` says why, by the name of the field."""

    name: str
    use_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    processes: tuple[ProcessMemory, ...] | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the machine.

    Attributes:
        at_seconds: When, on `time.monotonic`'s clock.
        gpu_reason: One sentence why `gpus` is empty; None when it is not.
        cpu_percent: Of all processors, since the reading before; None for the first one.
        ram_used_bytes, ram_total_bytes: Of the machine, or of the control group that limits this program (Linux).
        program: This program first, then its children, largest first.
        cpu_clock: Busy and all seconds of the processors so far, for the next reading.
    """

    at_seconds: float
    gpus: tuple[Gpu, ...]
    gpu_reason: str | None
    cpu_percent: float | None
    physical_cores: int
    ram_used_bytes: int
    ram_total_bytes: int
    program: tuple[ProcessMemory, ...]
    disk_free_bytes: int | None
    cpu_clock: tuple[float, float]
    gpus_sought_at: float

    @property
    def program_bytes(self) -> int:
        """Memory of this program with its children."""
        return sum(process.memory_bytes or 0 for process in self.program)


def read(data_folder: Path | None = None, *, before: Readings | None = None, nvml: Any = None) -> Readings:
    """One reading.

    Args:
        data_folder: The free space of its disk is read; None: not read.
        before: The reading before this one. The processor's use is what happened between them, and a machine that
            had no GPU then is not asked again for a minute.
        nvml: The module `pynvml`, or one that behaves like it; None: `pynvml`, if it is installed.
    """
    now = time.monotonic()
    is_absent = before is not None and before.gpu_reason is not None and now - before.gpus_sought_at < ABSENT_SECONDS
    program = _program()
    gpus: tuple[Gpu, ...]
    if before is not None and is_absent:
        gpus, reason, sought_at = (), before.gpu_reason, before.gpus_sought_at
    else:
        gpus, reason = _gpus(nvml, {process.pid: process.name for process in program})
        sought_at = now
    clock = _cpu_clock()
    used, total = _memory()
    return Readings(
        at_seconds=now,
        gpus=gpus,
        gpu_reason=reason,
        cpu_percent=None if before is None else _share(before.cpu_clock, clock, before.cpu_percent),
        physical_cores=_physical_cores(),
        ram_used_bytes=used,
        ram_total_bytes=total,
        program=program,
        disk_free_bytes=None if data_folder is None else _disk_free(data_folder),
        cpu_clock=clock,
        gpus_sought_at=sought_at,
    )


class History:
    """Five minutes of readings, taken when somebody asks and at most one a second, however many ask.

    Thread-safe. When nobody asks nothing is read, and there is a gap.
    """

    def __init__(
        self, data_folder: Path | None = None, *, nvml: Any = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._data_folder = data_folder
        self._nvml = nvml
        self._clock = clock
        self._due = 0.0
        self._lock = threading.Lock()
        self._readings: collections.deque[Readings] = collections.deque(maxlen=HISTORY_SECONDS)

    def sample(self) -> Readings:
        """A reading of now, or the last one when that is not a second old or somebody else is reading.

        A GPU that has fallen off its bus can hold a reading up for seconds; only one thread waits for it.
        """
        if not self._lock.acquire(blocking=not self._readings):
            return self._readings[-1]
        try:
            now = self._clock()
            if self._readings and now < self._due:
                return self._readings[-1]
            # A grid of seconds, a fifth ahead of the one who asks: a timer that is early now and then skips nothing.
            self._due = max(self._due + 1.0, now + 0.8)
            last = self._readings[-1] if self._readings else None
            self._readings.append(read(self._data_folder, before=last, nvml=self._nvml))
            return self._readings[-1]
        finally:
            self._lock.release()

    def readings(self) -> list[Readings]:
        """Those of the last five minutes, oldest first."""
        kept = list(self._readings)
        return [reading for reading in kept if reading.at_seconds > kept[-1].at_seconds - HISTORY_SECONDS]


# GPUs -----------------------------------------------------------------------------------------------------------------


def _gpus(nvml: Any, own: Mapping[int, str]) -> tuple[tuple[Gpu, ...], str | None]:
    """All NVIDIA GPUs, or why there are none. `own` names the processes of this program."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return (), "The package nvidia-ml-py is not installed, so no GPU can be read."
    try:
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError_Uninitialized:  # the first time, or the driver was restarted
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return (), _absence(nvml, error)
    if not count:
        return (), "The NVIDIA driver reports no GPU; models run on the processor."
    return tuple(_gpu(nvml, index, own) for index in range(count)), None


def _absence(nvml: Any, error: Exception) -> str:
    """Why no GPU can be read, in one sentence."""
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        if sys.platform == "darwin":
            return "No NVIDIA driver was found; what a Mac's own GPU does is not shown."
        return NO_DRIVER
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "The NVIDIA driver is installed but not loaded; models run on the processor."
    if code == nvml.NVML_ERROR_NO_PERMISSION:
        return "The NVIDIA driver does not let this program read the GPU."
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "The NVIDIA driver was updated; restart the machine to use the GPU again."
    return f"The NVIDIA driver gives no readings ({error})."


def _gpu(nvml: Any, index: int, own: Mapping[int, str]) -> Gpu:
    """One GPU; every figure by itself, since drivers and models differ in what they tell."""
    missing: dict[str, str] = {}

    def asked(name: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except nvml.NVMLError as error:
            missing[name] = _why(nvml, error)
            return None

    handle = asked("gpu", lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return Gpu(f"GPU {index}", missing=missing)
    name = asked("name", lambda: nvml.nvmlDeviceGetName(handle))
    use = asked("use_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    memory = asked("memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    # The names are of long standing: newer ones are unknown to the drivers of older cards.
    temperature = asked("temperature_celsius", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    milliwatts = asked("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    processes = asked(
        "processes",
        lambda: [
            *nvml.nvmlDeviceGetComputeRunningProcesses(handle), *nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
        ],
    )  # fmt: skip
    return Gpu(
        name=name or f"GPU {index}",
        use_percent=None if use is None else float(use.gpu),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        processes=None if processes is None else _on_gpu(processes, own),
        temperature_celsius=None if temperature is None else float(temperature),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        missing=missing,
    )


def _why(nvml: Any, error: Exception) -> str:
    """Why one figure is missing, to stand after its name."""
    known = {
        nvml.NVML_ERROR_NOT_SUPPORTED: "not supported by this GPU",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "not supported by this driver",
        nvml.NVML_ERROR_NO_PERMISSION: "not permitted",
        nvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost: restart the machine",
    }
    return known.get(getattr(error, "value", None), str(error))


def _on_gpu(processes: list[Any], own: Mapping[int, str]) -> tuple[ProcessMemory, ...]:
    """Memory by process, largest first. One that computes and draws is listed twice by the driver.

    Windows does not tell the memory of a process. In a container the numbers may be those of the host.
    """
    found: dict[int, ProcessMemory] = {}
    for process in processes:
        known = found.get(process.pid)
        memory = process.usedGpuMemory
        if known is None or (known.memory_bytes or 0) < (memory or 0):
            name = own[process.pid] if process.pid in own else _name(process.pid)
            found[process.pid] = ProcessMemory(process.pid, name, memory)
    return tuple(sorted(found.values(), key=lambda process: -(process.memory_bytes or 0)))


def _name(pid: int) -> str:
    """The program's name; "" when it has ended or belongs to somebody else."""
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return ""


# The processor, memory and disk ---------------------------------------------------------------------------------------


def _cpu_clock() -> tuple[float, float]:
    """Busy and all seconds of the processors so far.

    psutil's own `cpu_percent` remembers by thread, and every run of a page is a thread of its own.
    """
    times = psutil.cpu_times()
    # Linux counts a guest's time in user and nice too; waiting for the disk is not being busy.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _share(before: tuple[float, float], now: tuple[float, float], otherwise: float | None) -> float | None:
    """Percent busy between two clocks; `otherwise` when the clock has not moved."""
    elapsed = now[1] - before[1]
    if elapsed <= 0:
        return otherwise
    return round(max(0.0, min(100.0, 100 * (now[0] - before[0]) / elapsed)), 1)


@functools.lru_cache(maxsize=1)
def _physical_cores() -> int:
    """Cores without hyper-threads; on many cores counting them takes milliseconds."""
    return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def _memory() -> tuple[int, int]:
    """Used and all bytes of memory this program lives in."""
    memory = psutil.virtual_memory()
    limited = control_group_memory() if sys.platform == "linux" else None
    if limited is not None and limited[1] < memory.total:
        return limited
    return int(memory.total - memory.available), int(memory.total)


def control_group_memory(
    mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[int, int] | None:
    """Used and allowed bytes of the tightest control group around this process; None without one.

    Source: Linux, admin-guide/cgroup-v2 (memory.max, memory.current) and cgroup-v1/memory. What only caches files is
    given back when memory gets short, so it does not count as used.
    """
    tightest: tuple[int, int] | None = None
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="ascii", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            names = _FILES_V1 if controllers else _FILES_V2
            root = mounted / controllers
            folder = root / path.lstrip("/")
            # In a container the path may be the host's: then only the root can be seen.
            for group in [folder, *[parent for parent in folder.parents if parent.is_relative_to(root)]]:
                found = _group(group, names)
                if found is not None and (tightest is None or found[1] < tightest[1]):
                    tightest = found
    return tightest


_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_FILES_V2 = ("memory.max", "memory.current", "inactive_file")


def _group(folder: Path, names: tuple[str, str, str]) -> tuple[int, int] | None:
    """Used and allowed bytes of one control group; None when it has no limit or cannot be read."""
    try:
        limit = (folder / names[0]).read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((folder / names[1]).read_text(encoding="ascii"))
        figures = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, used - int(figures.get(names[2], 0))), int(limit)
    except (OSError, ValueError):
        return None


def _disk_free(folder: Path) -> int | None:
    """Bytes free where the data folder is, or will be."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


# This program ---------------------------------------------------------------------------------------------------------


def _program() -> tuple[ProcessMemory, ...]:
    """This process and all its children, with the memory each holds (a model's file mapped into memory included)."""
    own = psutil.Process()
    children = []
    for pid in _descendants(own):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            child = psutil.Process(pid)
            children.append(ProcessMemory(pid, _child_name(child), int(child.memory_info().rss)))
    children.sort(key=lambda child: -(child.memory_bytes or 0))
    return (ProcessMemory(own.pid, "DocMind", int(own.memory_info().rss)), *children)


def _descendants(own: psutil.Process) -> list[int]:
    """Process ids of the children and theirs.

    psutil looks at every process of the machine, several milliseconds on a full desktop; Linux can be asked directly.
    """
    if not Path(f"/proc/{own.pid}/task/{own.pid}/children").exists():
        return [child.pid for child in own.children(recursive=True)]
    found: list[int] = []
    asked = [own.pid]
    while asked:
        pid = asked.pop()
        found.append(pid)
        # A process or a thread of it may have ended since it was listed.
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    asked.extend(int(child) for child in (task / "children").read_text(encoding="ascii").split())
    return found[1:]


def _child_name(child: psutil.Process) -> str:
    """What a child does: a backend's name for the one that holds its model, else the module or program it runs."""
    command = child.cmdline()
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    for backend, path in REGISTRY.items():
        if module.startswith(path):
            return backend
    return module or str(child.name())
