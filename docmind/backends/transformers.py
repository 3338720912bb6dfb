"""The transformers backend: Hugging Face folders on this machine, in a child process.

A folder with a `config.json`, safetensors and a tokenizer, in one of the model folders or named by its path. Nothing
is downloaded, no pickle is read, and no code that came with a model is run. This side finds folders and never imports
transformers or torch; the child (`transformers_child.py`, over `child.py`) does. One child per model and way of
loading it: one call runs, one waits, a third gets `BackendBusy`.

*Limitations*

- Text in, text out: no images, no function calling, no grammars; a thinking model is asked not to think.
- What was read of one conversation is kept at a time, and only for models all of whose layers keep everything; those
  with a sliding window or a recurrent state read each prompt anew.
- Between two batches of a prompt, and two words, a stop is met at once; where one of them takes longer than a second
  (a large model on a processor) the child is ended, and the next call loads the model again.
- One device: a model is not spread over several GPUs.
- LlamaIndex's own `HuggingFaceLLM` (llama-index-llms-huggingface 0.8) is not used, read in its source: it loads the
  weights into this process when it is made, from the hub by default and pickles too; it streams from a thread that
  nothing can stop, and that hangs the reader for ever when `generate` fails; a call's own arguments are dropped, stop
  words are token ids, and there are neither figures nor a finish reason; the asynchronous calls block the event loop.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docmind.backends import Detection, ModelInfo, Option, checked_options
from docmind.backends.child import Child, Children, physical_cores
from docmind.backends.transformers_folder import is_model_folder, read_folder
from docmind.errors import BackendUnavailable, ModelDamaged, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_index.core.llms import LLM

    from docmind.config import Config

LABEL = "Transformers"
INSTALL = 'pip install "transformers>=5.23,<6" torch safetensors'
PACKAGES = ("transformers", "torch", "safetensors")

OPTIONS: tuple[Option, ...] = (
    Option("context_window", int, None, "tokens", "What the model can read and write in one call; by default what "
           "it was trained for, at most 8,192. More takes more memory.", 256, 1 << 20),
    Option("device", str, "auto", "", "What computes; by default the GPU where there is one, else the processor.",
           choices=("auto", "cuda", "mps", "cpu")),
    Option("dtype", str, "auto", "", "The type of the numbers computed with; by default that of the folder, but "
           "float32 on processors that are slow with others, where the memory allows it.",
           choices=("auto", "float32", "bfloat16", "float16")),
    Option("threads", int, None, "threads", "Processor cores used; by default all physical ones.", 1, 256),
    Option("max_tokens", int, 512, "tokens", "The longest answer.", 1, 1 << 20, per_call=True),
    Option("temperature", float, 0.1, "", "0 always takes the likeliest word; higher is more varied.", 0, 5,
           per_call=True),
    Option("top_p", float, 0.95, "", "Words are taken from the likeliest that together reach this share.", 0, 1,
           per_call=True),
    Option("top_k", int, 40, "words", "Words are taken from so many of the likeliest; 0 for all.", 0, 1 << 20,
           per_call=True),
    Option("min_p", float, 0.05, "", "Words less likely than this share of the likeliest are left out.", 0, 1,
           per_call=True),
    Option("repeat_penalty", float, 1.0, "", "Above 1 the model repeats itself, and what it read, less: it quotes less "
           "exactly.", 0.1, 5, per_call=True),
    Option("seed", int, None, "", "The same number repeats an answer, but for rounding; by default a new one.", 0,
           (1 << 32) - 2, per_call=True),
    Option("stop", list, None, "texts", "The answer ends in front of any of these.", per_call=True),
)  # fmt: skip
CALL_OPTIONS = tuple(option for option in OPTIONS if option.per_call)

_DEFAULT_WINDOW = 8192  # tokens; more is a choice, for its memory
_UNKNOWN_WINDOW = 4096  # tokens, for a folder that does not say


class TransformersChild(Child):
    """A Hugging Face folder in a process of its own."""

    module = "docmind.backends.transformers_child"
    label = "torch"
    reinstall = INSTALL
    hints: ClassVar[Mapping[str, str]] = {
        "unsupported": "Install what the message names, or choose another model or another conversion of it.",
        "invalid_option": "Leave the option `device` out, or install a torch that can use it.",
    }


_children = Children(TransformersChild)
close_unused, close_all = _children.close_unused, _children.close_all


def detect(config: Config, options: Mapping[str, Any] | None = None) -> Detection:
    """Whether transformers and torch are installed, and the models. Imports neither."""
    found = models(config)
    if _missing_package() is not None:
        return Detection("transformers", LABEL, False, "not_installed", f"Run: {INSTALL}", None, None, found)
    version = importlib.metadata.version("transformers")
    if not any(model.reason is None for model in found):
        hint = f"Put the folder of a model (config.json, *.safetensors, tokenizer) into {config.model_folders[0]}."
        return Detection("transformers", LABEL, False, "no_model", hint, None, version, found)
    return Detection("transformers", LABEL, True, None, None, None, version, found)


def models(config: Config, options: Mapping[str, Any] | None = None) -> tuple[ModelInfo, ...]:
    """Every folder with a `config.json` and weights in the model folders, by name.

    One that cannot be used is listed with its `reason`: `unsafe_weights`, `remote_code`, `no_text_generation`,
    `unsupported`, `model_damaged` or `unreadable`. Of two with one name the later is called "name (2)".
    """
    found: list[ModelInfo] = []
    taken: set[str] = set()
    for path in _folders(config):
        names = itertools.chain([path.name], (f"{path.name} ({number})" for number in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        found.append(_info(name, path))
    return tuple(found)


def _folders(config: Config) -> list[Path]:
    """The folders of models, one level below the model folders."""
    found: list[Path] = []
    for folder in config.model_folders:
        with contextlib.suppress(OSError):  # a folder that cannot be listed has no models
            for path in sorted(folder.iterdir()):
                with contextlib.suppress(OSError):  # nor has one below it
                    if is_model_folder(path):
                        found.append(path)
    return found


def _info(name: str, path: Path) -> ModelInfo:
    """What is known of one folder; one that cannot be used has a reason."""
    try:
        known = read_folder(path)
    except ModelDamaged as refusal:
        return ModelInfo(name, None, None, None, False, path, refusal.reason)
    return ModelInfo(name, known.context_window, known.size_bytes, known.quantization, _children.hold(path), path, None)


def build(config: Config, model: str, options: Mapping[str, Any] | None = None) -> LLM:
    """A LlamaIndex model for a folder. Nothing is loaded before `start`, `warm_up` or the first call.

    Args:
        config: Names the folders that are searched.
        model: A name from `models`, or the path of a folder.
        options: Values for names in `OPTIONS`; those of a call become its defaults.

    Raises:
        BackendUnavailable: transformers or torch is not installed.
        ModelNotFound: No model has that name.
        ModelDamaged: The folder cannot be used.
        BackendError: An option is unknown or out of range.
    """
    given = checked_options(OPTIONS, options or {})
    if (package := _missing_package()) is not None:
        raise BackendUnavailable(f"{package} is not installed.", f"Run: {INSTALL}", reason="not_installed")
    path = _path_of(config, model)
    trained = read_folder(path).context_window or _UNKNOWN_WINDOW
    window = min(trained, given.get("context_window", _DEFAULT_WINDOW))
    load = {
        "path": str(path),
        "window": window,
        "threads": given.get("threads") or physical_cores(),
        "device": given.get("device", "auto"),
        "dtype": given.get("dtype", "auto"),
    }
    defaults = {option.name: given.get(option.name, option.default) for option in CALL_OPTIONS}
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.transformers_llm import TransformersLLM

    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    llm = TransformersLLM.of_child(_children.child_for(load, files), model, window, defaults)
    close_unused()  # after: the child of this very model stays loaded between answers, any other frees its memory
    return llm


def _missing_package() -> str | None:
    """A package that is needed and not installed."""
    return next((package for package in PACKAGES if importlib.util.find_spec(package) is None), None)


def _path_of(config: Config, model: str) -> Path:
    """The folder of a model given by name or by path."""
    found = models(config)
    for info in found:
        if info.name == model and info.path is not None:
            return info.path
    named = Path(model).expanduser()
    with contextlib.suppress(OSError):
        if named.is_absolute() and is_model_folder(named):
            return named
    names = ", ".join(info.name for info in found if info.reason is None) or "none"
    raise ModelNotFound(
        f"There is no model '{model}'.",
        f"There are: {names}. Choose one, or put the folder of another into {config.model_folders[0]}.",
    )
