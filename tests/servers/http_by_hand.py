"""HTTP by hand, for stand-ins: a library would mend what is to be broken.

A stand-in is a `HandServer` with an `answer`; `running` lets it listen on a real socket of 127.0.0.1, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

PATIENCE = 60.0  # seconds: generous, the machine may be busy


class HandServer:
    """What was asked of a server, what was wrong with it, and who left before the end."""

    def __init__(self):
        self.requests: list[tuple[str, dict]] = []  # path and body, in order
        self.headers: list[dict[str, str]] = []
        self.violations: list[str] = []
        self.hang_ups: list[str] = []  # paths whose client left before the end
        self.answering = 0  # requests being answered now
        self.is_breaking_off = False  # then answers that are being written end without their marker
        # Path → status, body and perhaps headers to send in place of the answer.
        self.instead: dict[str, tuple[int, bytes] | tuple[int, bytes, dict[str, str]]] = {}
        self.url = ""
        self._changed = threading.Condition()

    async def answer(self, connection, method, path, headers, request):
        """Answer one request; `request` is its JSON, {} for none, None for what is no JSON."""
        raise NotImplementedError

    @property
    def keys_sent(self):
        """The key of each request that had one."""
        sent = [headers.get("authorization", "") for headers in self.headers]
        return [value.removeprefix("Bearer ") for value in sent if value.startswith("Bearer ")]

    def wait_for(self, condition):
        """Wait until something is true of this server."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), "waited in vain"

    def wait_for_hang_up(self, count=1):
        """Wait until so many clients have left in the middle of an answer."""
        self.wait_for(lambda: len(self.hang_ups) >= count)

    async def serve_connection(self, reader, writer):
        """One request, then the connection is closed."""
        connection = Connection(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            method, path, headers, body = await _read_request(reader)
            self._count(1)
            answering = asyncio.create_task(self._answer(connection, method, path, headers, body))
            leaving = asyncio.create_task(reader.read(1))
            try:
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
                is_left = not answering.done()
            finally:
                answering.cancel()
                leaving.cancel()
                failure, _ = await asyncio.gather(answering, leaving, return_exceptions=True)
                self._count(-1)
            if is_left or isinstance(failure, ConnectionError):
                self.note(self.hang_ups, path)
            elif isinstance(failure, Exception):
                self.note(self.violations, f"the stand-in failed: {failure!r}")

    def _count(self, step):
        with self._changed:
            self.answering += step
            self._changed.notify_all()

    def note(self, list_, entry):
        """Add to a list that somebody may be waiting for."""
        with self._changed:
            list_.append(entry)
            self._changed.notify_all()

    async def _answer(self, connection, method, path, headers, body):
        self.headers.append(headers)
        try:
            request = json.loads(body) if body else {}
        except ValueError:
            request = None
        self.note(self.requests, (path, request))
        if path in self.instead:
            await connection.whole(*self.instead[path])
        else:
            await self.answer(connection, method, path, headers, request)


async def _read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    return method, path, headers, await reader.readexactly(int(headers.get("content-length", "0")))


class Connection:
    """The way back."""

    def __init__(self, writer):
        self.writer = writer

    async def whole(self, status, body, headers=()):
        """An answer with its length."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/json" if not isinstance(body, bytes) else "text/html"
        lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
        lines += ["Connection: close", *(f"{name}: {value}" for name, value in dict(headers).items()), "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1") + content)
        await self.writer.drain()

    async def begin(self, status, kind, headers=()):
        """The head of a stream."""
        lines = [f"HTTP/1.1 {status} OK", f"Content-Type: {kind}", "Transfer-Encoding: chunked", "Connection: close"]
        lines += [*(f"{name}: {value}" for name, value in dict(headers).items()), "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1"))
        await self.writer.drain()

    async def piece(self, data):
        """Bytes of a stream."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def line(self, event):
        """An event of a stream, on a line of its own."""
        await self.piece(json.dumps(event).encode() + b"\n")

    async def aside(self, entry):
        """Whether an entry of a script is no text; it is done then.

        Bytes are sent as they are, a bytearray even without the frame of a chunk; a number is a pause in seconds.
        """
        if isinstance(entry, bytearray):
            self.writer.write(entry)
            await self.writer.drain()
        elif isinstance(entry, bytes):
            await self.piece(entry)
        elif isinstance(entry, (int, float)):
            await asyncio.sleep(entry)
        return not isinstance(entry, str)

    async def end(self):
        """The proper end of a stream."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()


@contextlib.contextmanager
def running(server, *, host="127.0.0.1", port=0, strict=True):
    """A server that listens, until the block ends.

    Args:
        strict: Fail at the end over a request that a real server would have misunderstood.
    """
    loop = asyncio.new_event_loop()
    connections = set()

    async def connected(reader, writer):
        connections.add(asyncio.current_task())
        try:
            await server.serve_connection(reader, writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()  # nothing, where it is closed
            connections.discard(asyncio.current_task())

    async def close():
        listening.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)  # in which the aborted connections are closed

    thread = threading.Thread(target=loop.run_forever, name="stand-in", daemon=True)
    thread.start()
    starting = asyncio.start_server(connected, host, port, limit=1 << 26)
    listening = asyncio.run_coroutine_threadsafe(starting, loop).result()
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert not (strict and server.violations), server.violations
