"""Vectors for stand-ins: those of the packaged model itself, those of another one, and what a server can do wrong.

`packaged` makes what DocMind makes without a server, so a search over a stand-in must find the same.
"""

from __future__ import annotations

import asyncio
import json

import numpy as np

from tests.servers.http_by_hand import PATIENCE

# What a server can send in place of the right vectors, by the name of the fault.
FAULTS = {
    "one too few": lambda vectors: vectors[:-1],
    "one too many": lambda vectors: [*vectors, vectors[0]],
    "none": lambda vectors: [],
    "no list": lambda vectors: {"0": vectors[0]},
    "one shorter": lambda vectors: [*vectors[:-1], vectors[-1][:-1]],
    "empty ones": lambda vectors: [[] for _ in vectors],
    "not a number": lambda vectors: [[float("nan"), *vector[1:]] for vector in vectors],
    "infinite": lambda vectors: [[float("inf"), *vector[1:]] for vector in vectors],
    "huge": lambda vectors: [[10**400, *vector[1:]] for vector in vectors],
    "texts": lambda vectors: [["0.1", *vector[1:]] for vector in vectors],
    "true": lambda vectors: [[True, *vector[1:]] for vector in vectors],
    "zeros": lambda vectors: [[0.0] * len(vector) for vector in vectors],
}


def packaged(texts):
    """The vectors of the model that comes with DocMind."""
    from docmind import embed

    return embed.load_embedding().get_text_embedding_batch(list(texts))


def another(texts):
    """The vectors of a model that places everything elsewhere, in the same number of dimensions."""
    return np.roll(np.asarray(packaged(texts)), 7, axis=1).tolist()


async def make(server, texts):
    """What `server.vectors` makes, spoiled by `server.fault`."""
    made = await asyncio.to_thread(server.vectors, texts)
    return FAULTS[server.fault](made) if server.fault in FAULTS else made


async def misbehave(connection, server, answer):
    """Do what `server.fault` says instead of answering; False where it says nothing of the kind."""
    match server.fault:
        case "error 500":
            await connection.whole(500, {"error": "the runner has stopped"})
        case "silence":
            await asyncio.sleep(PATIENCE)
        case "reset":
            connection.writer.transport.abort()
        case "half an answer":
            whole = json.dumps(answer).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(whole)}\r\n\r\n"
            connection.writer.write(head.encode() + whole[: len(whole) // 2])
            await connection.writer.drain()
        case "half a JSON":
            await connection.whole(200, json.dumps(answer).encode()[:-9])
        case "a page":
            await connection.whole(200, b"<html>502 Bad Gateway</html>")
        case _:
            return False
    return True
