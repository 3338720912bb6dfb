"""Whose machine reads what is sent to an address. Knows no backend, and opens no connection."""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

Place = Literal["this device", "your network", "the internet"]


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
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip  # ::ffff:127.0.0.1
    if ip.is_loopback:
        return "this device"
    return "your network" if ip.is_private else "the internet"
