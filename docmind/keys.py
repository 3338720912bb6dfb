"""Keys of model servers: in the system's keyring, else for this start only, else from the environment.

A key is bound to the address it was given for (scheme, host and port) and goes nowhere else. It is written to no file
of ours, and no message, log or page holds it. Knows no backend.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, Literal

from docmind.backends.places import origin, where_text_goes
from docmind.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVICE: Final = "docmind"
MAX_CHARACTERS: Final = 4_096
# Keyrings that the system itself guards. The others write keys to a file anyone can read, or drop them.
SAFE: Final = frozenset(
    {"keyring.backends.SecretService", "keyring.backends.libsecret", "keyring.backends.kwallet",
     "keyring.backends.macOS", "keyring.backends.Windows"}
)  # fmt: skip

_lock = threading.Lock()
_known: dict[str, str | None] = {}  # by address; a keyring may ask the person for a password, so it is asked once
_given: set[str] = set()  # what was given out, so that no message repeats it
_LEAST_SECRET: Final = 8  # characters; some servers want a key that is none, like "x", and words would lose letters


def find_key(url: str, variables: Sequence[str] = ()) -> str | None:
    """The key for an address; None: there is none.

    Args:
        variables: Names in the environment where it may stand. Such a key is given for no address, so it is taken only
            for one that can be trusted with it: reached by https, or on this device.
    """
    try:
        address = origin(url)
    except ValueError:
        return None
    with _lock:
        if address not in _known:
            _known[address] = _stored(address)
        if (known := _known[address]) is not None:
            return given_out(known)
    is_trusted = address.startswith("https:") or where_text_goes(url)[0] == "this device"
    said = (os.environ.get(name, "").strip() for name in variables)
    return next((given_out(key) for key in said if is_trusted and _is_key(key)), None)


def given_out(key: str) -> str:
    """The key, which `without_keys` knows from now on: for one that was found elsewhere than by `find_key`."""
    _given.add(key)
    return key


def without_keys(text: str) -> str:
    """The text without the keys that were given out: a server, or a proxy on the way, may repeat what it was sent."""
    for key in sorted(_given, key=len, reverse=True):  # one may be the beginning of another
        if len(key) >= _LEAST_SECRET:
            text = text.replace(key, "(key)")
    return text


def keep_key(url: str, key: str) -> Literal["keyring", "this start"]:
    """Keep a key for an address, and say where: without a safe keyring it is forgotten when the program ends.

    Raises:
        SettingsError: It is no key, or no address.
    """
    key = key.strip()
    if not _is_key(key):
        raise SettingsError("That is no key.", "Copy it once more: it has letters, digits and signs, and no spaces.")
    try:
        address = origin(url)
    except ValueError as error:
        raise SettingsError(f"'{url[:200]}' is no address.", "Write it as https://api.example.com.") from error
    with _lock:
        _known[address] = key
        for ring in _safe_keyrings():
            if _asked(ring.set_password, SERVICE, address, key) is not _FAILED:
                return "keyring"
    return "this start"


def forget_key(url: str) -> None:
    """Forget the key for an address, in the keyring too."""
    try:
        address = origin(url)
    except ValueError:
        return
    with _lock:
        _known[address] = None
        for ring in _safe_keyrings():
            _asked(ring.delete_password, SERVICE, address)


def keyring_name() -> str | None:
    """What the system's keyring is called; None: there is no safe one."""
    return next((str(getattr(ring, "name", type(ring).__name__)) for ring in _safe_keyrings()), None)


def _is_key(text: str) -> bool:
    """Whether a text can stand in a header as it is."""
    return 0 < len(text) <= MAX_CHARACTERS and all("!" <= character <= "~" for character in text)


def _stored(address: str) -> str | None:
    for ring in _safe_keyrings():
        found = _asked(ring.get_password, SERVICE, address)
        if isinstance(found, str) and _is_key(found):
            return found
    return None


def _safe_keyrings() -> Iterator[Any]:
    """The keyrings in use that are safe."""
    import keyring
    from keyring.backends.chainer import ChainerBackend

    ring = keyring.get_keyring()
    rings = ring.backends if isinstance(ring, ChainerBackend) else [ring]
    yield from (ring for ring in rings if type(ring).__module__ in SAFE)


_FAILED: Final = object()


def _asked(call: Any, *arguments: str) -> Any:
    """What a keyring answers; `_FAILED` for one that is locked or not there, as on a machine without a desktop."""
    import keyring.errors

    try:
        return call(*arguments)
    except (keyring.errors.KeyringError, OSError, RuntimeError):
        return _FAILED
