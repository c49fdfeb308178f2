"""A blocking generator, run in a thread of its own and read from the event loop.

The engine computes; the server waits for many sockets. This file is all that joins them: no event
loop ever blocks on a model, and a reader who goes away stops the generator at its next step. Knows
nothing of HTTP or of conversations.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from pinhole.errors import Busy

T = TypeVar("T")
_END = object()


class Door:
    """Counts the threads at work and lets no more than ``limit`` in. A place is free again when its thread has
    ended, not when its reader has left, so that readers who come and go cannot pile up work."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside: set[Stream[Any]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, stream: Stream[Any]) -> None:
        with self._lock:
            if self._closed:
                raise Busy("the server is shutting down", fix="try again in a moment")
            if len(self._inside) >= self.limit:
                raise Busy(f"{self.limit} conversations are waiting already", fix="try again in a moment")
            self._inside.add(stream)

    def leave(self, stream: Stream[Any]) -> None:
        with self._lock:
            self._inside.discard(stream)

    def stop(self) -> None:
        """Let nobody in, and tell those inside to stop."""
        with self._lock:
            self._closed = True
            inside = list(self._inside)
        for stream in inside:
            stream.cancel()

    def close(self, timeout: float = 5.0) -> None:
        """:meth:`stop`, and wait for those inside, ``timeout`` seconds in all."""
        self.stop()
        inside = list(self._inside)
        for stream in inside:
            stream.join(timeout / len(inside))


class Stream(Generic[T]):
    """``async for`` over what a blocking generator yields.

    ``make`` receives a function that says whether to stop, and returns the generator. What the generator raises is
    raised here. :meth:`cancel` may be called from anywhere, any number of times. Raises :class:`Busy` at a full door.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Iterator[T]], door: Door) -> None:
        self._make, self._door = make, door
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        door.enter(self)
        self._thread = threading.Thread(target=self._run, name="pinhole-turn", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        self._stop.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        end: object = _END
        try:
            generator = self._make(self._stop.is_set)
            try:
                for event in generator:
                    if self._stop.is_set():
                        break
                    self._put(event)
            finally:
                close = getattr(generator, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # it is raised again where the events are read
            end = _Raised(error)
        finally:
            self._door.leave(self)
            self._put(end)

    def _put(self, event: object) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
        except RuntimeError:  # the loop has closed: nobody is reading
            self._stop.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            event = await self._queue.get()
            if event is _END:
                return
            if isinstance(event, _Raised):
                raise event.error
            yield event


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
