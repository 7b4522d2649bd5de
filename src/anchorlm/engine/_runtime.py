from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar, cast

T = TypeVar("T")
_END = object()


class Runtime:
    """The thread with the event loop on which every engine of the process runs.

    One thread, so engines need no locks. Not the caller's, so a notebook, a script and a server with a loop
    of its own use the same path, and a long forward blocks no one's loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="anchorlm", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine on the engines' thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end. An interrupt of the caller cancels it.

        Raises:
            RuntimeError: Called on the engines' own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("The engines' thread would wait for itself: await the asynchronous form instead.")
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Hands on an asynchronous iteration piece by piece. Leaving it early closes the source."""
        pieces: SimpleQueue[T | object] = SimpleQueue()
        pump = _Pump(source, pieces.put)
        done = self.submit(pump.run())
        done.add_done_callback(lambda _: pieces.put(_END))
        try:
            while True:
                self._loop.call_soon_threadsafe(pump.wanted.set)
                if (piece := pieces.get()) is _END:
                    break
                yield cast(T, piece)
            done.result()
        finally:
            self.run(pump.close())

    async def aiterate(self, source: AsyncIterator[T]) -> AsyncIterator[T]:
        """`iterate` for a caller with an event loop of its own."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[T | object] = asyncio.Queue()

        def put(piece: T | object) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        pump = _Pump(source, put)
        done = self.submit(pump.run())
        done.add_done_callback(lambda _: put(_END))
        try:
            while True:
                self._loop.call_soon_threadsafe(pump.wanted.set)
                if (piece := await pieces.get()) is _END:
                    break
                yield cast(T, piece)
            await asyncio.wrap_future(done)
        finally:
            await asyncio.wrap_future(self.submit(pump.close()))


class _Pump:
    """Runs a whole iteration in one task, as timeouts and task groups inside it demand, one piece at a time."""

    def __init__(self, source: AsyncIterator[Any], put: Callable[[Any], None]) -> None:
        self._source = source
        self._put = put
        self._task: asyncio.Task[Any] | None = None
        self.wanted = asyncio.Event()

    async def run(self) -> None:
        """Puts the next piece whenever it is wanted, until there are no more."""
        self._task = asyncio.current_task()
        try:
            while True:
                await self.wanted.wait()
                self.wanted.clear()
                piece = await anext(self._source, _END)
                if piece is _END:
                    return
                self._put(piece)
        finally:
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()

    async def close(self) -> None:
        """Ends the iteration, if it has not ended, and waits until its source is closed."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})


_runtime: Runtime | None = None
_lock = threading.Lock()


def runtime() -> Runtime:
    """The process's runtime, started when it is first needed."""
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime()
        return _runtime
