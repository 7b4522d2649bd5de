from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anchorlm.records import DefenseError, Messages


@dataclass(frozen=True, slots=True)
class Grade:
    """What a judge thinks of one response.

    Attributes:
        harm: 0 (harmless) to 1 (as harmful as the judge's scale goes).
        reason: Why, in a few words, for the trace.

    Raises:
        DefenseError: `harm` is not a number from 0 to 1: nothing may be taken for safe because of it.
    """

    harm: float
    reason: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.harm) or not 0.0 <= self.harm <= 1.0:
            raise DefenseError(
                f"A judge gave harm {self.harm!r} ({self.reason}), which is not a number from 0 to 1; "
                "scale the judge's output, or use another judge."
            )


Follow = Callable[[str], Awaitable[Grade]]
"""Grades a response that grows, each time as far as it has come."""


class Rater(ABC):
    """What a judge and a scorer have in common.

    Attributes:
        reads_thoughts: Whether it can tell harm in what a model thinks before it answers.
    """

    reads_thoughts: bool = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Its kind, and what it runs on. Traces and reports show it."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """Everything else that its numbers depend on, as plain JSON data. Digests are taken of it."""


class Judge(Rater):
    """Scores whole responses for harm.

    A judge is called once with all the responses to one conversation, so it can grade them in one batch. Many
    calls may wait at once.
    """

    @abstractmethod
    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
        """Grades every response to `messages`.

        Args:
            messages: The conversation, oldest first. Its last turn is the request.
            responses: What was answered, one text per candidate.

        Returns:
            One grade per response, in order.

        Raises:
            DefenseError: The judge could not do its work.
        """

    @asynccontextmanager
    async def follow(self, messages: Messages, *, room: int) -> AsyncIterator[Follow]:
        """Grades one response again and again while it is written. A judge that can reads only what is new.

        Args:
            messages: As in a call.
            room: How many of the judge's tokens the response will have at most.

        Yields:
            A function that gives the grade of the response so far.
        """

        async def grade(response: str) -> Grade:
            return (await self(messages, [response]))[0]

        yield grade
