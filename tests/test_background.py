"""The one event loop and the bridge to it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from docmind.background import event_loop, follow

PATIENCE_SECONDS = 60


async def _numbers(seen, count=3, then=None):
    try:
        for number in range(count):
            yield number
            await asyncio.sleep(0)
        if then is not None:
            await then()
    finally:
        seen.append("closed")


def _opening(*arguments, **more):
    async def open_stream():
        return _numbers(*arguments, **more)

    return open_stream


async def _for_ever():
    await asyncio.Event().wait()


def test_items_come_in_order_and_the_stream_is_closed():
    """The end of the stream is the end of the iterator."""
    seen = []
    assert list(follow(_opening(seen))) == [0, 1, 2]
    assert seen == ["closed"]


def test_there_is_one_loop_and_it_is_no_thread_of_the_asker():
    """Everybody shares it."""
    threads = []

    async def open_stream():
        threads.append((asyncio.get_running_loop(), threading.current_thread()))
        return _numbers([])

    for _ in range(2):
        list(follow(open_stream))
    assert threads[0] == threads[1]
    assert threads[0][0] is event_loop()
    assert threads[0][1] is not threading.current_thread()


@pytest.mark.parametrize("where", ["opening", "reading"])
def test_what_the_stream_raises_is_raised(where):
    """With its own type."""

    async def broken():
        raise LookupError("gone")

    async def open_broken():
        raise LookupError("gone")

    stream = follow(open_broken if where == "opening" else _opening([], then=broken))
    with pytest.raises(LookupError, match="gone"):
        list(stream)


def test_leaving_early_cancels_the_stream():
    """It is closed before the next thing is done."""
    seen = []
    stream = follow(_opening(seen, then=_for_ever))
    assert next(stream) == 0
    stream.close()
    assert seen == ["closed"]


def test_a_stop_ends_a_stream_that_says_nothing():
    """Without a way to ask it, it is cancelled."""
    seen = []
    stop = threading.Event()
    items = []
    for item in follow(_opening(seen, then=_for_ever), stop):
        items.append(item)
        if item == 2:
            stop.set()
    assert items == [0, 1, 2]
    assert seen == ["closed"]


def test_a_stream_that_can_be_asked_to_stop_still_says_its_last_word():
    """Also when it was asked before it began to listen."""
    stop = threading.Event()
    stop.set()
    asked = threading.Event()

    async def open_stream():
        async def stream():
            yield "first"
            # Listens only from here on.
            asked.clear()
            while not asked.is_set():
                await asyncio.sleep(0.01)
            yield "last"

        return stream()

    assert list(follow(open_stream, stop, asked.set)) == ["first", "last"]
