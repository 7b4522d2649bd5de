from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Spare:
    """Rows of an anchor that its guides borrow for a moment, all from one reservation."""

    def __init__(self, rows: int) -> None:
        self._rows = asyncio.Semaphore(rows)
        self._turn = asyncio.Lock()  # who takes several takes all of them before the next takes one

    @asynccontextmanager
    async def borrow(self, count: int) -> AsyncIterator[None]:
        """Waits until `count` rows are free, and gives them back at the end."""
        taken = 0
        try:
            async with self._turn:
                while taken < count:
                    await self._rows.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._rows.release()
