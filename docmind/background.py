"""The one event loop: it runs in a daemon thread, and synchronous code follows what asynchronous code yields.

Models are asked over their asynchronous calls, so that a stop closes the connection whatever they are waiting for;
everything else in DocMind is synchronous and runs in threads. Knows no model and no page.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator

T = TypeVar("T")
_STOP_POLL_SECONDS: Final = 0.05
_CLOSE_SECONDS: Final = 5.0  # for what was cancelled to clean up
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, started when it is first asked for."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="docmind-loop", daemon=True).start()
        return _loop


def is_on_the_event_loop() -> bool:
    """Whether the caller runs on the loop of this process, which must not wait for itself."""
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:  # on no loop at all
        return False


def follow(
    open_stream: Callable[[], Awaitable[AsyncIterator[T]]],
    stop: threading.Event | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Generator[T, None, None]:
    """What an asynchronous stream yields, as it comes. Closing this generator cancels the stream.

    Args:
        open_stream: Called on the loop.
        stop: Setting it ends the stream, also while it yields nothing.
        on_stop: Asks the stream to end by itself, so that its last items still come; without it, it is cancelled.

    Raises:
        Whatever the stream raises.
    """
    begun, ended = threading.Event(), threading.Event()
    inbox: queue.SimpleQueue[tuple[bool, T | BaseException | None]] = queue.SimpleQueue()

    async def pump() -> None:
        begun.set()
        try:
            stream = await open_stream()
            try:
                async for item in stream:
                    inbox.put((True, item))
            finally:
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()
        except BaseException as error:
            inbox.put((False, error))
            raise
        else:
            inbox.put((False, None))
        finally:
            ended.set()

    task = asyncio.run_coroutine_threadsafe(pump(), event_loop())
    try:
        while True:
            if stop is not None and stop.is_set():
                if on_stop is None:
                    return
                on_stop()  # every time: the first may have come before there was anything to stop
            try:
                is_item, value = inbox.get(timeout=None if stop is None else _STOP_POLL_SECONDS)
            except queue.Empty:
                continue
            if is_item:
                yield value  # type: ignore[misc]  # an item, as the flag says
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        task.cancel()
        # What was cancelled still closes its connection; what failed has been raised above already.
        if begun.is_set() and not is_on_the_event_loop():
            ended.wait(_CLOSE_SECONDS)
