"""Saved choices of model and settings: read strictly, explained when wrong, the person's own first."""

from __future__ import annotations

import pytest

from docmind.backends import REGISTRY
from docmind.config import Config
from docmind.errors import ProfileError
from docmind.profiles import DEFAULT, find_profile, load_profiles, read_profile


@pytest.fixture
def save(config):
    """Writes one of the person's own profiles."""

    def write(name, text):
        (config.home / "models").mkdir(parents=True, exist_ok=True)
        path = config.home / "models" / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


GOOD = 'backend = "llama.cpp"\nmodel = "big"\n'


def test_the_starter_is_there_without_doing_anything(config):
    """It is shipped, on, and names a backend there is."""
    starter = find_profile(config)
    assert starter.name == DEFAULT == "starter"
    assert (starter.source, starter.enabled) == ("shipped", True)
    assert starter.backend in REGISTRY


def test_every_shipped_profile_can_be_read(config):
    """And says in a sentence what it is."""
    profiles = load_profiles(config)
    assert [profile.name for profile in profiles] == sorted(profile.name for profile in profiles)
    assert all(profile.description for profile in profiles)
    assert all(profile.backend in REGISTRY for profile in profiles)


def test_a_profile_takes_its_name_from_the_file_and_its_types_from_the_fields(config, save):
    """A whole number may stand for a float."""
    save(
        "mine",
        GOOD + 'temperature = 1\nstop = ["END"]\ncontext_window = 4096\nenabled = false\n[options]\nthreads = 4\n',
    )
    profile = find_profile(config, "mine")
    assert (profile.name, profile.source, profile.enabled) == ("mine", "user", False)
    assert (profile.temperature, type(profile.temperature)) == (1.0, float)
    assert profile.stop == ("END",)
    assert profile.context_window == 4096
    assert profile.options == {"threads": 4}
    assert profile.top_p is None


def test_the_person_s_profile_wins_over_a_shipped_one_of_the_same_name(config, save):
    """By name, not by file."""
    save("anything", 'name = "starter"\n' + GOOD)
    assert find_profile(config).model == "big"
    assert find_profile(config).source == "user"
    assert [profile.name for profile in load_profiles(config)].count("starter") == 1


def test_an_unknown_profile_names_the_nearest_and_all(config, save):
    """So that nobody has to look."""
    save("careful", GOOD)
    with pytest.raises(ProfileError) as caught:
        find_profile(config, "carefull")
    assert caught.value.reason == "profile_missing"
    assert caught.value.hint.startswith("Did you mean 'careful'? There are: careful, starter")


def test_an_unknown_key_names_the_nearest(save):
    """Nothing is passed over in silence."""
    with pytest.raises(ProfileError, match="'temprature'") as caught:
        read_profile(save("p", GOOD + "temprature = 0.5"), "user")
    assert "Did you mean 'temperature'?" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        'temperature = "hot"',
        "temperature = true",
        'max_output_tokens = "many"',
        "max_output_tokens = 1.5",
        "enabled = 1",
        'stop = "END"',
        "stop = [1]",
        'agent = "magic"',
        "agent = []",
        "options = 3",
        "name = 5",
        "context_window = false",
        "role = []",
        'source = "shipped"',
    ],
)
def test_a_value_of_the_wrong_type_says_what_it_takes(save, line):
    """With the key and the file in the message."""
    with pytest.raises(ProfileError, match=line.split(" ")[0]) as caught:
        read_profile(save("p", GOOD + line), "user")
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", 'backend = "llama.cpp"', 'model = "x"', 'backend = ""\nmodel = "x"'])
def test_a_profile_needs_a_backend_and_a_model(save, text):
    """The hint shows the line that is missing."""
    with pytest.raises(ProfileError, match=r"names no (backend|model)") as caught:
        read_profile(save("p", text), "user")
    assert ' = "' in caught.value.hint


@pytest.mark.parametrize("content", [b"backend = ", b"\xff\xfe", b"[[["])
def test_a_file_that_is_no_toml_is_named(config, save, content):
    """And can be mended or removed."""
    path = save("broken", "")
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"broken\.toml"):
        load_profiles(config)


def test_no_folder_of_one_s_own_is_no_error(tmp_path):
    """The shipped ones are there."""
    assert load_profiles(Config(home=tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
