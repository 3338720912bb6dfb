"""What the person decided for the whole program."""

from __future__ import annotations

import dataclasses
import os
import stat
import threading

import pytest

from docmind.config import Config
from docmind.errors import SettingsError
from docmind.settings import Settings, change_settings, read_settings, save_settings


@pytest.fixture
def config(tmp_path):
    """An empty data folder that is not made yet."""
    return Config(home=tmp_path / "home")


def test_nothing_decided_is_the_default(config):
    """And reading makes no file."""
    assert read_settings(config) == Settings()
    assert not config.home.exists()


def test_what_is_kept_is_read_again(config):
    """For this person only, and whole."""
    settings = Settings(
        local_only=True, allowed=('http://a"b\n:1', "https://ä.example:443"), backend_order=("x", "y"),
        embedding="x:y:z", embedding_options={"url": "http://a", 'odd "key"': "query: "},
    )  # fmt: skip
    save_settings(config, settings)
    assert read_settings(config) == settings
    assert [path.name for path in config.home.iterdir()] == ["settings.toml"]
    if os.name == "posix":
        assert stat.S_IMODE(config.settings.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    ["local_only = 1", "local_only = 'true'", "allowed = 'http://a'", "allowed = [1]", "unknown = 1", "= broken",
     "embedding = true", "embedding = ['x']", "embedding_options = 'x'", "[embedding_options]\nurl = 1",
     "local_only = true\nlocal_only = false", "allowed = [\ud800]",
     "local_only = " + "1" * 5000, "allowed = " + "[" * 20_000],
    ids=lambda text: ascii(text)[:40],
)  # fmt: skip
def test_a_broken_file_is_an_error_and_no_default(config, text):
    """A switch that was thrown must not open by itself."""
    config.home.mkdir()
    config.settings.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SettingsError) as caught:
        read_settings(config)
    assert caught.value.hint
    assert config.settings.exists()


def test_what_cannot_be_written_is_an_error_and_what_was_there_stays(config):
    """The folder is a file, say."""
    config.home.write_text("no folder", encoding="utf-8")
    with pytest.raises(SettingsError):
        save_settings(config, Settings(local_only=True))
    assert config.home.read_text(encoding="utf-8") == "no folder"


def test_two_who_change_them_at_once_lose_nothing(config):
    """A switch that was thrown does not open because somebody allowed an address."""
    save_settings(config, Settings())

    def allow_one(number):
        change_settings(config, lambda s: dataclasses.replace(s, allowed=(*s.allowed, f"http://box:{number}")))

    threads = [threading.Thread(target=allow_one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    change_settings(config, lambda s: dataclasses.replace(s, local_only=True))
    for thread in threads:
        thread.join()
    settings = read_settings(config)
    assert settings.local_only
    assert len(settings.allowed) == 12
