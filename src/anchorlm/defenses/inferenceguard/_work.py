from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from anchorlm.defenses._base import varied
from anchorlm.defenses._thinking import Thinking
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
    from anchorlm.search import Beam, Found
    from anchorlm.steering import Reading


@dataclass(slots=True)
class Work:
    """One request on its way.

    Attributes:
        request: What is asked.
        settings: The knobs.
        thinking: Its prompt, and the thought behind it.
        room: Most tokens of the response.
        generated: Tokens that were sampled so far.
        least: The lowest cost of a whole response so far.
        vetoed: Whole responses within budget that the judge turned down so far.
        reading: What the gate said of the prompt, once it was read.
        told: Whether the trace says so.
        guided: Whether the anchor guides what is written from here on.
        best: The best that the last searches found.
        skipped: Beams of the searches for which the engines had no room.
        said: What is out so far.
        given: How many tokens are out.
    """

    request: Request
    settings: InferenceGuardSettings
    thinking: Thinking
    room: int
    generated: int = 0
    least: float = inf
    vetoed: int = 0
    reading: Reading | Seen | None = None
    told: bool = False
    guided: bool = True
    best: Beam | None = None
    skipped: Sequence[int] = ()
    said: str = ""
    given: int = 0

    def counted(self, answer: str) -> str:
        """What the cost model counts: all that can be shown."""
        settings, thought = self.request.thoughts, self.request.thought
        shown = thought if settings is not None and settings.policy == "show" else None
        return f"{shown}\n\n{answer}" if shown else answer

    @property
    def whole(self) -> bool:
        """Whether whole responses are looked at before anything is said. Else text comes block by block."""
        return self.settings.release == "whole"

    def ready(self, found: Found) -> list[Beam]:
        """What a search found that could be given: whole responses, or the best next block."""
        return [beam for beam in found.beams if beam.reason is not None] if self.whole else found.beams[:1]

    @property
    def doubtful(self) -> bool:
        """Whether the gate stayed closed, but only just."""
        reading = self.reading
        return reading is not None and reading.score > reading.threshold - self.settings.doubt

    def sampling(self, n: int) -> GenerationSettings:
        """The request's own way for a draft. Beams must differ."""
        own = self.request.generation
        return own if n == 1 else varied(own, self.settings.temperature)

    def finished(self, reason: FinishReason, tokens: int) -> Finished:
        """The last event."""
        return Finished(reason, Usage(len(self.thinking.prompt), tokens, self.generated))

    def decisions(self, n: int, found: Found, shown: Sequence[tuple[Beam, str]], *, judged: bool) -> Iterator[Decision]:
        """For the trace: what the gate said, once, and what a search came to.

        Args:
            n: Its beams.
            found: What it found.
            shown: The beams that are told of, with their texts.
            judged: Whether a judge looked at them.
        """
        if self.reading is not None and not self.told:
            self.told = True
            yield Decision("gate", self.reading.data)
        responses = [{"text": text, "cost": beam.cost, "reward": beam.reward} for beam, text in shown]
        data: dict[str, Any] = {
            "beams": n,
            "rounds": found.rounds,
            "retries": found.retries,
            "generated": found.generated,
        }
        if judged:
            data["turned down by the judge"] = self.vetoed
        data["least cost"] = self.least if self.least < inf else None  # JSON knows no infinity
        yield Decision("draft" if n == 1 else "search", {**data, "responses": responses})

    def chosen(self, best: Beam, limit: float) -> dict[str, Any]:
        """For the trace, of the response that is given."""
        return {"cost": best.cost, **({"reward": best.reward} if self.whole else {}), "limit": limit}

    def released(self, out: Beam, text: str, shown: tuple[int, ...]) -> Iterator[TextDelta]:
        """What comes out with a beam that passed: nothing while tokens wait for a character that they make whole.

        Args:
            out: The beam.
            text: All of its text.
            shown: Its tokens that stay whatever follows.
        """
        if text != self.said or out.reason is not None:
            yield TextDelta(text[len(self.said) :], shown[self.given :], out.scores[self.given : len(shown)])
            self.said, self.given = text, len(shown)

    def given_up(self, limit: float) -> Iterator[Event]:
        """Where nothing passes: the refusal, or the end of what is out already."""
        what = "nothing" if self.whole else f"no {'further' if self.said else 'first'} block"
        why = f"{what} within {limit:.3f} was found{self._told_of_failures}"
        if not self.said:
            yield from self.refusal(why)
            return
        yield Decision("fallback", {"why": f"{why}; the text ends here"})
        yield self.finished("refusal", self.given)

    @property
    def _told_of_failures(self) -> str:
        safest = f": the safest response costs {self.least:.3f}" if self.least < inf else ""
        turned = f"; the judge turned down {self.vetoed}" if self.vetoed else ""
        short = f"; the engines have no room for {list(self.skipped)} beams" if self.skipped else ""
        return f"{safest}{turned}{short}"

    def refusal(self, why: str) -> Iterator[Event]:
        """What is said instead."""
        yield Decision("fallback", {"why": why})
        yield TextDelta(self.settings.refusal)
        yield self.finished("refusal", 0)
