from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing, suppress
from time import monotonic

from anchorlm.engine import runtime
from anchorlm.guard import Guard
from anchorlm.records import Event, Request
from anchorlm.serving._errors import ApiError, late

_Timed = tuple[float, Event]


class Run:
    """One request under way on the engines' thread. Its events come over as they happen.

    The engines wait for no one here: a client that reads slowly holds no row, and one that is gone has its row freed
    before the next forward. Nothing here waits for the engines either, so a deadline holds even if they hang.

    Args:
        guard: Answers.
        request: What is asked.
        deadline: On the server's loop.
        together: The events come at the end, all at once. Then a client that waits for a whole answer is not woken for
            each token.

    Attributes:
        at: When the last event that was taken happened, in seconds of the monotonic clock.
    """

    def __init__(self, guard: Guard, request: Request, deadline: float, *, together: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[_Timed] | None] = asyncio.Queue()
        self._deadline = deadline
        self._together = together
        self._first: list[_Timed] = []
        self._ended: ApiError | None = None
        self.at = monotonic()
        self._future: Future[None] = runtime().submit(self._pump(guard, request))
        self._future.add_done_callback(lambda _: self._put(None))

    async def _pump(self, guard: Guard, request: Request) -> None:
        bunch: list[_Timed] = []
        try:
            async with aclosing(guard.events(request)) as events:  # type: ignore[type-var]
                async for event in events:
                    bunch.append((monotonic(), event))
                    if not self._together:
                        self._put(bunch)
                        bunch = []
        finally:
            self._put(bunch)  # what was decided before an error is told, too

    def _put(self, events: list[_Timed] | None) -> None:
        if events == []:
            return
        with suppress(RuntimeError):  # the server's loop has ended, and no one listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, events)

    async def begin(self, seconds: float) -> None:
        """Waits for the first sign of life, at most some seconds.

        Raises:
            UserError: The request cannot be answered.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if (first := await self._queue.get()) is None:
                    self._queue.put_nowait(None)
                    if self._ended is None:  # else `events` says why
                        self._future.result()
                self._first = first or []

    async def events(self) -> AsyncIterator[Event]:
        """Every event, once.

        Raises:
            ApiError: 504 at the deadline, or what `end` was given.
            AnchorLMError: What the guard raised.
        """
        try:
            events: list[_Timed] | None = self._first
            while events is not None:
                for self.at, event in events:
                    yield event
                events = await self._next()
            self.at = monotonic()
            if self._ended is not None:
                raise self._ended
            self._future.result()
        finally:
            self.stop()

    def end(self, error: ApiError) -> None:
        """Frees the rows, and tells the one who waits for events why."""
        self._ended = error
        self._future.cancel()

    async def _next(self) -> list[_Timed] | None:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._queue.get()
        except TimeoutError:
            raise late() from None

    def stop(self) -> None:
        """Frees the rows, if they are not free already."""
        self._future.cancel()
