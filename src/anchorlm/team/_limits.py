from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anchorlm.records import DefenseError

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.engine import Engine, TokenSequence

T = TypeVar("T")


async def in_time(ask: Callable[[], Awaitable[T]], name: str, seconds: float | None) -> T:
    """What a model says.

    Args:
        ask: Begins to ask. It is not called if all is over before.
        name: Of the model, for the error.
        seconds: How long to wait. None: as long as it takes.

    Raises:
        DefenseError: It said nothing in that time.
    """
    try:
        async with asyncio.timeout(seconds):
            return await ask()
    except TimeoutError as error:
        if seconds is None:
            raise
        raise DefenseError(f"{name} said nothing for {seconds:g} seconds.") from error


def timed(engine: Engine, seconds: float | None) -> Engine:
    """The engine of an anchor that has failed when it says nothing for so many seconds. None: the engine as it is."""
    return engine if seconds is None else cast("Engine", _TimedEngine(engine, seconds))


class _TimedEngine:
    """An engine whose logits and activations come in time or not at all. Everything else is the engine's own."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @asynccontextmanager
    async def open(self, ids: Sequence[int], *, rows: int = 1, room: int = 0) -> AsyncIterator[TokenSequence]:
        async with self._engine.open(ids, rows=rows, room=room) as sequence:
            yield cast("TokenSequence", _TimedSequence(sequence, self._engine.model.name, self._seconds))


class _TimedSequence:
    def __init__(self, sequence: TokenSequence, name: str, seconds: float) -> None:
        self._sequence = sequence
        self._name = name
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sequence, name)

    def fork(self) -> TokenSequence:
        return cast("TokenSequence", _TimedSequence(self._sequence.fork(), self._name, self._seconds))

    async def logits(self) -> Tensor:
        return await in_time(self._sequence.logits, f"The anchor {self._name}", self._seconds)

    async def activations(self, positions: Sequence[int] = (-1,), mean_from: int | None = None) -> Tensor:
        read = partial(self._sequence.activations, positions, mean_from)
        return await in_time(read, f"The anchor {self._name}", self._seconds)
