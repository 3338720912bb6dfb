"""A model in a process of its own: the parent's side, for every backend that holds its model itself.

It starts the process, talks to it over a pipe (the protocol is told in `child_side.py`), lets one call run and one
wait, stops a call within a second, ends a process that hangs, and says what a crash means. A backend subclasses
`Child` with what is particular to it. Knows no backend.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docmind.backends.child_side import lacks_memory
from docmind.errors import (
    BackendBusy,
    BackendError,
    BackendUnavailable,
    ContextTooLong,
    DocMindError,
    ModelCrashed,
    ModelDamaged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_STOP_SECONDS = 0.8  # then the child is ended, so that a stop takes less than one second in all
_TEMPLATE_SECONDS = 10.0  # for the chat template and tokens of one call; milliseconds are usual
_LOAD_STALL_SECONDS = 180.0  # without progress while loading
# Without a sign of a call that is computed: a batch of the prompt that was read, or a word. Where the whole prompt is
# one batch, reading it on a slow processor takes minutes. The same as the usual deadlines of model servers.
_SILENT_SECONDS = {"reading": 300.0, "writing": 60.0}
_REPLY_BYTES = 1 << 20  # of one line of the child; it carries a few words, or the counts of many passages
_CRASHES_BEFORE_PAUSE, _PAUSE_SECONDS = 3, 30.0
_STDERR_LINES = 60


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
    """A model in a process of its own: at most one call runs and one waits. All methods are thread-safe.

    A backend gives the class attributes: `module` is run as `python -m`, `label` is what computes ("llama.cpp"), in
    messages, `reinstall` the command that mends its installation, `hints` what to do about a reason of its own.
    """

    module: ClassVar[str]
    label: ClassVar[str]
    reinstall: ClassVar[str]
    hints: ClassVar[Mapping[str, str]] = {}
    environment: ClassVar[Mapping[str, str]] = {}  # of the process, where ours does not say otherwise

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
    def memory_bytes(self) -> int:
        """What the process holds in memory, the parts of the model's file that it has read included; 0 without one."""
        import psutil

        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.Error:
            return 0

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

    def patience(self, phase: str) -> float | None:
        """Seconds in which a call must give a sign, in this phase; None: its deadline is another's."""
        return _SILENT_SECONDS.get(phase)

    def give_up(self, call: Call) -> None:
        """End the process of a call that has been silent for too long; the call ends with that error."""
        process = self._process
        if process is not None and call.id in process.pending:
            process.end(self._silent)

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
        process = self._process = _Process(_spawn(self.module, self.environment), load_id=0)
        process.arm(_LOAD_STALL_SECONDS, self._stalled_load)
        errors = _in_thread(_keep_tail, process.popen.stderr, process.stderr)
        _in_thread(self._read, process, errors)
        process.write({"id": process.load_id, "do": "load", **self.load})
        return process

    def _read(self, process: _Process, errors: threading.Thread) -> None:
        """Hand each reply to its call, until the process ends. Runs in a thread of its own."""
        assert process.popen.stdout is not None
        while line := process.popen.stdout.readline(_REPLY_BYTES):
            if not line.endswith(b"\n") and len(line) < _REPLY_BYTES:  # a last line cut short by a crash
                break
            try:
                reply = json.loads(line)
                request_id = reply["id"]
            except (ValueError, TypeError, LookupError, RecursionError):
                process.end(self._garbled)  # it lives on and nobody knows what it does
                break
            if isinstance(request_id, int):
                self._handle(process, reply)
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
            return BackendUnavailable(message, f"Run: {self.reinstall}", reason=reason)
        hints = {
            "out_of_memory": "Choose a smaller model, or lower context_window.",
            "template_failed": "Choose another model; this one's chat template does not fit these messages.",
            "empty_prompt": "Ask something.",
            **self.hints,
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
                f"{self.label} crashed with {self.name} (exit {code}).",
                f"If every model does this, the installation does not fit this machine: {self.reinstall} "
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

    def _silent(self) -> DocMindError:
        return BackendError(
            f"{self.label} computed with {self.name} and gave no sign for too long.",
            "Ask again; it is started anew. If it happens again, choose a smaller model.", reason="stalled",
        )  # fmt: skip

    def _garbled(self) -> DocMindError:
        return ModelCrashed(
            f"The process with {self.name} sent something that is no reply, and was ended.", "Ask again; it restarts."
        )

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
                f"Choose another model, or wait {_PAUSE_SECONDS:.0f} seconds. "
                f"If every model does this: {self.reinstall}",
                reason="crash_loop",
            )


def _spawn(module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A new child process, with nothing loaded."""
    root = str(Path(__file__).parent.parent.parent)
    variables = {
        # Threads that wait for each other sleep instead of spinning. When other programs use the cores too, spinning
        # cost two orders of magnitude: 0.3 to 2.5 tokens/s against 57 (two threads, two busy cores).
        "OMP_WAIT_POLICY": "passive",
        **environment,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    try:
        return subprocess.Popen(
            # -P: a file named json.py in the working folder must not be imported.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
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


def physical_cores() -> int:
    """Cores without hyper-threads, which slow computing down."""
    import psutil

    return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def _keep_tail(pipe: Any, tail: collections.deque[str]) -> None:
    """The last lines of standard error; `readline` with a limit, so that a line without end cannot fill memory."""
    while line := pipe.readline(4096):
        tail.append(line.decode("utf-8", errors="replace").rstrip())


def _in_thread(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Run something beside; daemon, because the child ends with this process anyway."""
    thread = threading.Thread(target=function, args=arguments, name=f"model {function.__name__}", daemon=True)
    thread.start()
    return thread


class Children:
    """The children of one backend in this process: one per model and way of loading it."""

    def __init__(self, kind: type[Child]) -> None:
        self._kind = kind
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        atexit.register(self.close_all)

    def child_for(self, load: dict[str, Any], files: Iterable[Path]) -> Child:
        """The child for a model and a way of loading it; the process is started by its first use.

        Args:
            load: The request that loads it, with its `path`.
            files: Of the model: when one of them has changed it is another model.
        """
        versions = [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]
        key = json.dumps([load, versions])
        with self._lock:
            return self._children.setdefault(key, self._kind(load))

    def close_unused(self, above_bytes: int = -1) -> None:
        """End the children that no living LLM object names and that are idle. `build` does this by itself.

        Args:
            above_bytes: Only those that hold more memory, or whose model's files are larger: on a GPU the process
                itself holds little.
        """
        with self._lock:
            unused = [key for key, child in self._children.items() if not child.users and child.is_idle]
            sizes = {key: sum(size for size, _ in json.loads(key)[1]) for key in unused}
            large = [key for key in unused if max(sizes[key], self._children[key].memory_bytes) > above_bytes]
            closing = [self._children.pop(key) for key in large]
        for child in closing:
            child.close()

    def close_all(self) -> None:
        """End every child; calls that run end with an error. Also done when the program ends."""
        with self._lock:
            children = list(self._children.values())
        for child in children:
            child.close()

    def hold(self, path: Path) -> bool:
        """Whether one of them has the model in memory."""
        return any(child.load["path"] == str(path) and child.is_loaded for child in list(self._children.values()))
