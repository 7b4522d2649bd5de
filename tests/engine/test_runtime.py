from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from factories import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.engine import TextStream, runtime
from anchorlm.tokens import ByteVocabulary


class Source:
    """Counts to `end`; notes the task of each step and when it was closed."""

    def __init__(self, end: int, fail: bool = False) -> None:
        self.end, self.fail = end, fail
        self.tasks: set[object] = set()
        self.closed = False

    async def count(self) -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(30):  # only works if every piece comes from the same task
                for number in range(self.end):
                    self.tasks.add(asyncio.current_task())
                    await asyncio.sleep(0)
                    yield number
                if self.fail:
                    raise ValueError("broken")
        finally:
            self.closed = True


async def collected(pieces: AsyncIterator[int]) -> list[int]:
    return [piece async for piece in pieces]


def test_an_iteration_is_handed_on_whole_and_run_in_one_task() -> None:
    first, second = Source(5), Source(5)
    assert list(runtime().iterate(first.count())) == [0, 1, 2, 3, 4]
    assert asyncio.run(collected(runtime().aiterate(second.count()))) == [0, 1, 2, 3, 4]
    assert len(first.tasks) == len(second.tasks) == 1


def test_leaving_an_iteration_early_closes_its_source() -> None:
    first, second, third = Source(99), Source(99), Source(99)
    pieces: Any = runtime().iterate(first.count())
    assert [next(pieces), next(pieces)] == [0, 1]
    pieces.close()
    assert first.closed

    async def some() -> None:
        source: Any = runtime().aiterate(second.count())
        async with contextlib.aclosing(source) as stream:
            assert await anext(stream) == 0

    asyncio.run(some())
    assert second.closed

    async def interrupted() -> None:
        reading = asyncio.ensure_future(collected(runtime().aiterate(third.count())))
        await asyncio.sleep(0.001)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading

    asyncio.run(interrupted())
    assert third.closed or not third.tasks


def test_an_exception_comes_after_the_pieces_before_it() -> None:
    pieces = runtime().iterate(Source(2, fail=True).count())
    assert [next(pieces), next(pieces)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(pieces)
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(collected(runtime().aiterate(Source(0, fail=True).count())))


def test_waiting_for_oneself_is_an_error_and_not_a_deadlock() -> None:
    async def nested() -> None:
        runtime().run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="wait for itself"):
        runtime().run(nested())


VOCABULARY = ByteVocabulary.from_tokenizer(tiny_tokenizer())


@given(st.lists(st.integers(0, VOCABULARY.size + 5), max_size=30))
def test_streamed_text_is_the_whole_text(ids: list[int]) -> None:
    stream = TextStream(VOCABULARY)
    text = "".join(map(stream.feed, ids)) + stream.flush()
    assert text == VOCABULARY.decode(ids).decode("utf-8", errors="replace")
