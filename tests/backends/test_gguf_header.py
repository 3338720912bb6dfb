"""The header reader: true on a good file, quick and clear on every kind of bad one."""

from __future__ import annotations

import random
import struct
import time

import pytest

from docmind.backends.gguf_header import read_header
from docmind.errors import ModelDamaged


def text(value: bytes) -> bytes:
    """A GGUF text."""
    return struct.pack("<Q", len(value)) + value


def test_the_starter_says_its_window_and_quantization(starter_path):
    """What the starter's model card says."""
    header = read_header(starter_path)
    assert (header.architecture, header.context_window, header.quantization) == ("llama", 8192, "Q4_1")
    assert header.has_chat_template


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
