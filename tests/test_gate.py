"""Who is let in, in every combination that a server can meet; and what every answer carries."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path

import pytest

from docmind.errors import DocMindError
from docmind.gate import Gate, check_address, content_security_policy, read_share

PORT = 8501
TOKEN = "a secret of enough letters"
SHARE = read_share({"DOCMIND_SHARE": "Docs.Example", "DOCMIND_TOKEN": TOKEN})
LOCAL, OUTER, VISITOR = "127.0.0.1", "192.0.2.7", "192.0.2.99"


class Door:
    """A gate with a server behind it that says yes."""

    def __init__(self, share=None):
        self.gate = Gate(self._serve, policy="default-src 'self'", share=share)

    async def _serve(self, scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        headers = [(b"content-type", b"text/plain"), (b"X-Frame-Options", b"ALLOWALL")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"yes"})

    def knock(self, host, *headers, server=LOCAL, client=LOCAL, ends=(), **scope):
        """The messages of the answer."""
        if host is not None:
            headers = (("Host", host), *headers)
        asked = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "scheme": "http",
            "server": (server, PORT),
            "client": (client, 50000),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
            **scope,
            **dict(ends),
        }
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(self.gate(asked, None, send))
        return sent

    def status(self, host, *headers, **scope):
        """Of the answer; 101 for a websocket that is accepted."""
        first = self.knock(host, *headers, **scope)[0]
        return 101 if first["type"] == "websocket.accept" else first.get("status", 403)

    def visit(self, query, *headers, **scope):
        """Follow a link from another machine; gives status and headers."""
        ends = {"server": (OUTER, PORT), "client": (VISITOR, 50000)}
        first = self.knock(f"docs.example:{PORT}", *headers, ends=ends, query_string=query, **scope)[0]
        return first["status"], dict(first["headers"])


@pytest.fixture
def door():
    """Nobody else is let in."""
    return Door()


@pytest.fixture
def shared():
    """Shared as docs.example."""
    return Door(SHARE)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("host", ["127.0.0.1:8501", "localhost:8501", "LOCALHOST:8501", "[::1]:8501"])
def test_this_machine_is_let_in_by_its_own_names(door, host, kind):
    """With and without what a browser adds."""
    good = 101 if kind == "websocket" else 200
    assert door.status(host, type=kind) == good
    assert door.status(host, ("Origin", f"http://{host}"), ("Sec-Fetch-Site", "same-origin"), type=kind) == good
    assert door.status(host, ("Sec-Fetch-Site", "none"), type=kind) == good
    assert door.status(host, type=kind, server="::1", client="::1") == good
    assert door.status(host, type=kind, server="::ffff:127.0.0.1", client="::ffff:127.0.0.1") == good


HOSTILE = {
    "rebound name": ("evil.example:8501",),
    "name of ours in front": ("localhost.evil.example:8501",),
    "name of ours at the end": ("evil.example#localhost:8501",),
    "user part": ("localhost@evil.example:8501",),
    "another port": ("127.0.0.1:9999",),
    "no port": ("127.0.0.1",),
    "another address of this machine": ("192.0.2.7:8501",),
    "every address": ("0.0.0.0:8501",),
    "dot at the end": ("localhost.:8501",),
    "empty host": ("",),
    "no host": (None,),
    "two hosts": ("localhost:8501", ("Host", "evil.example")),
    "foreign origin": ("localhost:8501", ("Origin", "http://evil.example")),
    "origin on another port": ("localhost:8501", ("Origin", "http://localhost:3000")),
    "origin with another name of ours": ("localhost:8501", ("Origin", "http://127.0.0.1:8501")),
    "origin with another scheme": ("localhost:8501", ("Origin", "https://localhost:8501")),
    "origin of a file or a sandbox": ("localhost:8501", ("Origin", "null")),
    "empty origin": ("localhost:8501", ("Origin", "")),
    "two origins": ("localhost:8501", ("Origin", "http://localhost:8501"), ("Origin", "http://evil.example")),
    "from another site": ("localhost:8501", ("Sec-Fetch-Site", "cross-site")),
    "from another port": ("localhost:8501", ("Sec-Fetch-Site", "same-site")),
    "said twice": ("localhost:8501", ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")),
    "unknown word": ("localhost:8501", ("Sec-Fetch-Site", "Same-Origin, none")),
    "bytes that are no ASCII": ("loc\xe4lhost:8501",),
}


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("headers", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("share", [None, SHARE], ids=["alone", "shared"])
def test_a_hostile_request_is_refused(share, headers, kind):
    """Before anything behind the gate hears of it, shared or not."""
    assert Door(share).status(*headers, type=kind) == 403


@pytest.mark.parametrize(
    "ends",
    [
        {"server": (OUTER, PORT)},
        {"client": (VISITOR, 50000)},
        {"server": (OUTER, PORT), "client": (VISITOR, 50000)},
        {"server": ("0.0.0.0", PORT)},
        {"client": ("no address", 0)},
        {"client": None},
        {"server": ("/run/socket", None)},
        {"server": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [None, SHARE], ids=["alone", "shared"])
def test_another_machine_is_refused_whatever_it_calls_us(share, ends):
    """The address that the connection came in by counts, not what the server was told to listen on."""
    assert Door(share).status("localhost:8501") == 200
    assert Door(share).status("localhost:8501", ends=ends) == 403


def test_every_answer_carries_the_headers_once(door):
    """A served one, a refused one, a refused websocket; what the server behind says otherwise is dropped."""
    websocket = {"type": "websocket", "extensions": {"websocket.http.response": {}}}
    for sent, status in (
        (door.knock("localhost:8501"), 200),
        (door.knock("evil.example"), 403),
        (door.knock("evil.example", **websocket), 403),
    ):
        assert sent[0]["status"] == status
        names = [name.lower() for name, _ in sent[0]["headers"]]
        assert len(names) == len(set(names))
        headers = dict(sent[0]["headers"])
        assert headers[b"content-security-policy"] == b"default-src 'self'"
        assert headers[b"x-frame-options"] == b"DENY"
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"referrer-policy"] == b"no-referrer"
        assert headers[b"cross-origin-opener-policy"] == headers[b"cross-origin-resource-policy"] == b"same-origin"
    assert door.knock("evil.example", type="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_a_shared_app_is_opened_by_the_token_and_then_by_its_cookie(shared):
    """The address loses the token; scripts cannot read the cookie, nor do other sites send it."""
    assert shared.visit(b"")[0] == 403
    status, headers = shared.visit(b"token=" + TOKEN.replace(" ", "+").encode())
    assert (status, headers[b"refresh"]) == (200, b"0;url=/")
    cookie, *flags = headers[b"set-cookie"].decode().split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
    assert TOKEN not in cookie
    assert shared.visit(b"", ("Cookie", f"other=1; {cookie}"))[0] == 200
    ends = {"server": OUTER, "client": VISITOR, "type": "websocket"}
    assert shared.status("docs.example:8501", ("Cookie", cookie), **ends) == 101
    assert shared.status("docs.example:8501", **ends) == 403
    assert shared.status("docs.example:8501", ("Cookie", cookie + "x"), **ends) == 403
    assert shared.visit(b"", ("Cookie", cookie), ("Sec-Fetch-Site", "cross-site"))[0] == 403
    assert shared.visit(b"", ("Cookie", cookie), ("Origin", "http://evil.example"))[0] == 403
    assert shared.status("evil.example:8501", ("Cookie", cookie), server=OUTER, client=VISITOR) == 403
    assert Door(SHARE).visit(b"", ("Cookie", cookie))[0] == 403  # another process: the cookie was its own


def test_a_link_with_the_token_may_come_from_another_site(shared):
    """It leads on from a page of ours: through a redirect the browser would hold the cookie back."""
    status, headers = shared.visit(b"token=" + TOKEN.encode(), ("Sec-Fetch-Site", "cross-site"))
    assert (status, headers[b"refresh"]) == (200, b"0;url=/")
    assert shared.visit(b"token=" + TOKEN.encode(), ("Origin", "http://evil.example"))[0] == 403


def test_the_token_is_looked_at_on_the_start_page_only(shared):
    """Elsewhere it opens nothing, and a visitor of this machine needs none."""
    query = b"token=" + TOKEN.encode()
    assert shared.visit(query, path="/documents")[0] == 403
    assert shared.visit(query, method="POST")[0] == 403
    assert shared.status("localhost:8501", query_string=b"token=wrong") == 200
    assert Door().status("docs.example:8501", server=OUTER, client=VISITOR, query_string=query) == 403


def test_guessing_is_limited(shared):
    """After ten wrong tokens not even the right one is looked at, while those inside go on."""
    _, headers = shared.visit(b"token=" + TOKEN.encode())
    inside = ("Cookie", headers[b"set-cookie"].decode().split(";")[0])
    for guess in range(10):
        assert shared.visit(f"token=guess{guess}\u00e4".encode())[0] == 403
    assert shared.visit(b"token=" + TOKEN.encode())[0] == 429
    assert shared.visit(b"", inside)[0] == 200
    assert shared.status("localhost:8501") == 200


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        ("docs.example", "docs.example", None),
        (" Docs.Example:443 ", "docs.example", 443),
        ("192.0.2.7", "192.0.2.7", None),
        ("2001:db8::7", "[2001:db8::7]", None),
        ("[2001:db8::7]:9000", "[2001:db8::7]", 9000),
    ],
)
def test_the_share_setting_is_a_host_as_people_type_it(value, host, port):
    """With a port when a proxy in front has another one."""
    share = read_share({"DOCMIND_SHARE": value, "DOCMIND_TOKEN": TOKEN})
    assert (share.host, share.port) == (host, port)
    assert TOKEN not in repr(share)


def test_a_proxy_with_https_in_front_is_known_by_the_port_of_the_setting():
    """It connects from this machine and passes on the host that people typed."""
    door = Door(read_share({"DOCMIND_SHARE": "docs.example:443", "DOCMIND_TOKEN": TOKEN}))
    for headers in ([], [("Origin", "https://docs.example")]):
        sent = door.knock("docs.example", *headers, query_string=b"token=" + TOKEN.encode())
        assert dict(sent[0]["headers"])[b"set-cookie"]
    assert door.status("docs.example:444") == 403
    assert door.status("docs.example") == 403  # without the token


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DOCMIND_SHARE": "docs.example"}, "DOCMIND_TOKEN is missing"),
        ({"DOCMIND_TOKEN": TOKEN}, "DOCMIND_SHARE is missing"),
        ({"DOCMIND_SHARE": "docs.example", "DOCMIND_TOKEN": "short"}, "has 5 characters"),
        ({"DOCMIND_SHARE": "http://docs.example", "DOCMIND_TOKEN": TOKEN}, "not the name of a host"),
        ({"DOCMIND_SHARE": "*", "DOCMIND_TOKEN": TOKEN}, "not the name of a host"),
        ({"DOCMIND_SHARE": "localhost", "DOCMIND_TOKEN": TOKEN}, "not the name of a host"),
    ],
)
def test_half_a_decision_to_share_is_an_error(environment, message):
    """It says what is missing, and never the token."""
    with pytest.raises(DocMindError, match=message) as caught:
        read_share(environment)
    assert caught.value.hint
    assert TOKEN not in f"{caught.value} {caught.value.hint}"


def test_only_this_machine_is_listened_to_unless_shared():
    """Names of this machine are fine; everything else needs the decision."""
    for address in ("127.0.0.1", "localhost", "::1", "[::1]"):
        check_address(address, None)
    for address in ("0.0.0.0", "::", "192.0.2.7", "", "myhost"):
        with pytest.raises(DocMindError, match="does not listen on"):
            check_address(address, None)
        check_address(address, SHARE)
    assert read_share({}) is None


def test_the_policy_allows_the_inline_scripts_of_the_installed_start_page_and_no_others(tmp_path):
    """By their hash, as a browser computes it; scripts with a source need none."""
    import streamlit

    policy = content_security_policy(Path(streamlit.__file__).parent / "static" / "index.html")
    assert policy.count("sha256-") == 1  # this version's page has one inline script
    assert "'unsafe-eval'" not in policy
    assert "http" not in policy
    assert "script-src 'self' 'sha256-" in policy
    html = tmp_path / "index.html"
    html.write_bytes(b'<script>\r\n go()\r\n</script><SCRIPT src="x.js"></SCRIPT ><script type="module">two</script>')
    hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in (b"\n go()\n", b"two")]
    script_source = content_security_policy(html).split(";")[1].split()
    assert script_source == ["script-src", "'self'", *(f"'sha256-{value}'" for value in hashes), "blob:"]
