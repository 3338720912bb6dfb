"""Whose machine reads what is sent to an address, and whether the person allowed it. Opens no connection."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from docmind.errors import BackendError, ConsentMissing, SettingsError
from docmind.settings import Settings, change_settings, read_settings

if TYPE_CHECKING:
    from docmind.config import Config

Place = Literal["this device", "your network", "the internet"]
PLACES: Final[tuple[Place, ...]] = ("this device", "your network", "the internet")  # nearest first


def where_text_goes(url: str | None) -> tuple[Place, str]:
    """Whose machine reads questions and passages, and its name; a backend without an address runs in this program."""
    if url is None:
        return "this device", "localhost"
    try:
        host = urlsplit(url if "://" in url else f"http://{url}").hostname or ""
    except ValueError:
        host = ""
    host = host.rstrip(".")
    if not host:  # nobody knows where that is: the furthest there is
        return "the internet", url
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return "this device", host
    try:
        return place_of(host), host
    except ValueError:  # a name: one without a dot, or of the local network, is nobody's on the internet
        is_near = "." not in host or host.endswith((".local", ".lan", ".home.arpa", ".internal"))
        return ("your network" if is_near else "the internet"), host


def place_of(address: str) -> Place:
    """Whose machine has an IP address.

    Raises:
        ValueError: It is none.
    """
    ip = real_address(address)
    if ip.is_loopback:
        return "this device"
    # A Teredo tunnel (RFC 4380) ends anywhere, though its addresses count as private.
    is_tunnel = ip.version == 6 and ip.teredo is not None
    return "your network" if ip.is_private and not is_tunnel else "the internet"


def real_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IP address, without what only wraps it: ::ffff:127.0.0.1, or 64:ff9b::7f00:1 of NAT64 (RFC 6052).

    Raises:
        ValueError: It is none.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return getattr(ip, "ipv4_mapped", None) or ip


def server_address(said: str, usual_port: int) -> str:
    """The address of a server from a host, host:port or URL; ws:// means http://, and nothing means this machine.

    0.0.0.0 and [::] are what a server listens on; asking it means this machine. Without a scheme the port is the usual
    one, with a scheme it is the scheme's.

    Raises:
        BackendError: It is no address (`invalid_option`).
    """
    said = said.strip().strip("\"'")
    scheme, separator, rest = said.partition("://")
    if not separator:
        scheme, rest = "http", said
    scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, or an open bracket
        host, port, parts = None, None, urlsplit("")
    is_here = not said or rest.startswith(":")
    if scheme not in ("http", "https") or not (host or is_here):
        raise BackendError(
            f"'{said[:200]}' is no address.", f"Write it as http://127.0.0.1:{usual_port}.", reason="invalid_option"
        )
    usual = {"http": 80, "https": 443}[scheme] if separator else usual_port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host or "", host or "127.0.0.1")
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port or usual}{parts.path.rstrip('/')}"


def origin(url: str) -> str:
    """Scheme, host and port of an address, which consent and keys are bound to: "https://api.example.com:443".

    Raises:
        ValueError: It has no host, or its port is no number.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = (parts.hostname or "").rstrip(".")
    if not host:
        raise ValueError(f"{url!r} has no host")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def checked_place(config: Config, url: str, *, carries_text: bool) -> Place:
    """The furthest place that a connection to an address may lead to: where the address says it is.

    Args:
        carries_text: Whether questions or passages will be sent; a listing of models carries none.

    Raises:
        ConsentMissing: It is beyond this device, and the person wants nothing asked there (`local_only`) or has not
            allowed text to be sent there (`consent_missing`), or what was decided cannot be read (`settings_invalid`).
    """
    place, host = where_text_goes(url)
    if place == "this device":
        return place
    try:
        settings = read_settings(config)
    except SettingsError as error:
        raise ConsentMissing(str(error), error.hint, reason=error.reason) from error
    if settings.local_only:
        raise ConsentMissing(
            f"{host} is on {place}, and DocMind is set to stay on this device.",
            "Choose a model on this device, or switch “Local only” off.",
            reason="local_only",
        )
    if carries_text and not is_allowed(settings, url):
        raise ConsentMissing(
            f"Questions and passages would be sent to {host} on {place}, which you have not allowed.",
            f"Allow it in the sidebar, or run: docmind settings allow {origin(url)}",
        )
    return place


def is_allowed(settings: Settings, url: str) -> bool:
    """Whether the person allowed text to be sent to an address."""
    try:
        return origin(url) in settings.allowed
    except ValueError:
        return False


def allow(config: Config, url: str, *, is_allowed: bool = True) -> Settings:
    """Keep the person's consent for an address, or take it back; gives all that is decided now.

    Raises:
        SettingsError: It cannot be kept.
        ValueError: It is no address.
    """
    wanted = origin(url)

    def change(before: Settings) -> Settings:
        others = tuple(address for address in before.allowed if address != wanted)
        return dataclasses.replace(before, allowed=(*others, wanted) if is_allowed else others)

    return change_settings(config, change)
