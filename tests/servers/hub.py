"""A stand-in for a model hub: its list, its files behind a redirect to another host, and every way they can fail.

    with serve() as hub:                    # two real sockets on 127.0.0.1: the hub, and the host that keeps its files
        hub.add("maker/model", "model-Q4_K_M.gguf", content)
        hub.faults["model-Q4_K_M.gguf"] = Fault(cut_after=1000)

It is strict: a token that reaches the wrong host, a Range it cannot read or a header that asks for packed bytes is a
violation, and `serve` fails over it at its end. Shapes as in huggingface.co/docs/hub/api; the answer of `/resolve/` is
a 302 with `X-Linked-ETag`, as the hub gives it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

PATIENCE = 60.0  # seconds: generous, the machine may be busy


@dataclass
class Fault:
    """What goes wrong with a file, once or until it is taken away."""

    cut_after: int | None = None  # bytes, then the connection is torn down
    endless: bool = False  # bytes without end, and without a length
    status: int = 200
    html: bool = False  # a page instead of the file
    hang_after: int | None = None  # bytes, then nothing more comes
    redirect: str | None = None  # the hub sends there instead
    ignores_range: bool = False
    wrong_range: bool = False  # another part than the one asked for
    headers: tuple[tuple[str, str], ...] = ()
    times: int | None = None  # so often; None: always


class Hub:
    """What it has and what it was asked."""

    def __init__(self):
        self.files: dict[tuple[str, str], bytes] = {}
        self.oids: dict[tuple[str, str], str] = {}  # told in place of the true SHA-256
        self.faults: dict[str, Fault] = {}
        self.listing: bytes | None = None  # in place of the list
        self.token: str | None = None  # then the repository is gated
        self.is_echoing = False  # then it answers with the headers it was sent, as a proxy's page for developers
        self.names_checksums = True
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # host, path, headers
        self.violations: list[str] = []
        self.url = self.files_url = ""
        self.is_closing = threading.Event()

    def add(self, repository, name, content):
        """A file of a repository."""
        self.files[repository, name] = content

    def oid(self, key):
        return self.oids.get(key) or hashlib.sha256(self.files[key]).hexdigest()

    def fault(self, name):
        """The fault of a file, counted down."""
        fault = self.faults.get(name) or Fault()
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                del self.faults[name]
        return fault

    def asked(self, host, part=""):
        """Paths that a host was asked for."""
        return [path for at, path, _ in self.requests if at == host and part in path]


def echo(headers):
    """Headers as text, in the order of their names."""
    return "".join(f"{name}: {value}\n" for name, value in sorted(headers.items())).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, host = self.server.hub, self.server.host
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append((host, self.path, headers))
        if headers.get("accept-encoding") != "identity":
            hub.violations.append("it may be packed")
        if "authorization" in headers and host != "hub":
            hub.violations.append(f"the token reached {host}")
        path = unquote(urlsplit(self.path).path)
        with contextlib.suppress(ConnectionError):
            (self._hub if host == "hub" else self._files)(hub, path, headers)
        self.close_connection = True

    def _hub(self, hub, path, headers):
        if hub.token is not None and headers.get("authorization") != f"Bearer {hub.token}":
            self._whole(401, b'{"error": "gated"}', (("X-Error-Code", "GatedRepo"),))
            return
        if hub.is_echoing:
            self._whole(200, echo(headers))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main", path):
            self._list(hub, found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path):
            key = (found[1], found[2])
            fault = hub.faults.get(key[1])
            if fault is not None and fault.redirect is not None:
                self._whole(302, b"", (("Location", fault.redirect),))
            elif key not in hub.files:
                self._whole(404, b"Entry not found", (("X-Error-Code", "EntryNotFound"),))
            else:
                linked = (("X-Linked-ETag", f'"{hub.oid(key)}"'),) if hub.names_checksums else ()
                self._whole(302, b"", (("Location", f"{hub.files_url}/{key[0]}/{quote(key[1])}?sig=1"), *linked))
        else:
            self._whole(404, b"<html>not found</html>")

    def _list(self, hub, repository):
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"}]
        for key, content in hub.files.items():
            if key[0] == repository:
                entry = {"type": "file", "oid": "1" * 40, "size": len(content), "path": key[1]}
                if hub.names_checksums:
                    entry["lfs"] = {"oid": hub.oid(key), "size": len(content), "pointerSize": 135}
                entries.append(entry)
        if hub.listing is not None:
            self._whole(200, hub.listing)
        elif len(entries) == 1:
            self._whole(401, b'{"error": "Invalid username or password."}')  # as the hub says for what it has not
        else:
            self._whole(200, json.dumps(entries).encode())

    def _files(self, hub, path, headers):
        repository, _, name = path.lstrip("/").partition("/")
        maker, (repository, _, name) = repository, name.partition("/")
        content = hub.files.get((f"{maker}/{repository}", name))
        if content is None:
            self._whole(404, b"")
            return
        fault = hub.fault(name)
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        if fault.status != 200:
            self._whole(fault.status, b"no")
        elif fault.html:
            self._whole(200, b"<html>Log in</html>", (("Content-Type", "text/html; charset=utf-8"),))
        elif fault.endless:
            self._endless(content)
        else:
            self._piece(content, etag, headers, fault)

    def _piece(self, content, etag, headers, fault):
        begin, end = 0, len(content) - 1
        said = headers.get("range")
        is_current = headers.get("if-range", etag) == etag
        if said is not None and is_current and not fault.ignores_range:
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", said)
            if found is None:
                self.server.hub.violations.append(f"no range: {said}")
                return
            begin, end = int(found[1]), min(end, int(found[2] or end))
            if begin >= len(content):
                self._whole(416, b"", (("Content-Range", f"bytes */{len(content)}"),))
                return
            self.send_response(206)
            first = begin + 7 if fault.wrong_range else begin
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(end + 1 - begin))
        self.send_header("Connection", "close")
        for name, value in fault.headers:
            self.send_header(name, value)
        self.end_headers()
        body = content[begin : end + 1]
        if fault.cut_after is not None:
            self.wfile.write(body[: fault.cut_after])
            self.wfile.flush()
            return
        if fault.hang_after is not None:
            self.wfile.write(body[: fault.hang_after])
            self.wfile.flush()
            self.server.hub.is_closing.wait(PATIENCE)
            return
        self.wfile.write(body)

    def _endless(self, content):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not self.server.hub.is_closing.is_set():
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))

    def _whole(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve():
    """A running hub and the host of its files, until the block ends."""
    hub = Hub()
    servers = []
    for host in ("hub", "files"):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        server.hub, server.host = hub, host
        threading.Thread(target=server.serve_forever, args=(0.02,), name=f"{host} stand-in", daemon=True).start()
        servers.append(server)
    hub.url, hub.files_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        hub.is_closing.set()
        for server in servers:
            server.shutdown()
            server.server_close()
    assert not hub.violations, hub.violations
