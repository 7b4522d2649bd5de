from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anchorlm.defenses import Team
from anchorlm.judging import Grade, Judge, Scorer
from anchorlm.records import DefenseError, Messages

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.engine import Engine, TokenSequence

T = TypeVar("T")


def timed(team: Team, seconds: float) -> Team:
    """The same models, but that an anchor, judge, cost or reward model has failed when it says nothing for too long."""
    return replace(
        team,
        anchor=team.anchor and cast("Engine", _TimedEngine(team.anchor, seconds)),
        judge=team.judge and _TimedJudge(team.judge, seconds),
        cost=team.cost and _TimedScorer(team.cost, seconds),
        reward=team.reward and _TimedScorer(team.reward, seconds),
    )


class _TimedJudge(Judge):
    def __init__(self, judge: Judge, seconds: float) -> None:
        self._judge = judge
        self._seconds = seconds
        self.reads_thoughts = judge.reads_thoughts

    @property
    def name(self) -> str:
        return self._judge.name

    @property
    def settings(self) -> Mapping[str, object]:
        return self._judge.settings

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
        return await _in_time(self._judge(messages, responses), self.name, self._seconds)


class _TimedScorer(Scorer):
    def __init__(self, scorer: Scorer, seconds: float) -> None:
        self._scorer = scorer
        self._seconds = seconds
        self.reads_thoughts = scorer.reads_thoughts

    @property
    def name(self) -> str:
        return self._scorer.name

    @property
    def settings(self) -> Mapping[str, object]:
        return self._scorer.settings

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        return await _in_time(self._scorer(messages, responses), self.name, self._seconds)


class _TimedEngine:
    """An engine whose logits and activations come in time or not at all; everything else is the engine's own."""

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
        return await _in_time(self._sequence.logits(), f"The anchor {self._name}", self._seconds)

    async def activations(self, positions: Sequence[int] = (-1,)) -> Tensor:
        return await _in_time(self._sequence.activations(positions), f"The anchor {self._name}", self._seconds)


async def _in_time(grading: Awaitable[T], name: str, seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await grading
    except TimeoutError as error:
        raise DefenseError(f"{name} said nothing for {seconds:g} seconds.") from error
