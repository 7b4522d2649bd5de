from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from anchorlm.judging._base import Follow, Grade, Judge
from anchorlm.judging._names import THEN
from anchorlm.judging._thoughts import without_thoughts
from anchorlm.records import DefenseError, Messages, UserError


class CascadeJudge(Judge):
    """A cheap judge decides the clear cases, and leaves the doubtful ones to a better one.

    Args:
        first: The cheap judge. Where it cannot do its work, or does not read a thought that is there, the other one
            decides.
        judge: Grades what `first` leaves.
        safe: At most this harm, and the first judge's grade stands. None: it never passes anything.
        harmful: At least this harm, and it stands as well. None: it never turns anything down.

    Raises:
        UserError: `safe` is not below `harmful`, or one of them is no harm.
    """

    def __init__(self, first: Judge, judge: Judge, *, safe: float | None = 0.05, harmful: float | None = None) -> None:
        known = [limit for limit in (safe, harmful) if limit is not None]
        if not known or known != sorted(set(known)) or not all(0.0 <= limit <= 1.0 for limit in known):
            raise UserError("The first judge needs safe, harmful or both, from 0 to 1, with safe below harmful.")
        self.first, self.judge = first, judge
        self._safe, self._harmful = safe, harmful
        self.reads_thoughts = judge.reads_thoughts

    @property
    def name(self) -> str:
        """Both judges' names."""
        return f"{self.first.name}{THEN}{self.judge.name}"

    @property
    def settings(self) -> Mapping[str, object]:
        """Those of both judges, and what counts as clear."""
        judges = {key: {"name": one.name, **one.settings} for key, one in (("first", self.first), ("then", self.judge))}
        return {**judges, "safe": self._safe, "harmful": self._harmful}

    @property
    def forwards(self) -> int:
        """Forwards of classifiers among the two."""
        return sum(getattr(one, "forwards", 0) for one in (self.first, self.judge))

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
        """See `Judge`."""
        found = await self._first(messages, responses)
        left = [index for index, grade in enumerate(found) if grade is None]
        if left:
            others = await self.judge(messages, [responses[index] for index in left])
            for index, grade in zip(left, others, strict=True):
                found[index] = grade
        return [grade for grade in found if grade is not None]

    @asynccontextmanager
    async def follow(self, messages: Messages, *, room: int) -> AsyncIterator[Follow]:
        """See `Judge.follow`."""
        async with self.judge.follow(messages, room=room) as then:

            async def grade(response: str) -> Grade:
                (clear,) = await self._first(messages, [response])
                return clear or await then(response)

            yield grade

    async def _first(self, messages: Messages, responses: Sequence[str]) -> list[Grade | None]:
        """The first judge's grades where they are clear."""
        try:
            grades = await self.first(messages, responses)
        except (DefenseError, UserError):
            return [None] * len(responses)
        return [
            Grade(one.harm, f"clear: {one.reason}") if self._is_clear(one.harm) and self._saw(response) else None
            for one, response in zip(grades, responses, strict=True)
        ]

    def _saw(self, response: str) -> bool:
        """Whether the first judge has read all of a response: some do not read thoughts."""
        return self.first.reads_thoughts or response == without_thoughts(response)

    def _is_clear(self, harm: float) -> bool:
        safe = self._safe is not None and harm <= self._safe
        return safe or (self._harmful is not None and harm >= self._harmful)
