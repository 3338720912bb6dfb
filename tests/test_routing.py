"""Which model answers, and which goes on."""

from __future__ import annotations

import pytest

from docmind import routing
from docmind.backends import ModelInfo
from docmind.errors import BackendUnavailable, ModelNotFound, ProfileError
from docmind.profiles import Profile


def write(config, name, text):
    """A profile of the person's own."""
    folder = config.model_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")


def test_the_starter_goes_on_unless_a_profile_says_otherwise(config):
    """And a profile that is missing, broken or switched off is left out."""
    mine = Profile("mine", "llama.cpp", "large")
    assert [p.name for p in routing.with_fallbacks(config, mine)] == ["mine", "starter"]
    write(config, "off", 'backend = "llama.cpp"\nmodel = "x"\nenabled = false\n')
    write(config, "broken", "no toml")
    write(config, "second", 'backend = "llama.cpp"\nmodel = "second"\n')
    named = Profile("mine", "llama.cpp", "large", fallbacks=("off", "broken", "missing", "second", "second"))
    assert [p.name for p in routing.with_fallbacks(config, named)] == ["mine", "second"]
    assert [p.name for p in routing.with_fallbacks(config, Profile("m", "llama.cpp", "x", fallbacks=()))] == ["m"]


def test_a_model_chosen_by_hand_drives_the_agent_when_it_is_large_enough():
    """A profile says for itself what it does."""
    large, small = (ModelInfo("m", 8192, size, None, False) for size in (4_000_000_000, 100_000_000))
    by_hand, saved = Profile("", "llama.cpp", "m"), Profile("mine", "llama.cpp", "m")
    assert routing.for_model(by_hand, large).agent == "react"
    assert routing.for_model(by_hand, small).agent == "direct"
    assert routing.for_model(saved, large).agent == "direct"


def test_a_backend_that_is_down_is_another_error_than_a_model_that_is_missing(config):
    """Each with what to do."""
    with pytest.raises(ModelNotFound) as missing:
        routing.find_model(config, Profile("", "llama.cpp", "nowhere"))
    assert "smollm2" in missing.value.hint
    with pytest.raises(BackendUnavailable) as down:
        routing.find_model(config, Profile("", "ollama", "qwen3:4b", options={"url": "http://127.0.0.1:9"}))
    assert down.value.reason == "unreachable"
    assert down.value.hint


def test_a_backend_without_a_model_asks_which(config):
    """It is not guessed."""
    with pytest.raises(ProfileError, match="Which model"):
        routing.choose(config, None, "ollama", None)
