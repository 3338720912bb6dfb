"""Keys of model servers: where they are kept, and where they never are."""

from __future__ import annotations

import keyring
import keyring.backend
import keyring.errors
import pytest
from keyring.backends import chainer, fail, null

from docmind import keys
from docmind.errors import SettingsError

URL = "https://api.example.com/v1"
KEY = "sk-canary-0123456789"


class Guarded(keyring.backend.KeyringBackend):
    """Stands for the system's keyring, of which none runs here."""

    priority = 5
    name = "Guarded"

    def __init__(self):
        self.kept = {}
        self.is_locked = False

    def _open(self):
        if self.is_locked:
            raise keyring.errors.KeyringLocked("locked")

    def get_password(self, service, username):
        """As the system's."""
        self._open()
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        """As the system's."""
        self._open()
        self.kept[service, username] = password

    def delete_password(self, service, username):
        """As the system's."""
        self._open()
        if self.kept.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError("none")


class Plaintext(Guarded):
    """A keyring that writes into a file anyone can read, as keyrings.alt does."""

    name = "PlaintextKeyring"


Plaintext.__module__ = "keyrings.alt.file"


@pytest.fixture(autouse=True)
def restart():
    """Each test is a new start."""
    before = keyring.get_keyring()
    keys._known.clear()
    yield keys._known.clear
    keys._known.clear()
    keyring.set_keyring(before)


@pytest.fixture
def guarded(monkeypatch):
    """The system's keyring."""
    monkeypatch.setattr(keys, "SAFE", keys.SAFE | {Guarded.__module__})
    ring = Guarded()
    keyring.set_keyring(ring)
    return ring


def test_a_key_is_kept_in_the_systems_keyring_for_its_address(guarded, restart):
    """Another port, scheme or host is another server."""
    assert keys.keep_key(URL, f" {KEY}\n") == "keyring"
    assert guarded.kept == {("docmind", "https://api.example.com:443"): KEY}
    restart()
    assert keys.find_key("https://API.example.com/other") == KEY
    for other in ("http://api.example.com", "https://api.example.com:8443", "https://api.example.com.evil.example",
                  "https://api.example.com@evil.example", "nonsense://", ""):  # fmt: skip
        assert keys.find_key(other) is None
    assert keys.keyring_name() == "Guarded"


def test_a_key_is_forgotten_for_good(guarded, restart):
    """Also when it was never there."""
    keys.keep_key(URL, KEY)
    keys.forget_key(URL)
    keys.forget_key(URL)
    keys.forget_key("nonsense://")
    assert guarded.kept == {}
    assert keys.find_key(URL) is None
    restart()
    assert keys.find_key(URL) is None


@pytest.mark.parametrize("ring", [null.Keyring, fail.Keyring, Plaintext], ids=["null", "fail", "plaintext"])
def test_a_keyring_that_guards_nothing_is_refused(ring, restart):
    """The key is held in memory, until the program ends."""
    keyring.set_keyring(ring())
    assert keys.keyring_name() is None
    assert keys.keep_key(URL, KEY) == "this start"
    assert keys.find_key(URL) == KEY
    assert getattr(keyring.get_keyring(), "kept", {}) == {}
    restart()
    assert keys.find_key(URL) is None


def test_of_several_keyrings_only_the_safe_one_is_used(guarded, monkeypatch):
    """Whichever comes first."""
    plain, chain = Plaintext(), chainer.ChainerBackend()
    monkeypatch.setattr(chainer.ChainerBackend, "backends", [plain, guarded])
    keyring.set_keyring(chain)
    assert keys.keep_key(URL, KEY) == "keyring"
    assert plain.kept == {}
    assert KEY in guarded.kept.values()


def test_a_locked_keyring_is_none(guarded, restart):
    """The person can still work."""
    guarded.is_locked = True
    assert keys.find_key(URL) is None
    assert keys.keep_key(URL, KEY) == "this start"
    assert keys.find_key(URL) == KEY
    keys.forget_key(URL)
    assert keys.find_key(URL) is None


def test_a_key_of_the_environment_goes_only_where_nobody_reads_it_on_the_way(monkeypatch):
    """It was given for no address."""
    monkeypatch.setenv("SOME_KEY", KEY)
    assert keys.find_key(URL, ["OTHER_KEY", "SOME_KEY"]) == KEY
    assert keys.find_key("http://127.0.0.1:8080", ["SOME_KEY"]) == KEY
    assert keys.find_key("http://192.168.1.20:8080", ["SOME_KEY"]) is None
    assert keys.find_key("http://api.example.com", ["SOME_KEY"]) is None
    assert keys.find_key(URL) is None
    keys.keep_key(URL, "sk-other")
    assert keys.find_key(URL, ["SOME_KEY"]) == "sk-other"


@pytest.mark.parametrize("key", ["", " ", "two words", "line\nbreak", "schlüssel", "x" * 5000, "nul\0"])
def test_what_is_no_key_is_refused(key, monkeypatch):
    """It could not stand in a header."""
    with pytest.raises(SettingsError) as caught:
        keys.keep_key(URL, key)
    assert caught.value.hint
    assert not key.strip() or key not in str(caught.value)
    if "\0" not in key:
        monkeypatch.setenv("SOME_KEY", key)
        assert keys.find_key(URL, ["SOME_KEY"]) is None


def test_a_key_needs_an_address():
    """One that can be reached."""
    with pytest.raises(SettingsError):
        keys.keep_key("nonsense://", KEY)
