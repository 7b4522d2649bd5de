from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from anchorlm.serving._errors import ApiError, late


class Admission:
    """Lets a number of requests in at once, in the order in which they came, and a number wait.

    Args:
        concurrency: Requests at once.
        queue: Requests that may wait.
    """

    def __init__(self, concurrency: int, queue: int) -> None:
        self._free = asyncio.Semaphore(concurrency)
        self._concurrency = concurrency
        self._queue = queue
        self._typical = 1.0
        self.waiting = 0
        self.running = 0

    @asynccontextmanager
    async def turn(self, deadline: float) -> AsyncIterator[None]:
        """Waits for a turn, which ends with the context.

        Args:
            deadline: Time of the loop at which waiting is over.

        Raises:
            ApiError: 429 if too many wait already, 504 if the turn does not come in time.
        """
        if self._free.locked() and self.waiting >= self._queue:
            raise ApiError(
                429,
                f"{self.running} requests are being answered and {self.waiting} wait: try again later.",
                code="queue_full",
                retry_after=self._typical * (self.waiting + 1) / self._concurrency,
            )
        self.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError:
            raise late() from None
        finally:
            self.waiting -= 1
        self.running += 1
        start = monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()
            self._typical += 0.1 * (monotonic() - start - self._typical)
