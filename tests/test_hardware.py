"""Readings of the machine: real ones here, and of GPUs through a stand-in for NVIDIA's module."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time

import pynvml
import pytest
from fake_nvml import CARD, Error, fake_nvml, process

from docmind import hardware
from docmind.hardware import HISTORY_SECONDS, NO_DRIVER, History, control_group_memory, read

FIGURES = {
    "nvmlDeviceGetUtilizationRates": ("use_percent",),
    "nvmlDeviceGetMemoryInfo": ("memory_used_bytes", "memory_total_bytes"),
    "nvmlDeviceGetTemperature": ("temperature_celsius",),
    "nvmlDeviceGetPowerUsage": ("power_watts",),
    "nvmlDeviceGetComputeRunningProcesses": ("processes",),
    "nvmlDeviceGetGraphicsRunningProcesses": ("processes",),
}


# This machine ---------------------------------------------------------------------------------------------------------


def test_a_reading_of_this_machine_is_plausible(tmp_path):
    """Real figures, and GPUs or one sentence why there are none."""
    reading = read(tmp_path)
    assert reading.physical_cores >= 1
    assert 0 < reading.ram_used_bytes <= reading.ram_total_bytes
    assert reading.disk_free_bytes > 0
    assert reading.program[0].pid == os.getpid()
    assert reading.program[0].name == "DocMind"
    assert 0 < reading.program_bytes < reading.ram_total_bytes
    assert bool(reading.gpus) != bool(reading.gpu_reason)
    if reading.gpu_reason:
        assert reading.gpu_reason.endswith(".")


def test_the_processors_use_is_what_happened_since_the_reading_before():
    """Half of two million seconds; the first reading has nothing before it."""
    first = read()
    assert first.cpu_percent is None
    busy, total = first.cpu_clock
    earlier = dataclasses.replace(first, cpu_clock=(busy - 1e6, total - 2e6))
    assert read(before=earlier).cpu_percent == pytest.approx(50, abs=0.1)
    stopped = dataclasses.replace(first, cpu_clock=(1e12, 1e12), cpu_percent=7.0)
    assert read(before=stopped).cpu_percent == 7.0, "a clock that has not moved says nothing new"


def test_children_are_named_and_counted(in_child):
    """The child that holds a backend's model has the backend's name; another child the name of its module."""
    commands = {
        "llama.cpp": ["-m", "docmind.backends.llama_cpp_child"],
        "http.server": ["-m", "http.server", "--bind", "127.0.0.1", "0"],
    }
    children = {
        name: subprocess.Popen(
            [in_child.python, *arguments], env=in_child.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for name, arguments in commands.items()
    }  # fmt: skip
    try:
        reading = read()
        found = {child.pid: child for child in reading.program}
        for name, child in children.items():
            assert found[child.pid].name == name
            assert found[child.pid].memory_bytes > 0
        assert reading.program_bytes > reading.program[0].memory_bytes
    finally:
        for child in children.values():
            child.kill()
            child.communicate()
    assert not {child.pid for child in children.values()} & {child.pid for child in read().program}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for a process's children")
def test_grandchildren_count_too():
    """A child's child is found, as psutil finds it, and also one that a thread has started."""
    import psutil

    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(1); sys.stdin.read()'])"
    started = []

    def start():
        started.append(
            subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    child = started[0]
    try:
        assert child.stdout.readline() == "1\n"  # the grandchild is there
        expected = {process.pid for process in psutil.Process(child.pid).children(recursive=True)} | {child.pid}
        assert len(expected) == 2
        assert expected <= {process.pid for process in read().program}
    finally:
        child.communicate("")


def test_the_free_space_is_that_of_the_folder_to_come(tmp_path):
    """A data folder that is not made yet will be on its parent's disk; a file is no folder."""
    assert read(tmp_path / "not" / "yet").disk_free_bytes > 0
    (tmp_path / "file").write_text("x")
    assert read(tmp_path / "file" / "below").disk_free_bytes is None
    assert read().disk_free_bytes is None


def test_importing_starts_nothing(in_child):
    """No thread, no GPU library, nothing heavy."""
    code = (
        "import sys, threading, docmind.hardware\n"
        "print(threading.active_count(), [m for m in ('pynvml', 'numpy', 'torch', 'asyncio') if m in sys.modules])"
    )
    run = subprocess.run(
        [in_child.python, "-c", code], env=in_child.environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "1 []\n"


# Memory that a control group limits -----------------------------------------------------------------------------------


def control_group(folder, version, limit, used=3000, cached=1000):
    """The files of one control group."""
    names = {2: ("memory.max", "memory.current", "inactive_file"),
             1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}[version]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 17\n{names[2]} {cached}\n")


def test_the_tightest_control_group_around_this_process_counts(tmp_path):
    """A limit further up is a limit too; memory that only caches files is not used up."""
    own = tmp_path / "cgroup"
    own.write_text("0::/user.slice/app.scope\n")
    mounted = tmp_path / "fs"
    control_group(mounted / "user.slice" / "app.scope", 2, "max")
    assert control_group_memory(mounted, own) is None
    control_group(mounted / "user.slice", 2, 8000, used=5000, cached=2000)
    assert control_group_memory(mounted, own) == (3000, 8000)
    control_group(mounted / "user.slice" / "app.scope", 2, 4000)
    assert control_group_memory(mounted, own) == (2000, 4000)


def test_older_control_groups_and_containers_are_understood(tmp_path):
    """In a container the path is the host's and only the root is there."""
    own = tmp_path / "cgroup"
    own.write_text("9:cpu,cpuacct:/x\n4:memory:/docker/0123abcd\n0::/\n")
    control_group(tmp_path / "fs" / "memory", 1, 6000)
    assert control_group_memory(tmp_path / "fs", own) == (2000, 6000)


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::/gone\n"])
def test_no_control_group_is_no_limit(tmp_path, text):
    """Nor is a file that cannot be understood or is not there."""
    own = tmp_path / "cgroup"
    own.write_text(text)
    assert control_group_memory(tmp_path, own) is None
    assert control_group_memory(tmp_path, tmp_path / "missing") is None


# GPUs -----------------------------------------------------------------------------------------------------------------


def test_a_gpu_is_read_in_the_units_of_its_names():
    """Milliwatts become watts; the driver is started once."""
    nvml = fake_nvml(CARD)
    reading = read(nvml=nvml)
    assert reading.gpu_reason is None
    (gpu,) = reading.gpus
    assert (gpu.name, gpu.use_percent) == ("NVIDIA GeForce RTX 4070", 41.0)
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (5_200_000_000, 16_000_000_000)
    assert (gpu.temperature_celsius, gpu.power_watts) == (64.0, 212.4)
    assert gpu.processes == ()
    assert gpu.missing == {}
    read(before=reading, nvml=nvml)
    assert nvml.calls["nvmlInit"] == 1


@pytest.mark.parametrize("function", FIGURES)
def test_what_one_gpu_does_not_tell_is_none_with_a_reason(function):
    """The other figures are there all the same."""
    (gpu,) = read(nvml=fake_nvml({**CARD, function: Error(pynvml.NVML_ERROR_NOT_SUPPORTED)})).gpus
    for name in {name for names in FIGURES.values() for name in names}:
        assert (getattr(gpu, name) is None) == (name in FIGURES[function]), name
    assert gpu.missing == {FIGURES[function][0]: "not supported by this GPU"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "not supported by this driver"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "not permitted"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_the_reason_of_a_missing_figure_is_in_words(code, words):
    """An error without words of ours has those of the driver."""
    (gpu,) = read(nvml=fake_nvml({**CARD, "nvmlDeviceGetPowerUsage": Error(code)})).gpus
    assert gpu.missing == {"power_watts": words}


def test_a_gpu_that_has_fallen_off_the_bus_does_not_hide_the_others():
    """It keeps its place, without figures; also when it falls after its handle was given."""
    lost = Error(pynvml.NVML_ERROR_GPU_IS_LOST)
    nvml = fake_nvml(CARD, {"nvmlDeviceGetHandleByIndex": lost}, dict.fromkeys(CARD, lost))
    there, gone, going = read(nvml=nvml).gpus
    assert there.use_percent == 41.0
    for gpu, name in ((gone, "GPU 1"), (going, "GPU 2")):
        assert gpu.name == name
        assert (gpu.use_percent, gpu.memory_used_bytes, gpu.processes) == (None, None, None)
        assert set(gpu.missing.values()) == {"the GPU is lost: restart the machine"}


def test_memory_by_process_names_ours():
    """One that computes and draws is one process; the largest comes first; Windows does not tell how much."""
    own = os.getpid()
    card = {
        **CARD,
        "nvmlDeviceGetComputeRunningProcesses": [process(own, 3_000), process(2**22 + 7, 5_000)],
        "nvmlDeviceGetGraphicsRunningProcesses": [process(own, 4_000), process(2**22 + 9, None)],
    }
    (gpu,) = read(nvml=fake_nvml(card)).gpus
    assert [(p.pid, p.name, p.memory_bytes) for p in gpu.processes] == [
        (2**22 + 7, "", 5_000), (own, "DocMind", 4_000), (2**22 + 9, "", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "installed but not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "does not let this program"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (pynvml.NVML_ERROR_UNKNOWN, "gives no readings (Unknown Error)"),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "No NVIDIA driver was found"),
    ],
)
def test_without_a_driver_there_is_one_sentence_why(code, words):
    """No GPU is a value, not an error."""
    reading = read(nvml=fake_nvml(CARD, init=code))
    assert reading.gpus == ()
    assert words in reading.gpu_reason
    assert reading.gpu_reason.endswith(".")
    assert reading.ram_total_bytes > 0


def test_a_driver_without_gpus_says_so():
    """As on a machine whose card was taken out."""
    assert read(nvml=fake_nvml()).gpu_reason == "The NVIDIA driver reports no GPU; models run on the processor."


def test_the_real_module_without_a_driver_gives_our_sentence():
    """On a machine that has a driver this reads its GPUs instead."""
    reading = read(nvml=pynvml)
    assert reading.gpus or reading.gpu_reason
    if sys.platform == "linux" and not reading.gpus:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError_LibraryNotFound:
            assert reading.gpu_reason == NO_DRIVER


def test_without_the_package_there_is_a_sentence_too(monkeypatch):
    """A missing package is no reason to fail."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read().gpu_reason == "The package nvidia-ml-py is not installed, so no GPU can be read."


def test_a_machine_without_gpu_is_not_asked_every_second():
    """Asking may start a program of the driver's package; after a minute it is asked again."""
    nvml = fake_nvml(CARD, init=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    first = read(nvml=nvml)
    second = read(before=first, nvml=nvml)
    assert nvml.calls["nvmlInit"] == 1
    assert second.gpu_reason == first.gpu_reason
    long_ago = dataclasses.replace(second, gpus_sought_at=second.gpus_sought_at - hardware.ABSENT_SECONDS - 1)
    read(before=long_ago, nvml=nvml)
    assert nvml.calls["nvmlInit"] == 2


# History --------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self):
        return self.now


def test_history_reads_at_most_once_a_second_however_many_ask():
    """Sixteen threads at once get one reading, and a second later another."""
    clock = Clock()
    nvml = fake_nvml(CARD)
    history = History(nvml=nvml, clock=clock)
    barrier = threading.Barrier(16)
    got = []

    def ask():
        barrier.wait(60)
        got.append(history.sample())

    for expected in (1, 2):
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        history.sample()
        assert nvml.calls["nvmlDeviceGetName"] == expected
        assert len(history.readings()) == expected
        clock.now += 1.0
    assert len(got) == 32


def test_a_timer_that_is_a_little_early_skips_nothing():
    """Sixty ticks that come up to 50 ms early or late are sixty readings, and twice as many askers change nothing."""
    clock = Clock()
    history = History(nvml=fake_nvml(CARD), clock=clock)
    for tick in range(60):
        clock.now = 100.0 + tick + (0.05, -0.05, 0.0)[tick % 3] * (tick > 0)
        history.sample()
        clock.now += 0.3
        history.sample()
    assert len(history.readings()) == 60


def test_history_keeps_five_minutes():
    """Older readings go, and their number is bounded."""
    clock = Clock()
    history = History(nvml=fake_nvml(CARD), clock=clock)
    for _ in range(HISTORY_SECONDS + 10):
        history.sample()
        clock.now += 1.0
    assert len(history.readings()) == HISTORY_SECONDS
    assert History().readings() == []


def test_one_that_asks_while_a_gpu_hangs_gets_the_last_reading():
    """Only one waits for a driver that does not answer."""
    clock = Clock()
    nvml = fake_nvml(CARD)
    history = History(nvml=nvml, clock=clock)
    first = history.sample()
    asked, release = threading.Event(), threading.Event()

    def hanging():
        asked.set()
        assert release.wait(60)
        return 1

    nvml.nvmlDeviceGetCount = hanging
    clock.now += 2.0
    waiting = threading.Thread(target=history.sample)
    waiting.start()
    assert asked.wait(60)
    assert history.sample() is first
    release.set()
    waiting.join(60)
    assert len(history.readings()) == 2
    assert history.readings()[-1].at_seconds <= time.monotonic()
