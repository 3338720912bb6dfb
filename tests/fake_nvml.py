"""A stand-in for NVIDIA's library on machines without a GPU: the module `pynvml` as its documentation has it.

Errors and constants are those of the real module (nvidia-ml-py), the functions are made up: each GPU is a dictionary of
what its functions return, and an error code stands for a function that raises.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pynvml

CARD = {
    "nvmlDeviceGetName": "NVIDIA GeForce RTX 4070",
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=41, memory=12),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=16_000_000_000, free=10_800_000_000, used=5_200_000_000),
    "nvmlDeviceGetTemperature": 64,
    "nvmlDeviceGetPowerUsage": 212_400,  # milliwatts
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetGraphicsRunningProcesses": [],
}


class Error(int):
    """An NVML error code: the function of that name raises it."""


def process(pid, used):
    """A process on a GPU; `used` is None where the driver does not tell (Windows)."""
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def fake_nvml(*cards, init=None):
    """The module, with so many GPUs. `init` is an error code that nvmlInit raises. `calls` counts calls by name."""
    module = ModuleType("pynvml")
    for name, value in vars(pynvml).items():
        if name.startswith(("NVML_", "NVMLError")):
            setattr(module, name, value)
    module.calls = {}
    module.cards = list(cards)
    is_initialized = False

    def counted(name):
        module.calls[name] = module.calls.get(name, 0) + 1

    def nvml_init():
        nonlocal is_initialized
        counted("nvmlInit")
        if init is not None:
            raise pynvml.NVMLError(init)
        is_initialized = True

    def nvml_device_get_count():
        if not is_initialized:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        return len(module.cards)

    def nvml_device_get_handle_by_index(index):
        return _answer(module.cards[index].get("nvmlDeviceGetHandleByIndex", module.cards[index]))

    def question(name):
        def asked(handle, *_):
            counted(name)
            return _answer(handle[name])

        return asked

    module.nvmlInit = nvml_init
    module.nvmlDeviceGetCount = nvml_device_get_count
    module.nvmlDeviceGetHandleByIndex = nvml_device_get_handle_by_index
    for name in CARD:
        setattr(module, name, question(name))
    return module


def _answer(value):
    if isinstance(value, Error):
        raise pynvml.NVMLError(value)
    return value
