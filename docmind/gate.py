"""Who may talk to the app, and what its pages may load: a gate in front of the web server, as pure ASGI middleware.

Each request, and each websocket before it is accepted, must come from this machine, to one of its own names, and not
from a page of another site; anything else gets 403. Each response carries a Content-Security-Policy under which a page
loads nothing from elsewhere. Sharing with other machines is a decision: `DOCMIND_SHARE` and `DOCMIND_TOKEN`.
Owns these rules and their words; knows nothing of documents, nor of what is served behind it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from docmind.errors import DocMindError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping
    from pathlib import Path

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)

LOCAL_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
TOKEN_CHARACTERS: Final = 16  # the shortest token that is accepted
WRONG_TOKENS: Final = 10  # so many wrong ones, by all visitors together,
WRONG_TOKENS_SECONDS: Final = 60.0  # within this time, and no token is looked at until it has passed
COOKIE: Final = "docmind_visitor"

# What a page may load: itself, pictures and workers that it makes itself, the server's own inline script. No host but
# this one. Measured on markdown, tables, charts, pictures, components and streaming: no violation, 0 hosts reached.
POLICY: Final = (
    "default-src 'self'; script-src 'self' {hashes} blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::([0-9]{1,5}))?")
_SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script\s*>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Share:
    """A decision to let other machines in.

    Attributes:
        host: The name or address people type, lower case, as in a Host header.
        port: The port people type, when it is not the one the server listens on (a proxy's); None otherwise.
        token: What they must bring once.
    """

    host: str
    port: int | None
    token: str = field(repr=False)


def read_share(environment: Mapping[str, str]) -> Share | None:
    """The decision in `DOCMIND_SHARE` and `DOCMIND_TOKEN`; None when neither is set.

    Raises:
        DocMindError: Only one of them is set, the host is none, or the token is shorter than 16 characters.
    """
    host, token = environment.get("DOCMIND_SHARE", "").strip().lower(), environment.get("DOCMIND_TOKEN", "")
    if not host and not token:
        return None
    if not host or not token:
        missing = "DOCMIND_TOKEN" if host else "DOCMIND_SHARE"
        raise DocMindError(
            f"To share DocMind, {missing} is missing.",
            "Set DOCMIND_SHARE to the host name or address people will type and DOCMIND_TOKEN to a secret, or neither.",
        )
    if len(token) < TOKEN_CHARACTERS:
        raise DocMindError(
            f"DOCMIND_TOKEN has {len(token)} characters; at least {TOKEN_CHARACTERS} are needed.",
            f"This is a good one: {secrets.token_urlsafe(18)}",
        )
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"  # an IPv6 address stands in brackets in a Host header
    matched = _HOST.fullmatch(host)
    if not matched or matched[1] in LOCAL_NAMES:
        raise DocMindError(
            f"DOCMIND_SHARE={host} is not the name of a host that others can reach.",
            "Set it to the host name or address people will type, without http:// and without a path.",
        )
    return Share(matched[1], int(matched[2]) if matched[2] else None, token)


def check_address(address: str, share: Share | None) -> None:
    """Refuse to listen where other machines can reach it, unless that was decided.

    Args:
        address: What the server is told to listen on.
        share: The decision, from `read_share`.

    Raises:
        DocMindError: `address` is not of this machine alone and there is no decision to share.
    """
    if share is None and address.strip("[]").lower() not in {name.strip("[]") for name in LOCAL_NAMES}:
        raise DocMindError(
            f"DocMind does not listen on {address}: everybody in the network could read your documents.",
            "Start it without that address, or decide to share it: docs/security.md says how.",
        )


def content_security_policy(index_html: Path) -> str:
    """The policy for every response; the inline scripts of the server's own start page are allowed by their hash."""
    # Browsers hash what they parsed, in which every line end is \n.
    html = index_html.read_text(encoding="utf-8").replace("\r\n", "\n")
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for attributes, script in _SCRIPT.findall(html)
        if not re.search(r"\bsrc\s*=", attributes, re.IGNORECASE)
    ]
    return " ".join(POLICY.format(hashes=" ".join(hashes)).split())


class Gate:
    """ASGI middleware: lets in who may come in, and gives every response the headers that keep its page at home.

    Attributes:
        app: What is served behind the gate.
        share: Whom else to let in; None for nobody.
    """

    def __init__(self, app: Application, *, policy: str, share: Share | None = None) -> None:
        self.app = app
        self.share = share
        self._headers = {
            b"content-security-policy": policy.encode("ascii"),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-opener-policy": b"same-origin",
            b"cross-origin-resource-policy": b"same-origin",
            b"x-frame-options": b"DENY",
        }
        # New in every process: the cookie says nothing about the token and cannot be guessed through it.
        self._cookie = secrets.token_urlsafe(32)
        self._wrong: deque[float] = deque(maxlen=WRONG_TOKENS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in self._headers]
                message = {**message, "headers": [*kept, *self._headers.items()]}
            await send(message)

        visit = _read_visit(scope)
        refusal = "DocMind does not understand this request." if visit is None else self._refusal(visit)
        if visit is None or refusal:
            await _answer(scope, send_with_headers, 403, refusal or "")
        elif visit.token is not None and not visit.is_local:
            await self._admit(scope, visit, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, visit: _Visit) -> str:
        """Why a visit is refused, in words for the person who sees them; "" when it is not."""
        port = visit.port
        if visit.is_local:
            is_ours = visit.typed_port == port
        else:
            expected = self.share and (self.share.port or port)
            # A proxy in front may add the s of https without saying so: then no port is typed and none is in Host.
            is_ours = (
                self.share is not None
                and visit.name == self.share.host
                and (visit.typed_port == expected or (expected in (80, 443) and visit.host == visit.name))
            )
        if not is_ours:
            return f"DocMind answers at http://127.0.0.1:{port} and http://localhost:{port} on its own machine only."
        schemes = ("http", "https") if not visit.is_local else ("https",) if visit.is_secure else ("http",)
        if visit.origin is not None and visit.origin not in [f"{scheme}://{visit.host}" for scheme in schemes]:
            return "Another web page asked for this, and DocMind answers its own pages only."
        if not visit.is_local and visit.token is not None:
            return ""  # a link with a token may come from anywhere, a mail for instance
        if visit.is_from_elsewhere:
            return (
                "A link on another web page led here, and DocMind answers its own pages only. "
                "To open it, click into the browser's address bar and press Enter."
            )
        if not visit.is_local and not any(hmac.compare_digest(cookie, self._cookie) for cookie in visit.cookies):
            return "This DocMind is shared by invitation. Follow the link with the token that you were given."
        return ""

    async def _admit(self, scope: Scope, visit: _Visit, send: Send) -> None:
        """Look at a token: the right one is answered with a cookie, and leads on to the address without it."""
        assert self.share is not None
        assert visit.token is not None
        now = time.monotonic()
        if len(self._wrong) == WRONG_TOKENS and now - self._wrong[0] < WRONG_TOKENS_SECONDS:
            await _answer(scope, send, 429, "Too many wrong tokens. Wait a minute, then follow your link again.")
            return
        # Bytes: compare_digest takes no other text than ASCII.
        if not hmac.compare_digest(visit.token.encode(errors="replace"), self.share.token.encode(errors="replace")):
            self._wrong.append(now)
            log.warning("a wrong token was tried")
            await _answer(scope, send, 403, "This is not the token. Ask for a new link.")
            return
        cookie = f"{COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Strict" + "; Secure" * visit.is_secure
        # Not a redirect: a browser that another site sent here keeps a Strict cookie back through all of them
        # (RFC 6265bis, section 5.2), but not when a page of ours leads on.
        await _answer(
            scope, send, 200, "Welcome to DocMind.", (b"set-cookie", cookie.encode()), (b"refresh", b"0;url=/")
        )


@dataclass(frozen=True, slots=True)
class _Visit:
    """What the gate looks at in a request."""

    port: int  # the server listens on it
    host: str  # the Host header, lower case
    name: str  # its host
    typed_port: int  # its port, or that of the scheme
    is_secure: bool  # https or wss
    is_local: bool  # both ends are on this machine, and Host names it so
    origin: str | None  # lower case
    is_from_elsewhere: bool  # the browser says that a page of another site asks
    token: str | None  # in the address of the start page, the only place where one is looked at
    cookies: tuple[str, ...]  # values of ours, ASCII


def _read_visit(scope: Scope) -> _Visit | None:
    """What the gate must know; None for what no browser sends: no Host, two of them, no TCP."""
    found: dict[str, list[str]] = {"host": [], "origin": [], "sec-fetch-site": [], "cookie": []}
    for raw_name, value in scope["headers"]:
        found.get(raw_name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    server, client = scope.get("server"), scope.get("client")
    matched = _HOST.fullmatch(found["host"][0].lower()) if found["host"] else None
    if not matched or not server or server[1] is None or not client:
        return None
    if any(len(found[name]) > 1 for name in ("host", "origin", "sec-fetch-site")):
        return None
    is_secure = scope.get("scheme") in ("https", "wss")
    tokens = (
        parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True).get("token")
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        else None
    )
    cookies = [part.strip().partition("=") for line in found["cookie"] for part in line.split(";")]
    return _Visit(
        port=int(server[1]),
        host=matched[0],
        name=matched[1],
        typed_port=int(matched[2]) if matched[2] else 443 if is_secure else 80,
        is_secure=is_secure,
        is_local=matched[1] in LOCAL_NAMES and _is_loopback(server[0]) and _is_loopback(client[0]),
        origin=found["origin"][0].lower() if found["origin"] else None,
        is_from_elsewhere=not set(found["sec-fetch-site"]) <= {"same-origin", "none"},
        token=tokens[-1] if tokens else None,
        cookies=tuple(value for name, _, value in cookies if name == COOKIE and value.isascii()),
    )


def _is_loopback(address: str) -> bool:
    """Whether an address is of this machine alone; text that is no address is not."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A server that listens on :: sees IPv4 as ::ffff:127.0.0.1.
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


async def _answer(scope: Scope, send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer with one sentence; a websocket that is not accepted is answered in the same way."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})  # the server makes it a 403
            return
        kind = "websocket.http.response"
    body = f"{text}\n".encode()
    fixed = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    length = (b"content-length", str(len(body)).encode())
    await send({"type": f"{kind}.start", "status": status, "headers": [*fixed, length, *headers]})
    await send({"type": f"{kind}.body", "body": body})
