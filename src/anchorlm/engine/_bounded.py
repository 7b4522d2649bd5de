from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def as_done(work: Iterable[Coroutine[Any, Any, T]], limit: int) -> AsyncIterator[T]:
    """The results of many coroutines in the order in which they are done, at most `limit` of them under way.

    Anyone who stops listening cancels those that run.
    """
    queue = iter(work)
    running: set[asyncio.Task[T]] = set()
    try:
        while True:
            for coroutine in queue:
                running.add(asyncio.ensure_future(coroutine))
                if len(running) >= limit:
                    break
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
