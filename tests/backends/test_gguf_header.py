"""The header reader: true on a good file, quick and clear on every kind of bad one."""

from __future__ import annotations

import contextlib
import random
import struct
import time

import pytest

from docmind.backends.gguf_header import header_of_beginning, quantization_in_name, read_header
from docmind.errors import ModelDamaged


def text(value: bytes) -> bytes:
    """A GGUF text."""
    return struct.pack("<Q", len(value)) + value


def test_the_starter_says_its_window_and_quantization(starter_path):
    """What the starter's model card says."""
    header = read_header(starter_path)
    assert (header.architecture, header.context_window, header.quantization) == ("llama", 8192, "Q4_1")
    assert header.has_chat_template
    assert (header.layers, header.embedding_length, header.heads, header.kv_heads) == (30, 576, 9, (3,))
    assert (header.key_length, header.value_length, header.vocabulary) == (64, 64, 49_152)


def test_the_beginning_of_a_file_says_the_same(starter_path):
    """Half a megabyte, as it is asked for before a download; of even less what is in it."""
    whole = starter_path.read_bytes()
    header = header_of_beginning(whole[: 512 << 10], len(whole))
    full = read_header(starter_path)
    known = ("architecture", "context_window", "quantization", "layers", "kv_heads", "key_length", "vocabulary")
    assert [getattr(header, name) for name in known] == [getattr(full, name) for name in known]
    assert header_of_beginning(whole[:100], len(whole)).layers is None
    for end in range(4, 3000, 7):
        header_of_beginning(whole[:end], len(whole))


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"), ("model.q8_0.gguf", "Q8_0"), ("x-bf16.gguf", "BF16"), ("Q4.gguf", None),
     ("IQ4_XS/x-IQ4_XS-00001-of-00002.gguf", "IQ4_XS"), ("AQ4_0B.gguf", None)],
)  # fmt: skip
def test_a_name_may_tell_the_quantization(name, quantization):
    """Where its place in the header is behind the vocabulary."""
    assert quantization_in_name(name) == quantization


def entries(**values):
    """A header with these values, each a number, a list of numbers or a text; no tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values) + 1) + text(b"general.architecture")
    head += struct.pack("<I", 8) + text(b"x")
    for key, value in values.items():
        head += text(f"x.{key.replace('__', '.')}".encode())
        if isinstance(value, bytes):
            head += struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            head += struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        else:
            head += struct.pack("<Iq", 11, value)
    return head


def test_heads_may_be_a_number_for_each_layer():
    """Hybrid models have layers without attention."""
    head = entries(block_count=4, embedding_length=64, attention__head_count=8, attention__head_count_kv=[0, 2, 0, 2])
    header = header_of_beginning(head, len(head))
    assert (header.kv_heads, header.heads, header.key_length) == ((0, 2, 0, 2), 8, 8)


@pytest.mark.parametrize(
    "values",
    [
        {"block_count": -1, "embedding_length": 0, "attention__head_count": -5},
        {"block_count": 1 << 60, "embedding_length": 1 << 60, "attention__head_count": 1 << 60},
        {"block_count": b"many", "embedding_length": b"", "attention__head_count": [1 << 30]},
        {"block_count": [3], "attention__head_count_kv": [-1] * 4, "attention__key_length": 0},
        {"attention__key_length": 1 << 62, "attention__value_length": b"x", "vocab_size": -7},
        {"attention__head_count_kv": [1] * 5000},
    ],
    ids=["negative", "huge", "texts", "lists", "lengths", "long list"],
)
def test_unbelievable_sizes_are_not_known(values):
    """What counts nothing is None; nothing is computed with it."""
    head = entries(**values)
    header = header_of_beginning(head, len(head))
    assert header.layers is None
    assert header.kv_heads == ()
    assert (header.key_length, header.value_length, header.vocabulary) == (None, None, None)


def test_many_short_lists_do_not_fill_the_memory():
    """A bounded number of their items is kept."""
    head = entries(**{f"list{number}": [1] * 4000 for number in range(200)})
    started = time.monotonic()
    header_of_beginning(head, len(head))
    assert time.monotonic() - started < 3


HOSTILE = {
    "empty": b"",
    "no magic": b"<html>not found</html>" * 100,
    "magic only": b"GGUF",
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "endless entries": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
    "endless tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
    "endless key": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62),
    "endless array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 61),
    "endless numbers": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 12, 1 << 61),
    "nested array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 9, 1),
    "unknown type": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"a") + struct.pack("<I", 77),
    "zero alignment": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
    "tensor without end": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"t") + struct.pack("<I", 1 << 30),
    "tensor beyond the end": b"GGUF"
    + struct.pack("<IQQ", 3, 1, 0)
    + text(b"t")
    + struct.pack("<IQIQ", 1, 8, 0, 1 << 50),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused_at_once(tmp_path, content):
    """Counts and lengths are checked before anything is read or allocated."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(ModelDamaged) as caught:
        read_header(path)
    with contextlib.suppress(ModelDamaged):  # of the beginning of something longer it may be true
        header_of_beginning(content, 1 << 40)
    assert time.monotonic() - started < 3
    assert caught.value.reason == "model_damaged"
    assert caught.value.hint


def test_a_starter_cut_anywhere_in_its_header_or_first_tensors_is_refused(tmp_path, starter_path):
    """A download that stopped."""
    whole = starter_path.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*random.Random(1).sample(range(4, 3_000_000), 20), len(whole) // 2]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelDamaged):
            read_header(path)


def test_bytes_changed_at_random_never_raise_anything_else(tmp_path, starter_path):
    """Damage either goes unnoticed here (llama.cpp looks closer when it loads) or is ModelDamaged."""
    head = starter_path.read_bytes()[:2_000_000]
    path = tmp_path / "changed.gguf"
    chance = random.Random(7)
    for _ in range(25):
        changed = bytearray(head)
        for _ in range(20):
            changed[chance.randrange(4, 5000)] = chance.randrange(256)
        path.write_bytes(changed)
        with pytest.raises(ModelDamaged):
            read_header(path)
