"""The live panel: what the machine is doing now, and for the last five minutes.

`draw_panel` is the whole of it, `draw_strip` one line for the sidebar. Both are fragments of their own that run once a
second, and share one history of readings in the process, however many pages show it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind.hardware import HISTORY_SECONDS, History
from pages.parts.frame import config
from pages.parts.safe import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from docmind.hardware import Gpu, ProcessMemory, Readings

TICK_SECONDS = 1.0
CHART_HEIGHT_PIXELS = 96
LINES_HEIGHT_PIXELS = 128  # five lines
BARS = " ▁▂▃▄▅▆▇█"
BAR_SECONDS = 5  # of the sidebar's tiny chart
GAP_SECONDS = 3.0  # nobody looked for so long: the line is broken
LISTED_PROCESSES = 3  # the rest is one line, so that the panel keeps its height


@st.fragment(run_every=TICK_SECONDS)
def draw_strip() -> None:
    """One line: "GPU 41 % 5.2/16 GB", or processor and memory where no GPU can be read."""
    history = _history(str(config().home))
    now = history.sample()
    if now.gpus:
        bars = _bars(history, lambda reading: _mean(gpu.use_percent for gpu in reading.gpus))
        label = "GPU" if len(now.gpus) == 1 else f"{len(now.gpus)} GPUs"
        use = _mean(gpu.use_percent for gpu in now.gpus)
        memory = _used_of(
            sum(gpu.memory_used_bytes or 0 for gpu in now.gpus), sum(gpu.memory_total_bytes or 0 for gpu in now.gpus)
        )
        text = f"{label} {_percent(use)} · {memory}"
    else:
        bars = _bars(history, lambda reading: reading.cpu_percent)
        text = f"CPU {_percent(now.cpu_percent)} · RAM {_used_of(now.ram_used_bytes, now.ram_total_bytes)}"
    st.caption(f"{bars} {text}")


@st.fragment(run_every=TICK_SECONDS)
def draw_panel() -> None:
    """Every GPU, the processor, memory and disk, with five minutes of history."""
    history = _history(str(config().home))
    now, past = history.sample(), history.readings()
    for index, gpu in enumerate(now.gpus):
        _draw_gpu(index, gpu, past)
    _draw_machine(now, past)
    if now.gpu_reason:
        st.caption(plain(now.gpu_reason))


@st.cache_resource(show_spinner=False)
def _history(home: str) -> History:
    """The readings of this process."""
    return History(Path(home))


# Rows -----------------------------------------------------------------------------------------------------------------


def _draw_gpu(index: int, gpu: Gpu, past: Sequence[Readings]) -> None:
    """A GPU: use, memory, and the rest in words."""

    def of(reading: Readings) -> Gpu | None:
        return reading.gpus[index] if index < len(reading.gpus) else None

    def use(reading: Readings) -> float | None:
        found = of(reading)
        return found.use_percent if found else None

    def memory(reading: Readings) -> float | None:
        found = of(reading)
        return _share(found.memory_used_bytes, found.memory_total_bytes) if found else None

    first, second, third = st.columns([2, 2, 1.6], gap="medium")
    with first:
        _draw_meter(f"GPU use · {plain(gpu.name)}", _percent(gpu.use_percent), past, use)
    with second:
        _draw_meter("GPU memory", _used_of(gpu.memory_used_bytes, gpu.memory_total_bytes), past, memory)
    lines = [
        f"{_figure(gpu.temperature_celsius, '°C')} · {_figure(gpu.power_watts, 'W')}",
        *_processes(gpu.processes or ()),
        *(f"{words} not known: {plain(gpu.missing[name])}" for name, words in _MISSING.items() if name in gpu.missing),
    ]
    with third:
        _draw_lines(lines)


_MISSING = {
    "gpu": "Its state is",
    "use_percent": "Use is",
    "memory_used_bytes": "Memory is",
    "processes": "Memory by process is",
    "temperature_celsius": "Temperature is",
    "power_watts": "Power is",
}


def _draw_machine(now: Readings, past: Sequence[Readings]) -> None:
    """Processor and memory, what this program takes of it, and the disk."""
    first, second, third = st.columns([2, 2, 1.6], gap="medium")
    cores = f"{now.physical_cores} {'core' if now.physical_cores == 1 else 'cores'}"
    with first:
        _draw_meter(f"Processor · {cores}", _percent(now.cpu_percent), past, lambda reading: reading.cpu_percent)
    with second:
        _draw_meter(
            "Memory",
            _used_of(now.ram_used_bytes, now.ram_total_bytes),
            past,
            lambda reading: _share(reading.ram_used_bytes, reading.ram_total_bytes),
        )
    with third:
        free = "not known" if now.disk_free_bytes is None else f"{gigabytes(now.disk_free_bytes)} GB free"
        _draw_lines([*_processes(now.program), f"Disk {free}"])


def _draw_meter(label: str, value: str, past: Sequence[Readings], figure: Callable[[Readings], float | None]) -> None:
    """A figure and its last five minutes in percent."""
    st.metric(label, value)
    st.vega_lite_chart(
        _series(past, figure), _CHART, height=CHART_HEIGHT_PIXELS, alt=f"{label}, percent, the last five minutes"
    )


def _draw_lines(lines: Sequence[str]) -> None:
    """Small lines in a place of fixed height: a process that comes or goes moves nothing."""
    with st.container(height=LINES_HEIGHT_PIXELS, border=False):
        st.caption("  \n".join(lines))


def _processes(processes: Sequence[ProcessMemory]) -> list[str]:
    """Memory by process, the largest by name."""
    shown, rest = processes[:LISTED_PROCESSES], processes[LISTED_PROCESSES:]
    lines = [
        f"{plain(process.name) or f'process {process.pid}'} "
        + ("–" if process.memory_bytes is None else f"{gigabytes(process.memory_bytes)} GB")
        for process in shown
    ]
    if rest:
        lines.append(f"{len(rest)} more {gigabytes(sum(process.memory_bytes or 0 for process in rest))} GB")
    return lines


# The chart: its specification never changes, only its few numbers are sent. -------------------------------------------

_CHART: dict[str, Any] = {
    "mark": {"type": "area", "opacity": 0.25, "line": {"strokeWidth": 1.5}, "interpolate": "monotone"},
    "encoding": {
        "x": {
            "field": "ago", "type": "quantitative", "title": None,
            "scale": {"domain": [-HISTORY_SECONDS, 0], "nice": False},
            "axis": {
                "values": [-300, -240, -180, -120, -60, 0], "grid": False, "labelFlush": True,
                "labelExpr": "datum.value == 0 ? 'now' : datum.value == -300 ? '5 min ago' : ''",
            },
        },
        "y": {
            "field": "percent", "type": "quantitative", "title": None, "scale": {"domain": [0, 100]},
            "axis": {"values": [0, 50, 100], "labelExpr": "datum.label + ' %'"},
        },
    },
}  # fmt: skip


def _series(past: Sequence[Readings], figure: Callable[[Readings], float | None]) -> Any:
    """Seconds ago and percent, as an Arrow table: the form a browser gets, so nothing is converted."""
    pa: Any = importlib.import_module("pyarrow")  # here, so that the first paint does not wait for it
    latest = past[-1].at_seconds
    ago: list[float] = []
    percent: list[float | None] = []
    for reading in past:
        seconds = reading.at_seconds - latest
        if ago and seconds - ago[-1] > GAP_SECONDS:
            ago.append(seconds - 0.1)
            percent.append(None)
        ago.append(seconds)
        percent.append(figure(reading))
    return pa.table({"ago": pa.array(ago, pa.float32()), "percent": pa.array(percent, pa.float32())})


# Figures in words -----------------------------------------------------------------------------------------------------


def gigabytes(count: float) -> str:
    """Bytes as GB with one decimal, without the unit."""
    return f"{count / 1e9:.1f}"


def _used_of(used: float | None, total: float | None) -> str:
    """ "5.2/16 GB"."""
    if used is None or not total:
        return "–"
    return f"{gigabytes(used)}/{total / 1e9:.0f} GB" if total >= 1e10 else f"{gigabytes(used)}/{gigabytes(total)} GB"


def _percent(value: float | None) -> str:
    """ "41 %"; a figure that is not known yet takes the same room."""
    return "– %" if value is None else f"{value:.0f} %"


def _figure(value: float | None, unit: str) -> str:
    return f"– {unit}" if value is None else f"{value:.0f} {unit}"


def _share(used: int | None, total: int | None) -> float | None:
    return None if used is None or not total else 100 * used / total


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _bars(history: History, figure: Callable[[Readings], float | None]) -> str:
    """The last seconds as bars of text; as many characters whatever is known."""
    values = [figure(reading) for reading in history.readings()[-BAR_SECONDS:]]
    bars = "".join(BARS[1 + round((value or 0) / 100 * (len(BARS) - 2))] for value in values)
    return bars.rjust(BAR_SECONDS, BARS[1])
