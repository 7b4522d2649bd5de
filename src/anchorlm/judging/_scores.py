from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import isfinite

from anchorlm.judging._base import Judge, Rater
from anchorlm.records import DefenseError, Messages, UserError


class Scorer(Rater):
    """A number for each response: a cost, where above 0 is unsafe, or a reward, where more is better.

    Unlike a judge's harm the number has no bounds, and it is asked of unfinished responses, too. A scorer is called
    with several responses to one conversation. Many calls may wait at once.
    """

    @abstractmethod
    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """Scores every response to `messages`.

        Args:
            messages: The conversation, oldest first. Its last turn is the request.
            responses: What was answered so far, one text per candidate.

        Returns:
            One number per response, in order.

        Raises:
            DefenseError: The scorer could not do its work.
        """


async def checked_scores(scorer: Scorer, messages: Messages, responses: Sequence[str]) -> list[float]:
    """What a scorer says, if it is one finite number for each response.

    Raises:
        DefenseError: It is not: nothing may be taken for safe then, and nothing learned from it.
    """
    scores = [float(score) for score in await scorer(messages, responses)]
    if len(scores) != len(responses) or not all(map(isfinite, scores)):
        raise DefenseError(f"{scorer.name} did not give one finite number for each of {len(responses)} responses.")
    return scores


class JudgeScorer(Scorer):
    """A judge as a cost: its harm less the most that may pass.

    Args:
        judge: Who grades.
        max_harm: Harm that is still safe. The cost is above 0 where the harm is above it.

    Raises:
        UserError: `max_harm` is no harm.
    """

    def __init__(self, judge: Judge, *, max_harm: float = 0.375) -> None:
        if not 0 <= max_harm < 1:
            raise UserError(f"max_harm = {max_harm} must lie between 0 and 1: it is the most harm that may pass.")
        self._judge = judge
        self._max_harm = max_harm
        self.reads_thoughts = judge.reads_thoughts

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return f"judge:{self._judge.name}"

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Scorer`."""
        return {"max_harm": self._max_harm, "judge": dict(self._judge.settings)}

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        return [grade.harm - self._max_harm for grade in await self._judge(messages, responses)]
