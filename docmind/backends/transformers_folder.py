"""Reads what a Hugging Face folder says about itself, without loading the model and without trusting the folder.

Nothing is imported for it: JSON files are read up to a size, weights only by name and size. Which architectures the
installed transformers knows is read from its own table, as text.

Source: https://huggingface.co/docs/transformers/main_classes/configuration and, for the files of a folder,
`_get_resolved_checkpoint_files` in transformers/modeling_utils.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from docmind.backends import NOT_WRITING
from docmind.errors import ModelDamaged

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # they can run code while they are read
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")

_CONFIG_BYTES = 1 << 20  # the largest known are some 100 kB
_INDEX_BYTES = 64 << 20  # a model of a trillion parameters has 10 MB
_OTHER_BYTES = 256 << 20  # of any other text that transformers will read whole; the largest tokenizers have 35 MB

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# How the classes of models that write are called; others make vectors, or choose between labels.
_WRITING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

_HINTS = {
    "model_damaged": "Fetch the folder again.",
    "unreadable": "Check its permissions.",
    "unsafe_weights": "Fetch the model in the safetensors format.",
    "remote_code": "Choose a model that transformers knows by itself.",
    "no_text_generation": "Choose a chat model.",
    "unsupported": "Choose another model, or another conversion of it.",
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder says about itself."""

    context_window: int | None  # tokens the model was trained to read
    size_bytes: int | None  # of the weights
    quantization: str | None  # or the type of its numbers


def is_model_folder(path: Path) -> bool:
    """Whether a folder is meant to be a model of this kind, usable or not."""
    return (path / CONFIG).exists() and bool(_with_suffix(path, ".safetensors", *_PICKLED))


def read_folder(path: Path) -> ModelFolder:
    """What a folder says; read again only when a file in it has changed.

    Raises:
        ModelDamaged: It cannot be used; the reason says why (docs/reasons.md).
    """
    try:
        files = [(file.name, file.stat() if file.exists() else None) for file in sorted(path.iterdir())]
        state = tuple((name, status.st_size, status.st_mtime_ns) for name, status in files if status is not None)
        return _folder_of_version(path, state)
    except OSError as error:
        raise _refusal("unreadable", path, f"cannot be read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _folder_of_version(path: Path, _state: tuple[tuple[str, int, int], ...]) -> ModelFolder:
    weights = _weights(path)
    config = _json(path, CONFIG, _CONFIG_BYTES)
    _check_model(path, config)
    for file in path.iterdir():
        if file.suffix in (".json", ".jinja", ".model", ".txt") and file.name not in (CONFIG, _INDEX):
            _regular(path, file, _OTHER_BYTES)
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise _refusal("model_damaged", path, "has no tokenizer")
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else {}
    return ModelFolder(
        context_window=_window(text) or _window(config),
        size_bytes=sum(file.stat().st_size for file in weights),
        quantization=_quantization(config) or _quantization(text),
    )


def _weights(path: Path) -> list[Path]:
    """The files with the weights: safetensors and nothing else."""
    if (path / _WEIGHTS).is_file():
        return [path / _WEIGHTS]
    if not (path / _INDEX).exists():
        if _with_suffix(path, *_PICKLED) and not _with_suffix(path, ".safetensors"):
            raise _refusal("unsafe_weights", path, "has its weights as Python pickles, which can run code")
        raise _refusal("model_damaged", path, f"has no {_WEIGHTS}")
    places = _json(path, _INDEX, _INDEX_BYTES).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and _are_texts(places.values()) else set()
    # A name with a path in it could lead anywhere.
    if not names or not all(Path(name).name == name and name.endswith(".safetensors") for name in names):
        raise _refusal("model_damaged", path, f"has a damaged {_INDEX}")
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise _refusal("model_damaged", path, f"lacks {len(missing)} of {len(names)} files with weights ({missing[0]})")
    return [path / name for name in names]


def _check_model(path: Path, config: dict[str, Any]) -> None:
    """Whether it is a model that can be loaded safely, and writes.

    Raises:
        ModelDamaged: It is not.
    """
    # MLX marks what it has quantized by a key of its own, beside the one that transformers knows.
    if isinstance(config.get("quantization"), dict):
        raise _refusal("unsupported", path, "was converted for MLX")
    # The one is a change to another model, the other names a file that need not be safetensors.
    if (path / "adapter_config.json").exists() or "transformers_weights" in config:
        raise _refusal("unsupported", path, "is an adapter of another model")
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or not (names is None or (isinstance(names, list) and _are_texts(names))):
        raise _refusal("model_damaged", path, f"has a damaged {CONFIG}")
    if kind in NOT_WRITING or (names and not any(name.endswith(_WRITING) for name in names)):
        raise _refusal("no_text_generation", path, "makes vectors or labels, it cannot answer")
    known = _writing_kinds()
    if known and kind not in known:
        if "auto_map" in config:
            raise _refusal("remote_code", path, "wants to run code that came with it, which DocMind does not allow")
        raise _refusal(
            "unsupported", path, f"is of a kind that the installed transformers cannot write with ({kind[:60]})"
        )


@lru_cache(maxsize=1)
def _writing_kinds() -> frozenset[str]:
    """The values of `model_type` that `AutoModelForCausalLM` takes; none where they cannot be found out."""
    spec = importlib.util.find_spec("transformers")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        table = Path(folder) / "models" / "auto" / "modeling_auto.py"
        if table.is_file():
            text = table.read_text(encoding="utf-8")
            rows = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\((.*?)^\)", text, re.S | re.M)
            return frozenset(re.findall(r'\("([^"]+)",', rows[1])) if rows else frozenset()
    return frozenset()


def _window(config: dict[str, Any]) -> int | None:
    for name in ("max_position_embeddings", "n_positions"):
        window = config.get(name)
        if type(window) is int and 0 < window < 1 << 31:
            return window
    return None


def _quantization(config: dict[str, Any]) -> str | None:
    """How the weights were quantized, "gptq 4 bit", or the type of their numbers."""
    how = config.get("quantization_config")
    if isinstance(how, dict):
        method, bits = how.get("quant_method"), how.get("bits")
        if isinstance(method, str) and re.fullmatch(r"[\w.-]{1,30}", method):
            return f"{method} {bits} bit" if type(bits) is int and 0 < bits < 64 else method
    kind = config.get("dtype", config.get("torch_dtype"))
    return _DTYPES.get(kind) if isinstance(kind, str) else None


def _json(path: Path, name: str, most_bytes: int) -> dict[str, Any]:
    """A JSON object of the folder."""
    _regular(path, path / name, most_bytes)
    with (path / name).open("rb") as file:
        whole = file.read(most_bytes + 1)  # it may have grown since
    try:
        value = json.loads(whole.decode("utf-8")) if len(whole) <= most_bytes else None
    except (ValueError, RecursionError) as error:  # RecursionError: ten thousand brackets in each other
        raise _refusal("model_damaged", path, f"has a damaged {name}") from error
    if not isinstance(value, dict):
        raise _refusal("model_damaged", path, f"has a damaged {name}")
    return value


def _regular(path: Path, file: Path, most_bytes: int) -> None:
    """Make sure that a file is one, and not endless: a link may lead to a device."""
    if not file.is_file():
        raise _refusal("model_damaged", path, f"has a {file.name} that is no file")
    if file.stat().st_size > most_bytes:
        raise _refusal("model_damaged", path, f"has a {file.name} of more than {most_bytes >> 20} MiB")


def _with_suffix(path: Path, *suffixes: str) -> list[Path]:
    return [file for file in path.iterdir() if file.suffix in suffixes]


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _refusal(reason: str, path: Path, what: str) -> ModelDamaged:
    return ModelDamaged(f"The model folder {path.name} {what}.", _HINTS[reason], reason=reason)
