"""What is done with models, as runs of the process: they are pulled, downloaded, loaded, unloaded, deleted and tried.

One thing at a time is done with a model, whoever asks from whichever page. Nothing of it is recorded in the library:
what came of it is where the model is, and what is known of backends is asked anew after each run.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from docmind import detection, runs
from docmind.backends import GGUF_BACKEND, Progress
from docmind.backends import backend as find_backend
from docmind.errors import BackendBusy
from docmind.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from docmind.config import Config
    from docmind.download import HubModel

Action = Literal["pull", "load", "unload", "delete", "look", "download", "test"]
STEP_SECONDS: Final = 0.25  # between two events of a run: its progress is told many times a second
_SAMPLES: Final = 24  # of the last seconds, for the speed
_OBSERVED_SECONDS: Final = 1.0  # a speed is told when it was seen for this long
_DOING: Final[dict[Action, str]] = {
    "pull": "pulled", "load": "loaded", "unload": "unloaded", "delete": "deleted", "look": "looked up",
    "download": "downloaded", "test": "tried",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download came to."""

    path: Path
    sha256: str | None
    is_compared: bool  # with what the source says of it; else it named none


class ModelRun(Run):
    """Something that is done with a model; its events are `Progress`.

    Attributes:
        profile: Whose model is tried; None for a model as its backend has it.
        progress: The latest, also of what was too soon after the last event.
        result: Of a test a `Trial`, of a download a `Downloaded`, of a look `download.Offer`s; None otherwise, and
            until it ended.
    """

    def __init__(self, action: Action, backend: str, model: str, *, profile: str | None = None) -> None:
        super().__init__("model")
        self.action = action
        self.backend = backend
        self.model = model
        self.profile = profile
        self.progress = Progress("starting")
        self.result: Any = None
        self._samples: tuple[tuple[float, Progress], ...] = ()

    def report(self, progress: Progress) -> None:
        """Take in how far it is."""
        self.progress = progress
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= STEP_SECONDS:
            self._samples = (*self._samples[1 - _SAMPLES :], (now, progress))
            self._add(progress)

    @property
    def bytes_per_second(self) -> float | None:
        """How fast it went in the last seconds; None when too little was seen of what it is doing now."""
        same = [(at, step.done) for at, step in self._samples if step.doing == self.progress.doing]
        if not same or same[-1][0] - same[0][0] < _OBSERVED_SECONDS or self.progress.unit != "bytes":
            return None
        return (same[-1][1] - same[0][1]) / (same[-1][0] - same[0][0])


def model_runs(backend: str | None = None) -> list[ModelRun]:
    """Those of one backend, or of all, that are going on or ended within the last minutes, the newest last."""
    return [run for run in runs.live("model") if isinstance(run, ModelRun) and backend in (None, run.backend)]


def going_on(backend: str, model: str) -> ModelRun | None:
    """What is being done with a model."""
    return next((run for run in model_runs(backend) if run.model == model and run.is_running), None)


# Starting them --------------------------------------------------------------------------------------------------------


def start(config: Config, action: Literal["pull", "load", "unload", "delete"], backend: str, model: str) -> ModelRun:
    """Begin what a backend's function of that name does.

    Raises:
        BackendBusy: Something is being done with this model already.
    """
    run = ModelRun(action, backend, model)
    function = getattr(find_backend(backend), action)

    def work() -> None:
        if action in ("pull", "load"):
            function(config, model, progress=run.report, stop=run.stop_requested)
        else:
            function(config, model)

    return _started(run, work)


def start_test(
    config: Config,
    backend: str,
    model: str,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    *,
    profile: str | None = None,
) -> ModelRun:
    """Begin to try a model, as `trial.try_model` does. One at a time: a second in memory would slow the first down.

    Raises:
        BackendBusy: Something is being done with this model already, or another is being tried.
    """
    from docmind.trial import try_model

    run = ModelRun("test", backend, model, profile=profile)

    def work() -> None:
        run.result = try_model(config, backend, model, options, run.stop_requested, run.report, arguments)

    return _started(run, work)


def start_look(config: Config, source: str) -> ModelRun:
    """Begin to look up which models a repository or an address has, and whether they fit this machine.

    Raises:
        BackendBusy: It is being looked up already.
    """
    from docmind import download

    run = ModelRun("look", GGUF_BACKEND, source)

    def work() -> None:
        run.report(Progress("looking it up"))
        run.result = download.offers(config, source, download.room_here())

    return _started(run, work)


def start_download(config: Config, model: HubModel) -> ModelRun:
    """Begin to fetch a model from a hub.

    Raises:
        BackendBusy: It is being fetched already.
    """
    from docmind import download

    run = ModelRun("download", GGUF_BACKEND, model.name)

    def work() -> None:
        path = download.download(config, model, progress=run.report, stop=run.stop_requested)
        if path is not None:
            run.result = Downloaded(path, download.remembered_sha256(path), model.files[0].sha256 is not None)

    return _started(run, work)


_starting = threading.Lock()


def _started(run: ModelRun, work: Callable[[], None]) -> ModelRun:
    """The run, going on; what was said of such runs before is forgotten.

    Raises:
        BackendBusy: Something is being done with this model already.
    """

    def whole() -> runs.RunState:
        try:
            work()
        finally:
            if run.action != "look":
                detection.forget()
        is_stopped = run.stop_requested.is_set() and run.result is None and run.action not in ("unload", "delete")
        return "stopped" if is_stopped else "complete"

    with _starting:
        for other in model_runs():
            is_same = (other.backend, other.model) == (run.backend, run.model)
            if other.is_running and (is_same or run.action == other.action == "test"):
                raise BackendBusy(
                    f"{other.model} is being {_DOING[other.action]}.", "Wait until that is done, or stop it."
                )
            is_here = (other.backend, other.profile) == (run.backend, run.profile)
            if is_here and (is_same or other.action == run.action):
                runs.dismiss(other.run_id)
        return runs.started(run, whole)
