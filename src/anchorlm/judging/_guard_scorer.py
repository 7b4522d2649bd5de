from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from anchorlm.judging._guard import GuardJudge
from anchorlm.judging._scores import Scorer
from anchorlm.records import Messages, UserError


class GuardScorer(Scorer):
    """A guard model as a cost: the log-odds of its harm, above 0 where a response is rather harmful.

    Args:
        judge: The guard.
        scale: Multiplies the log-odds.
        offset: Is added then. It moves the line between safe and unsafe to 0.

    Raises:
        UserError: A scale that is not above 0.
    """

    def __init__(self, judge: GuardJudge, *, scale: float = 1.0, offset: float = 0.0) -> None:
        if not (scale > 0 and math.isfinite(scale) and math.isfinite(offset)):
            raise UserError(f"scale = {scale} and offset = {offset} turn no harm into a cost: give a scale above 0.")
        self._judge = judge
        self._scale = scale
        self._offset = offset

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return self._judge.name

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Scorer`."""
        return {**self._judge.settings, "scale": self._scale, "offset": self._offset}

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        found = await self._judge.verdicts(messages, responses)
        return [self._scale * one.margin + self._offset for one in found]
