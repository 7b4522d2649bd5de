from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from anchorlm.defenses._base import varied
from anchorlm.defenses.alignbeam import Seen
from anchorlm.defenses.inferenceguard._settings import InferenceGuardSettings
from anchorlm.records import (
    Decision,
    Event,
    Finished,
    FinishReason,
    GenerationSettings,
    Request,
    TextDelta,
    Usage,
)

if TYPE_CHECKING:
    from anchorlm.steering import Reading


@dataclass(slots=True)
class Work:
    """One request on its way.

    Attributes:
        request: What is asked.
        settings: The knobs.
        prompt: Its tokens.
        room: Most tokens of the response.
        generated: Tokens that were sampled so far.
        least: The lowest cost of a whole response so far.
        vetoed: Whole responses within budget that the judge turned down so far.
        reading: What the gate said of the prompt, once it was read.
        told: Whether the trace says so.
        guided: Whether the anchor guides what is written from here on.
    """

    request: Request
    settings: InferenceGuardSettings
    prompt: list[int]
    room: int
    generated: int = 0
    least: float = inf
    vetoed: int = 0
    reading: Reading | Seen | None = None
    told: bool = False
    guided: bool = True

    @property
    def doubtful(self) -> bool:
        """Whether the gate stayed closed, but only just."""
        reading = self.reading
        return reading is not None and reading.score > reading.threshold - self.settings.doubt

    def sampling(self, n: int) -> GenerationSettings:
        """The request's own way for a draft; beams must differ."""
        own = self.request.generation
        return own if n == 1 else varied(own, self.settings.temperature)

    def finished(self, reason: FinishReason, tokens: int) -> Finished:
        """The last event."""
        return Finished(reason, Usage(len(self.prompt), tokens, self.generated))

    def told_of(self, skipped: Sequence[int]) -> str:
        """What else is to be said where nothing was found.

        Args:
            skipped: Beams of the searches for which the engines had no room.
        """
        safest = f": the safest response costs {self.least:.3f}" if self.least < inf else ""
        turned = f"; the judge turned down {self.vetoed}" if self.vetoed else ""
        short = f"; the engines have no room for {list(skipped)} beams" if skipped else ""
        return f"{safest}{turned}{short}"

    def refusal(self, why: str) -> Iterator[Event]:
        """What is said instead."""
        yield Decision("fallback", {"why": why})
        yield TextDelta(self.settings.refusal)
        yield self.finished("refusal", 0)
