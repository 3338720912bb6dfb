"""Trying a model, with the real starter: what comes back, how far it is, and that it can be stopped."""

from __future__ import annotations

import itertools
import threading

import pytest

from docmind.backends import llama_cpp
from docmind.trial import MAX_TOKENS, try_model


@pytest.fixture(autouse=True)
def no_child_stays():
    """Each test loads its model anew."""
    llama_cpp.close_all()
    yield
    llama_cpp.close_all()


def test_a_trial_shows_words_and_figures(config):
    """The starter answers; the window is the one it was loaded with; its phases come in order."""
    seen = []
    trial = try_model(config, "llama.cpp", llama_cpp.STARTER, {"context_window": 1024}, threading.Event(), seen.append)
    assert "harbour" in trial.text.lower()
    assert trial.context_window == 1024
    assert trial.first_token_seconds > 0
    assert trial.tokens_per_second > 0
    assert trial.load_seconds > 0
    assert not trial.is_stopped
    phases = [phase for phase, _ in itertools.groupby(progress.doing for progress in seen)]
    assert phases == ["loading", "reading", "writing"]
    assert seen[-1].text.strip() == trial.text
    assert len([progress for progress in seen if progress.doing == "writing"]) <= MAX_TOKENS + 2


def test_a_model_in_memory_is_not_loaded_again(config):
    """Then there is no time of loading."""
    llm = llama_cpp.build(config, llama_cpp.STARTER)
    llm.warm_up()
    trial = try_model(config, "llama.cpp", llama_cpp.STARTER, {}, threading.Event())
    assert trial.load_seconds is None
    assert trial.text
    assert llm.is_loaded
