"""Saved choices of model and settings: read strictly, explained when wrong, the person's own first."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from docmind import routing
from docmind.backends import REGISTRY
from docmind.config import Config
from docmind.errors import ProfileError, SettingsError
from docmind.profiles import (
    AUTO,
    DEFAULT,
    ROLES,
    SETTABLE,
    SETTINGS,
    Profile,
    as_values,
    copy_name,
    find_profile,
    load_profiles,
    read_profile,
    remove_profile,
    save_profile,
)


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
    assert {profile.role for profile in profiles if profile.backend == AUTO} == set(ROLES)
    for profile in profiles:
        assert profile.backend in (AUTO, *REGISTRY)
        assert profile.models or profile.backend != AUTO
        routing.check(profile)


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
    assert caught.value.hint.startswith("Did you mean 'careful'? There are: balanced, careful,")


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


# Keys and ranges ------------------------------------------------------------------------------------------------------


def test_every_key_is_described_with_the_default_it_has():
    """The dataclass and the table that forms, checks and the page are made from are one list."""
    fields = {field.name: field for field in dataclasses.fields(Profile)}
    assert list(fields) == [*SETTABLE, "source"]
    empty = Profile("", "")
    for option in SETTINGS:
        assert option.description
        value = getattr(empty, option.name)
        default = "" if option.name in ("name", "backend") else option.default
        assert (list(value) if isinstance(value, tuple) else value) == default, option.name


def test_the_page_about_profiles_has_every_key_with_its_unit_and_range():
    """docs/profiles.md cannot drift."""
    page = (Path(__file__).parents[1] / "docs" / "profiles.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)

    def span(option):
        if option.choices:
            return ", ".join(f"`{choice}`" for choice in option.choices if choice)
        return "–" if option.minimum is None else f"{option.minimum:,} to {option.maximum:,}"

    assert rows == [
        (option.name, option.unit or "–", span(option),
         "–" if option.default is None else f"`{json.dumps(option.default)}`", option.description)
        for option in SETTINGS
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "takes"),
    [
        ("temperature = 5.1", "0 to 5"),
        ("temperature = nan", "0 to 5"),
        ("top_p = -0.1", "0 to 1"),
        ("top_k = -1", "0 to"),
        ("max_output_tokens = 0", "1 to"),
        ("context_window = 255", "256 to"),
        ("idle_seconds = 0", "1 to 86400"),
        ('role = "clever"', "balanced"),
        ('models = ["x"]', "a table"),
        ('models = {ollama = "x"}', "first choice"),
        ('models = {ollama = [""]}', "first choice"),
        ('name = "two\\nlines"', "one line"),
        (f'name = "{"x" * 81}"', "80"),
    ],
)
def test_a_value_out_of_its_range_says_what_it_takes(save, line, takes):
    """With the file in the message and the range in the hint."""
    with pytest.raises(ProfileError, match=r"p\.toml") as caught:
        read_profile(save("p", GOOD + line), "user")
    assert takes in caught.value.hint


def test_auto_needs_no_model(save):
    """Its models stand in a table, or any will do."""
    profile = read_profile(save("p", 'backend = "auto"\n[models]\nollama = ["a*", "b"]\n'), "user")
    assert (profile.model, profile.models) == ("", {"ollama": ("a*", "b")})
    assert read_profile(save("q", 'backend = "auto"'), "user").models == {}


# Writing --------------------------------------------------------------------------------------------------------------

FULL = Profile(
    "Mine", "llama.cpp", "big", role="technical", enabled=False, description='Says "x" – ☃', agent="react",
    system_prompt="Two\nlines, and a tab\t.", context_window=4096, max_output_tokens=9, history_tokens=0,
    max_sentences=3, temperature=0.25, top_p=0.5, top_k=0, stop=("END", "\n\n"), first_token_seconds=300.0,
    idle_seconds=60.0, total_seconds=900.0, fallbacks=(), options={"threads": 2, "min_p": 0.1}, source="user",
)  # fmt: skip
AUTOMATIC = Profile(
    "auto one", AUTO, models={"llama.cpp": ("*Qwen*", "b"), "ollama": ("c",)}, options={"ollama": {"thinking": "on"}},
    source="user",
)  # fmt: skip


@pytest.mark.parametrize("profile", [FULL, AUTOMATIC, Profile("p", "llama.cpp", "m", source="user")], ids=repr)
def test_what_is_saved_is_what_is_found(config, profile):
    """Every key, and nothing that nobody set."""
    path = save_profile(config, profile)
    assert find_profile(config, profile.name) == profile
    said = tomllib.loads(path.read_text(encoding="utf-8"))
    assert as_values(profile) == said
    assert set(as_values(Profile("p", "llama.cpp", "m"))) == {"name", "backend", "model"}
    assert [path.name] == [found.name for found in path.parent.iterdir()], "no half file stays"


NAMES = [
    "mine",
    "Mine",
    "MINE",
    "con",
    "COM1",
    "nul",
    "a/b",
    "a b",
    "..",
    "C:\\x",
    "日本語",
    "été",
    "x.",
    " x",
    "-",
    "x" * 80,
]


def test_every_name_has_a_file_of_its_own_that_any_system_takes(config):
    """Also where capital letters do not count, and where `con` is a device."""
    for name in NAMES:
        save_profile(config, Profile(name, "llama.cpp", "m", source="user"))
    files = [path.name for path in (config.home / "models").iterdir()]
    assert len({name.casefold() for name in files}) == len(NAMES)
    for name in files:
        assert re.fullmatch(r"[a-z0-9_-]{1,60}\.toml", name), name
        assert name.split(".")[0] not in {"con", "prn", "aux", "nul", "com1"}
    assert {profile.name for profile in load_profiles(config)} >= set(NAMES)


def test_replacing_one_s_own_is_said_and_keeps_comments_beside_it(config, save):
    """In the file it had, whatever that was called."""
    path = save("by hand", '# why it is so\nname = "mine"\n' + GOOD)
    with pytest.raises(ProfileError) as caught:
        save_profile(config, Profile("mine", "llama.cpp", "other"))
    assert caught.value.reason == "profile_exists"
    assert find_profile(config, "mine").model == "big"
    assert save_profile(config, Profile("mine", "llama.cpp", "other"), overwrite=True) == path
    assert find_profile(config, "mine").model == "other"
    assert "# why it is so" in path.with_name("by hand.toml.before").read_text(encoding="utf-8")


def test_one_s_own_hides_a_shipped_one_until_it_is_removed(config):
    """Nothing of what came with DocMind is changed."""
    shipped = find_profile(config)
    save_profile(config, Profile(DEFAULT, "llama.cpp", "mine"))
    assert find_profile(config).model == "mine"
    remove_profile(config, DEFAULT)
    assert find_profile(config) == shipped
    for name, reason in ((DEFAULT, "profile_shipped"), ("nobody", "profile_missing")):
        with pytest.raises(ProfileError) as caught:
            remove_profile(config, name)
        assert caught.value.reason == reason
        assert caught.value.hint


def test_a_broken_file_can_be_removed_by_its_name(config, save):
    """And does not keep others from being copied or saved."""
    path = save("broken", "[[[")
    assert copy_name(config, "starter") == "starter copy"
    save_profile(config, Profile("starter copy", "llama.cpp", "m"))
    assert copy_name(config, "starter") == "starter copy 2"
    remove_profile(config, "broken")
    assert not path.exists()


def test_what_no_file_can_hold_is_refused_before_one_is_touched(config):
    """Half of a surrogate pair, as a browser may send it; a value out of range."""
    for profile in (
        Profile("p", "llama.cpp", "m\ud800"), Profile("p", "llama.cpp", "m", temperature=9.0), Profile("", "a", "m")
    ):  # fmt: skip
        with pytest.raises(ProfileError):
            save_profile(config, profile)
    assert not (config.home / "models").exists()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(config):
    """A file stands in its place."""
    config.home.mkdir(parents=True)
    (config.home / "models").write_text("")
    with pytest.raises(SettingsError) as caught:
        save_profile(config, Profile("p", "llama.cpp", "m"))
    assert caught.value.hint
