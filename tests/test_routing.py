"""Which model answers, and which goes on."""

from __future__ import annotations

import pytest

from docmind import routing
from docmind.backends import ModelInfo
from docmind.errors import BackendError, BackendUnavailable, DocMindError, ModelNotFound, ProfileError
from docmind.profiles import AUTO, Profile


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


def test_the_same_model_elsewhere_or_with_another_window_goes_on(config):
    """The one may be there when the other is not, and a smaller window fits a smaller memory."""
    write(config, "same", 'backend = "ollama"\nmodel = "m"\ntemperature = 0.9\n')
    write(config, "elsewhere", 'backend = "ollama"\nmodel = "m"\n[options]\nurl = "http://192.168.1.5:11434"\n')
    write(config, "smaller", 'backend = "ollama"\nmodel = "m"\ncontext_window = 2048\n')
    mine = Profile("mine", "ollama", "m", fallbacks=("same", "elsewhere", "smaller"))
    assert [p.name for p in routing.with_fallbacks(config, mine)] == ["mine", "elsewhere", "smaller"]


def test_fallbacks_in_vain_are_named(config):
    """Missing, broken, switched off, or with values that are none."""
    write(config, "off", 'backend = "llama.cpp"\nmodel = "x"\nenabled = false\n')
    write(config, "broken", "no toml")
    write(config, "wrong", 'backend = "ollama"\nmodel = "x"\n[options]\nurl = 5\n')
    write(config, "second", 'backend = "llama.cpp"\nmodel = "second"\n')
    mine = Profile("mine", "llama.cpp", "large", fallbacks=("off", "broken", "missing", "wrong", "second"))
    assert routing.fallbacks_left_out(config, mine) == ("off", "broken", "missing", "wrong")
    assert [p.name for p in routing.with_fallbacks(config, mine)] == ["mine", "second"]


@pytest.mark.parametrize(
    "profile",
    [Profile("p", "ollama", "m", options={"url": 5}), Profile("p", "openai-compatible", "m", options={"url": 5}),
     Profile("p", "lm-studio", "m", options={"url": ["x"]}), Profile("p", AUTO, options={"ollama": "http://x"}),
     Profile("p", AUTO, options={"url": "http://192.168.1.5:11434"}), Profile("p", AUTO, options={"olama": {}}),
     Profile("p", "ollama", "m", options={"urll": "http://x"})],
    ids=lambda profile: f"{profile.backend} {profile.options}",
)  # fmt: skip
def test_values_that_are_none_are_told_when_a_profile_is_used(config, profile):
    """Nobody has checked a file that was written by hand, and nothing of it is passed over."""
    with pytest.raises(DocMindError) as caught:
        routing.find_model(config, routing.with_fallbacks(config, profile)[0])
    assert caught.value.hint


@pytest.mark.parametrize("url", ["http://me:SECRET@h:1234", "https://h/v1?key=SECRET", "https://SECRET@h", "http://h#SECRET"])
@pytest.mark.parametrize("backend", ["ollama", "lm-studio", "openai-compatible", AUTO])
def test_a_secret_in_an_address_is_refused_and_not_repeated(backend, url):
    """It would be kept in a file, and shown."""
    options = {"ollama": {"url": url}} if backend == AUTO else {"url": url}
    with pytest.raises(BackendError) as caught:
        routing.check(Profile("p", backend, "m", options=options))
    assert "SECRET" not in f"{caught.value} {caught.value.hint}"
    assert "docmind keys keep" in caught.value.hint


def test_a_window_that_is_smaller_than_the_profile_s_is_said():
    """A model has the window it was trained for, or loaded with, whatever was wanted."""
    profile = Profile("p", "ollama", "m", context_window=32_000)
    assert routing.all_left_out(profile, {"context_window": 2048}) == ("context_window",)
    assert routing.all_left_out(profile, {"context_window": 2048, "settings_left_out": ["context_window"]}) == (
        "context_window",
    )
    assert routing.all_left_out(profile, {"context_window": 32_000}) == ()
    assert routing.all_left_out(profile, {}) == ()


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
