from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from anchorlm.defenses._base import varied
from anchorlm.defenses._evidence import Seen
from anchorlm.defenses._inferenceguard_settings import InferenceGuardSettings
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
        thought: The tokens between the prompt and the answer.
        answers: Whether the target knows thoughts, so that another one ends the answer.
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
    thought: list[int] = field(default_factory=list)
    answers: bool = False

    @property
    def whole_prompt(self) -> list[int]:
        """All that stands before the answer."""
        if not self.thought:
            return self.prompt
        embeddings = getattr(self.prompt, "embeddings", None)
        whole = [*self.prompt, *self.thought]
        if embeddings is None:
            return whole
        from anchorlm.models import PromptIds

        return PromptIds(whole, embeddings)

    def said(self, answer: str) -> str:
        """What the cost model counts: all that can be shown."""
        settings, thought = self.request.thoughts, self.request.thought
        shown = thought if settings is not None and settings.policy == "show" else None
        return f"{shown}\n\n{answer}" if shown else answer

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
