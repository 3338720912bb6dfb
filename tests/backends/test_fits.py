"""Whether a model fits: the arithmetic, and the arithmetic against what the starter's child really takes."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest

from docmind.backends import llama_cpp
from docmind.backends.fits import DEFAULT_WINDOW, GPU_SHARE, Room, fits, room
from docmind.backends.gguf_header import GgufHeader, read_header
from docmind.hardware import Gpu, Readings

GB = 10**9
# Qwen3 4B in Q4_K_M, from its header: 36 layers, 8 KV heads of 128.
HEADER = GgufHeader(
    "qwen3", 40_960, "Q4_K_M", True, layers=36, embedding_length=2560, heads=32, kv_heads=(8,), key_length=128,
    value_length=128, vocabulary=151_936,
)  # fmt: skip
SIZE = 2_497_281_120


def only_ram(gigabytes):
    """A machine without a graphics card."""
    return Room(0, 0, 0, int(gigabytes * GB))


def with_gpu(gigabytes, ram=8):
    """A machine with a card of which so much may be used."""
    return Room(int(gigabytes * GB), int(gigabytes * GB / GPU_SHARE), 1, int(ram * GB))


def taken_and_estimated(config, starter_path, question, options):
    """Bytes that the child takes after a question at two windows, those that were estimated, and the window's part."""
    header, size = read_header(starter_path), starter_path.stat().st_size
    taken, estimated = [], []
    for window in (1024, 4096):
        llm = llama_cpp.build(config, llama_cpp.STARTER, {"context_window": window, **options})
        assert llm.chat(question, max_tokens=4).message.content
        taken.append(psutil.Process(llm.process_id).memory_info().rss)
        llm.close()
        estimated.append(fits(header, size, only_ram(9), window=window, **options).needed_bytes)
    return taken, estimated, fits(header, size, only_ram(9), window=3072, **options).kv_bytes


def test_the_estimate_is_what_the_child_takes(config, starter_path, ask):
    """Never less and at most a fifth more: a short question leaves part of the buffers untouched."""
    taken, estimated, kv = taken_and_estimated(config, starter_path, ask("Hi"), {"kv_type": "f16"})
    assert all(1.0 <= ours / real <= 1.2 for ours, real in zip(estimated, taken, strict=True)), (estimated, taken)
    assert taken[1] - taken[0] == pytest.approx(kv, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"kv_type": "q8_0"}, {"flash_attention": True}], ids=["f16", "q8_0", "flash"])
def test_the_estimate_is_near_when_a_long_prompt_was_read(config, starter_path, ask, options):
    """Within 15 %, with each kind of cache."""
    question = ask("The committee met on Tuesday. " * 140)
    taken, estimated, kv = taken_and_estimated(config, starter_path, question, options)
    assert all(1.0 <= ours / real <= 1.15 for ours, real in zip(estimated, taken, strict=True)), (estimated, taken)
    assert taken[1] - taken[0] == pytest.approx(kv, rel=0.25)


def test_the_cache_is_counted_from_heads_layers_and_type():
    """36 layers × 8 heads × 256 numbers × 2 bytes × 8,192 tokens, and what smaller numbers save."""
    full = fits(HEADER, SIZE, only_ram(9))
    assert full.window == DEFAULT_WINDOW
    assert full.kv_bytes == 36 * 8 * 256 * 2 * 8192
    assert fits(HEADER, SIZE, only_ram(9), kv_type="q8_0").kv_bytes == pytest.approx(full.kv_bytes * 34 / 64)
    assert fits(HEADER, SIZE, only_ram(9), kv_type="q4_0").kv_bytes == pytest.approx(full.kv_bytes * 9 / 32)
    assert full.needed_bytes == full.weights_bytes + full.kv_bytes + full.overhead_bytes


def test_layers_may_have_different_numbers_of_heads():
    """A list from the header, with 0 for layers that keep a state instead."""
    hybrid = GgufHeader("x", 8192, None, True, layers=4, embedding_length=512, heads=8, kv_heads=(0, 8, 0, 4),
                        key_length=64, value_length=64, vocabulary=1000)  # fmt: skip
    assert fits(hybrid, GB, only_ram(9), window=256).kv_bytes == 12 * 128 * 2 * 256


@pytest.mark.parametrize(
    ("machine", "verdict", "words"),
    [
        (with_gpu(12), "on_gpu", "Fits on the graphics card: about 4.0 GB of 15.0 GB with a window of 8,192 tokens."),
        (with_gpu(3), "partly_on_gpu", "of its 36 layers, the rest in memory"),
        (with_gpu(0.3), "in_memory", "Fits in memory: about 4.0 GB"),
        (only_ram(9), "in_memory", "9.0 GB can be used"),
        (only_ram(3.2), "too_large", "tokens it fits."),
        (only_ram(1), "too_large", "Too large for this machine"),
    ],
    ids=["card", "partly", "small card", "memory", "smaller window", "too large"],
)
def test_each_verdict_is_told_in_a_sentence(machine, verdict, words):
    """With the figures that decided."""
    fit = fits(HEADER, SIZE, machine)
    assert fit.verdict == verdict
    assert words in fit.sentence
    assert fit.gpu_layers == {"on_gpu": 36, "partly_on_gpu": fit.gpu_layers}.get(verdict, 0)


def test_the_largest_window_that_is_named_does_fit_and_the_next_one_does_not():
    """At most what the model was trained for."""
    for machine in (only_ram(3.2), only_ram(5), with_gpu(6), with_gpu(3, 3)):
        fit = fits(HEADER, SIZE, machine)
        assert fits(HEADER, SIZE, machine, window=fit.largest_window).verdict != "too_large"
        if fit.largest_window < 40_960:
            assert fits(HEADER, SIZE, machine, window=fit.largest_window + 256).verdict != fit.verdict or (
                fit.verdict == "too_large"
            )
    assert fits(HEADER, SIZE, only_ram(500)).largest_window == 40_960


def test_the_layers_that_are_named_stay_within_the_card():
    """Weights and cache of them, with the buffers and the driver's share."""
    for gigabytes in (0.9, 1.5, 2, 3, 4):
        fit = fits(HEADER, SIZE, with_gpu(gigabytes))
        on_card = (fit.weights_bytes + fit.kv_bytes) * fit.gpu_layers / 36 + fit.overhead_bytes + 500_000_000
        assert fit.gpu_layers == 0 or on_card <= gigabytes * GB
        if 0 < fit.gpu_layers < 36:
            assert on_card + (fit.weights_bytes + fit.kv_bytes) / 36 > gigabytes * GB


def readings(*cards, used=4 * GB, total=16 * GB):
    """A machine."""
    gpus = tuple(Gpu("card", memory_used_bytes=taken, memory_total_bytes=size) for taken, size in cards)
    return Readings(0.0, gpus, None, None, 4, used, total, (), None, (0.0, 0.0), 0.0)


def test_the_advice_stays_under_80_percent_of_each_card_with_what_others_take():
    """And under 90 % of the memory that is free."""
    machine = room(readings((2 * GB, 10 * GB), (9 * GB, 10 * GB), (0, None)))
    assert machine == Room(6 * GB, 20 * GB, 2, int(0.9 * 12 * GB))
    assert room(readings((2 * GB, 10 * GB)), has_gpu_support=False).gpus == 0
    fit = fits(HEADER, SIZE, room(readings((0, 5 * GB))))
    assert fit.verdict == "partly_on_gpu"


def test_a_header_that_says_little_gives_a_rough_estimate_that_says_so():
    """Never an error."""
    fit = fits(GgufHeader("unknown", None, None, False), SIZE, only_ram(9))
    assert (fit.verdict, fit.is_rough, fit.largest_window) == ("in_memory", True, None)
    assert "rough" in fit.sentence
    assert fits(GgufHeader("unknown", None, None, False), 0, only_ram(0)).verdict == "too_large"


def test_the_starter_fits_this_machine(config):
    """Asked of the backend, as a page does; a smaller window needs less."""
    fit = llama_cpp.fit(config, llama_cpp.STARTER)
    assert fit.verdict in ("on_gpu", "in_memory")
    assert llama_cpp.fit(config, llama_cpp.STARTER, {"context_window": 512}).needed_bytes < fit.needed_bytes


def test_a_model_that_keeps_a_state_needs_room_for_it():
    """Whatever the window is."""
    plain = GgufHeader("x", 8192, None, True, layers=40, embedding_length=4096, heads=32, kv_heads=(8,), key_length=128,
                       value_length=128, vocabulary=1000)  # fmt: skip
    state = fits(replace(plain, is_recurrent=True), GB, only_ram(9)).overhead_bytes
    assert state - fits(plain, GB, only_ram(9)).overhead_bytes == 4 * 40 * 2 * 4096 * 128
