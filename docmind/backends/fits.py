"""Does a model fit this machine? Told from the header of its GGUF file, before it is loaded or even fetched.

    needed = weights + KV cache + compute buffers + the process
    KV cache = for every layer: KV heads × (key length + value length) × bytes of `kv_type` × window
    compute buffers = 4 bytes × batch × (vocabulary + 18 × embedding + window × (1 + heads, without flash attention))

Source: llama.cpp, src/llama-kv-cache.cpp (a row of n_embd_k_gqa and one of n_embd_v_gqa for each layer and token) and
ggml-common.h (bytes of a block of 32 numbers); the buffers are the tensors that stand side by side in a graph of one
batch: scores of attention and their mask, logits, activations. The 18 is a fit. The sum was compared with the memory of
the child that runs the starter, at several windows and types: 2 to 7 % above it after long prompts, up to 15 % after
short ones, which leave buffers untouched (tests/backends/test_fits.py).

*Where the estimate is too high rather than too low*: every layer is counted with the whole window, also those that see
a sliding window, and all as if they kept a state where any does; keys and values are counted as they are written in the
header, also where a model compresses them (MLA); every layer is taken to be as large as the others, with the embeddings
shared out among them. Where a header does not even name heads and layers, a rule of thumb stands in, and `Fit` says so.
What a graphics card needs besides (`_GPU_BYTES`) is an assumption and not measured here.

Knows no backend: where the memory is comes from `docmind.hardware`, what is in a file from `gguf_header`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from docmind.backends.gguf_header import GgufHeader
    from docmind.hardware import Readings

Verdict = Literal["on_gpu", "partly_on_gpu", "in_memory", "too_large"]

DEFAULT_WINDOW: Final = 8_192  # tokens, as the backends take it unless told otherwise
GPU_SHARE: Final = 0.8  # of a graphics card's memory, others' use included: its driver and the screen need the rest
RAM_SHARE: Final = 0.9  # of the memory that is free now
KV_BYTES: Final = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}  # of one number
_BATCH_TOKENS: Final = 128  # as the child reads
_ACTIVATIONS: Final = 18  # rows of the embedding's length that are alive at once
_STATE_LENGTH: Final = 128  # numbers a layer with a state keeps for each of twice the embedding; most keep fewer
_PROCESS_BYTES: Final = 50_000_000  # the child itself, with Python and llama.cpp
_GPU_BYTES: Final = 500_000_000  # of each card, for its driver's context
_LEAST_WINDOW, _WINDOW_STEP = 256, 256  # tokens; llama.cpp rounds a window up to the step
_MOST_TOKENS: Final = 1 << 20  # where a header names no window


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits, and how.

    Attributes:
        window: Tokens it was judged with.
        largest_window: Of those that fit where `verdict` says (for `too_large`: anywhere), at most what the model was
            trained for; None where none does, or where the header does not say enough.
        layers: Of the model; None where the header does not say.
        gpu_layers: How many of them fit on the graphics cards; 0 without one.
        is_rough: The header did not say enough, and the window counts by a rule of thumb.
        sentence: All of it for people.
    """

    verdict: Verdict
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    window: int
    largest_window: int | None
    layers: int | None
    gpu_layers: int
    is_rough: bool
    sentence: str

    @property
    def needed_bytes(self) -> int:
        """All of it together."""
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """Memory a model may take now."""

    gpu_bytes: int  # of all cards together, within `GPU_SHARE`
    gpu_total_bytes: int
    gpus: int
    ram_bytes: int  # within `RAM_SHARE`


def room(readings: Readings, *, has_gpu_support: bool = True) -> Room:
    """What may be taken of a machine as it was read.

    Args:
        has_gpu_support: Whether the software that would run the model can use a graphics card at all.
    """
    cards = [
        (gpu.memory_used_bytes or 0, gpu.memory_total_bytes)
        for gpu in readings.gpus
        if has_gpu_support and gpu.memory_total_bytes
    ]
    free = max(0, readings.ram_total_bytes - readings.ram_used_bytes)
    return Room(
        gpu_bytes=sum(max(0, int(GPU_SHARE * total) - used) for used, total in cards),
        gpu_total_bytes=sum(total for _, total in cards),
        gpus=len(cards),
        ram_bytes=int(RAM_SHARE * free),
    )


def fits(
    header: GgufHeader,
    size_bytes: int,
    room: Room,
    *,
    window: int | None = None,
    kv_type: str = "f16",
    flash_attention: bool | None = None,
) -> Fit:
    """Whether a model fits the room there is.

    Args:
        size_bytes: Of its file, all parts together: the weights are taken as they stand there.
        window: Tokens; None: what the backend would take, at most what the model was trained for.
        kv_type: One of `KV_BYTES`.
        flash_attention: As for llama.cpp; None: where `kv_type` needs it.
    """
    trained = header.context_window or _MOST_TOKENS
    window = _rounded_up(min(window or DEFAULT_WINDOW, trained))
    uses_flash = kv_type != "f16" if flash_attention is None else flash_attention
    kv_per_token, is_rough = _kv_per_token(header, size_bytes, KV_BYTES[kv_type])
    compute_per_token = 4 * _BATCH_TOKENS * (1 + (0 if uses_flash else header.heads or 0))
    fixed = _PROCESS_BYTES + 4 * _BATCH_TOKENS * (
        (header.vocabulary or 0) + _ACTIVATIONS * (header.embedding_length or 0)
    )
    if header.is_recurrent:
        fixed += 4 * (header.layers or 0) * 2 * (header.embedding_length or 0) * _STATE_LENGTH
    per_token = kv_per_token + compute_per_token

    def needed(tokens: int) -> int:
        return int(size_bytes + fixed + per_token * tokens)

    on_gpu = max(0, room.gpu_bytes - room.gpus * _GPU_BYTES)
    layers = header.layers
    gpu_layers = 0
    if needed(window) <= on_gpu:
        verdict, limit, gpu_layers = "on_gpu", on_gpu, layers or 0
    else:
        if layers:
            # What stands on a card besides layers: the buffers of the computation.
            for_layers = on_gpu - fixed - compute_per_token * window
            gpu_layers = max(0, min(layers, int(for_layers * layers / (size_bytes + kv_per_token * window))))
        limit = room.ram_bytes + (on_gpu if gpu_layers else 0)
        verdict = "too_large" if needed(window) > limit else "partly_on_gpu" if gpu_layers else "in_memory"
    largest = int((limit - size_bytes - fixed) / per_token) if per_token else trained
    largest = min(trained, largest - largest % _WINDOW_STEP)
    fit = Fit(
        verdict=verdict,  # type: ignore[arg-type]  # one of them, as above
        weights_bytes=size_bytes,
        kv_bytes=int(kv_per_token * window),
        overhead_bytes=int(fixed + compute_per_token * window),
        window=window,
        largest_window=largest if largest >= _LEAST_WINDOW and not is_rough else None,
        layers=layers,
        gpu_layers=gpu_layers,
        is_rough=is_rough,
        sentence="",
    )
    return _with_sentence(fit, room)


def _kv_per_token(header: GgufHeader, size_bytes: int, number_bytes: float) -> tuple[float, bool]:
    """Bytes that a token of the window takes, and whether that is a rule of thumb.

    The rule: a fifth of the weights for 8,192 tokens, which is more than any model with grouped heads takes.
    """
    heads, layers = header.kv_heads, header.layers
    if not heads or not layers or header.key_length is None or header.value_length is None:
        return size_bytes / 5 / DEFAULT_WINDOW, True
    # One number for all layers, or one for each; a list that is too short is filled with its largest.
    in_all = sum(heads[:layers]) + max(heads) * max(0, layers - len(heads))
    return in_all * (header.key_length + header.value_length) * number_bytes, False


def _rounded_up(window: int) -> int:
    return max(_LEAST_WINDOW, -(-window // _WINDOW_STEP) * _WINDOW_STEP)


def _with_sentence(fit: Fit, room: Room) -> Fit:
    """The same, told in words."""
    from dataclasses import replace

    window = f"with a window of {fit.window:,} tokens"
    needs = f"about {_gigabytes(fit.needed_bytes)}"
    free = f"{_gigabytes(room.ram_bytes)} can be used"
    if fit.verdict == "on_gpu":
        text = f"Fits on the graphics card: {needs} of {_gigabytes(room.gpu_total_bytes)} {window}."
    elif fit.verdict == "partly_on_gpu":
        text = (
            f"Fits partly on the graphics card: {fit.gpu_layers} of its {fit.layers} layers, the rest in memory; "
            f"{needs} {window}."
        )
    elif fit.verdict == "in_memory":
        text = f"Fits in memory: {needs} {window}; {free}."
    elif fit.largest_window is not None:
        text = f"Too large {window}: {needs}, and {free}. With {fit.largest_window:,} tokens it fits."
    else:
        text = f"Too large for this machine: {needs} {window}, and {free}."
    return replace(fit, sentence=text + (" A rough estimate: its header says little." if fit.is_rough else ""))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
