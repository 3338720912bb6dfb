"""Reads what a GGUF file says about itself, without loading the model and without trusting the file.

Every count and length is checked against the size of the file before anything is read, so a truncated or hostile
file ends with `ModelDamaged` within the time it takes to read a few megabytes. Long arrays are stepped over.
The `gguf` package does the same for trusted files; on the bundled starter it took 3.0 s and 190 MB, this reader
0.04 s and no memory to speak of (benchmarks/README.md).

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from docmind.errors import ModelDamaged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Above what any known model needs (262,144 tokens and 514,906 merges); a bound on the time a hostile file can take.
_MAX_ARRAY_ITEMS = 4_000_000
_MAX_METADATA, _MAX_TENSORS = 65_536, 1_000_000
_MAX_KEPT_ITEMS, _MAX_KEPT_IN_ALL = 4_096, 65_536  # of arrays of numbers; some models have one number for each layer
_MAX_TEXT_BYTES = 32_000_000  # of all names and texts together; chat templates are the largest, some 20 kB

# `general.file_type`, enum llama_ftype in llama.h.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself; None: it does not say, or nothing believable.

    The names are those of the format, `{architecture}.attention.head_count_kv` for example.
    """

    architecture: str
    context_window: int | None  # tokens the model was trained to read
    quantization: str | None
    has_chat_template: bool
    layers: int | None = None  # block_count
    embedding_length: int | None = None
    heads: int | None = None  # of the layer that has most
    kv_heads: tuple[int, ...] = ()  # of each layer, 0 for one without attention; one number stands for all layers
    key_length: int | None = None  # of one head
    value_length: int | None = None
    vocabulary: int | None = None  # tokens the model knows
    is_recurrent: bool = False  # has layers that keep a state instead of what was read


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file.

    Raises:
        ModelDamaged: The file is not GGUF, is cut short, or contradicts itself.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.stat().st_size)
        with _damaged(path.name):
            tensors = _metadata(reader)
            _check_tensors(reader, tensors, reader.values.get("general.alignment", 32))
    return _header(reader)


def header_of_beginning(beginning: bytes, size_bytes: int, name: str = "") -> GgufHeader:
    """What the first bytes of a GGUF file say, before the rest was fetched: what comes later in it is not known.

    The sizes of a model stand before its vocabulary, so half a megabyte tells them.

    Args:
        size_bytes: Of the whole file.
        name: Of the file, for the error.

    Raises:
        ModelDamaged: The file is not GGUF, or contradicts itself.
    """
    reader = _Reader(io.BytesIO(beginning), size_bytes)
    with _damaged(name), contextlib.suppress(_NotFetched):
        _metadata(reader)
    return _header(reader)


def quantization_in_name(name: str) -> str | None:
    """The quantization that a file's name tells, as makers write it: "…-Q4_K_M.gguf"."""
    words = re.split(r"[^A-Z0-9_]+", name.upper())
    return next((kind for kind in _FILE_TYPES.values() if kind in words), None)


@contextlib.contextmanager
def _damaged(name: str) -> Iterator[None]:
    """What is wrong with a file, as an error with a remedy."""
    try:
        yield
    except (struct.error, ValueError) as error:
        raise ModelDamaged(f"The model file {name} is damaged: {error}.", "Download or copy it again.") from error


def _header(reader: _Reader) -> GgufHeader:
    """The few values that are needed, each only if it is believable."""
    values = reader.values
    architecture = values.get("general.architecture")
    own = {key.removeprefix(f"{architecture}."): value for key, value in values.items()
           if key.startswith(f"{architecture}.")}  # fmt: skip
    file_type = values.get("general.file_type")
    heads = _counts(own.get("attention.head_count"))
    kv_heads = _counts(own.get("attention.head_count_kv")) or heads
    embedding = _count(own.get("embedding_length"))
    # Without a length of its own a head has its share of the embedding (llama_model::load_hparams in llama.cpp).
    share = embedding // max(heads) if embedding and max(heads, default=0) else None
    return GgufHeader(
        architecture=architecture if isinstance(architecture, str) else "unknown",
        context_window=_count(own.get("context_length"), 1 << 31),
        quantization=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        has_chat_template=isinstance(values.get("tokenizer.chat_template"), str),
        layers=_count(own.get("block_count"), 1 << 12),
        embedding_length=embedding,
        heads=max(heads, default=0) or None,
        kv_heads=kv_heads,
        key_length=_count(own.get("attention.key_length")) or share,
        value_length=_count(own.get("attention.value_length")) or share,
        vocabulary=_count(own.get("vocab_size"), 1 << 24)
        or _count(reader.lengths.get("tokenizer.ggml.tokens"), 1 << 24),
        is_recurrent=any(key.startswith(("ssm.", "wkv.")) for key in own),
    )


def _count(value: object, limit: int = 1 << 20) -> int | None:
    """A number that counts something and is not absurd."""
    return value if type(value) is int and 0 < value < limit else None


def _counts(value: object) -> tuple[int, ...]:
    """A number for all layers, or one for each; () where one of them is absurd."""
    numbers = value if isinstance(value, tuple) else (value,)
    return numbers if all(type(n) is int and 0 <= n < 1 << 16 for n in numbers) else ()


class _NotFetched(ValueError):
    """The bytes that were fetched end here; the file goes on."""


class _Reader:
    """A file with its size, which refuses to read past its end, and what was found in it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.array_items = self.text_bytes = self.kept_items = 0  # seen so far in the whole file
        self.values: dict[str, Any] = {}  # texts, numbers, and short arrays of numbers as tuples
        self.lengths: dict[str, int] = {}  # of the arrays

    def need(self, length: int) -> None:
        """Make sure that so many bytes are left."""
        if length > self.size - self.file.tell():
            raise ValueError("it ends too early")

    def read(self, length: int) -> bytes:
        """So many bytes."""
        self.need(length)
        found = self.file.read(length)
        if len(found) < length:
            raise _NotFetched
        return found

    def scalar(self, code: str) -> Any:
        """One number, little-endian."""
        return struct.unpack("<" + code, self.read(struct.calcsize("<" + code)))[0]

    def skip(self, length: int) -> None:
        """Step over bytes."""
        self.need(length)
        self.file.seek(length, 1)

    def text(self) -> str:
        """A text with its length in front."""
        length = self.scalar("Q")
        self.need(length)
        self.text_bytes += length
        if self.text_bytes > _MAX_TEXT_BYTES:
            raise ValueError("it has endless texts")
        return self.read(length).decode("utf-8", errors="replace")


def _metadata(reader: _Reader) -> int:
    """Read all values but long arrays; gives the number of tensors."""
    if reader.read(4) != b"GGUF":
        raise ValueError("it is not a GGUF file")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is not supported")
    tensors, entries = reader.scalar("Q"), reader.scalar("Q")
    if tensors > _MAX_TENSORS or entries > _MAX_METADATA:
        raise ValueError("its counts are impossible")
    for _ in range(entries):
        key = reader.text()
        kind = reader.scalar("I")
        if kind == _ARRAY:
            _read_array(reader, key)
        elif kind == _STRING:
            reader.values[key] = reader.text()
        elif kind in _SCALARS:
            reader.values[key] = reader.scalar(_SCALARS[kind])
        else:
            raise ValueError(f"it has a value of unknown type {kind}")
    return int(tensors)


def _read_array(reader: _Reader, key: str) -> None:
    """Keep a short array of numbers and step over any other; the total number of texts is bounded."""
    kind, count = reader.scalar("I"), reader.scalar("Q")
    reader.lengths[key] = count
    if kind in _SCALARS:
        if count <= _MAX_KEPT_ITEMS and reader.kept_items + count <= _MAX_KEPT_IN_ALL:
            reader.kept_items += count
            code = f"<{count}{_SCALARS[kind]}"
            reader.values[key] = struct.unpack(code, reader.read(struct.calcsize(code)))
        else:
            reader.skip(count * struct.calcsize("<" + _SCALARS[kind]))
        return
    reader.array_items += count
    if kind != _STRING or reader.array_items > _MAX_ARRAY_ITEMS:
        raise ValueError("it has an impossible array")
    # Each text needs at least its eight bytes of length.
    reader.need(8 * count)
    read, seek, unpack = reader.file.read, reader.file.seek, struct.Struct("<Q").unpack
    for _ in range(count):
        length_bytes = read(8)
        if len(length_bytes) < 8:
            reader.need(8)
            raise _NotFetched
        length = unpack(length_bytes)[0]
        if length > reader.size:
            raise ValueError("it ends too early")
        seek(length, 1)
    reader.need(0)
    if reader.file.tell() > reader.size:
        raise ValueError("it ends too early")


def _check_tensors(reader: _Reader, count: int, alignment: int) -> None:
    """Make sure that every tensor begins inside the file; llama.cpp checks its end when it loads."""
    last = 0
    for _ in range(count):
        reader.text()
        dimensions = reader.scalar("I")
        if dimensions > 8:
            raise ValueError("it has an impossible tensor")
        reader.skip(8 * dimensions + 4)
        last = max(last, reader.scalar("Q"))
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError("its alignment is impossible")
    begin = -(-reader.file.tell() // alignment) * alignment
    if count and begin + last >= reader.size:
        raise ValueError("it is cut short")
