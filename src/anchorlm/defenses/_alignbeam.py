from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, room_for, speak
from anchorlm.defenses._guidance import GUIDED_BY, Guidance, Guided, MixtureSettings
from anchorlm.defenses._picked import COMFORT, picked
from anchorlm.records import Access, Decision, Event, GenerationSettings, Request
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.mixing import MixedSequence
    from anchorlm.search import Diversity


class AlignBeamSettings(MixtureSettings):
    """The knobs of AlignBeam; defaults are the paper's (arXiv 2606.12342)."""

    candidates: int = Field(default=3, ge=1, le=64, description="K: first tokens that are tried.")
    max_harm: float = Field(default=0.375, ge=0, le=1, description="Most harm that may pass (0.375 is a grade of 2.5).")
    comfort: float = Field(default=COMFORT, ge=0, le=1, description="How far below max_harm the likeliest candidate "
                           "wins; 1: the least harmful always does, as in the paper.")  # fmt: skip
    trace_top: int = Field(default=3, ge=0, description="Tokens per distribution and step in the trace; 0: no steps.")


class AlignBeam(Defense):
    """A small aligned anchor of any family guides the first tokens; a judge picks among K responses."""

    name: ClassVar[str] = "alignbeam"
    needs: ClassVar[Needs] = Needs(target=Access.LOGPROBS, anchor=Access.LOGPROBS, judge=True, continues=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    settings_type: ClassVar[type[MixtureSettings]] = AlignBeamSettings
    artifacts: ClassVar[Mapping[str, str]] = GUIDED_BY
    beside: ClassVar[tuple[str, ...]] = tuple(GUIDED_BY)
    fixed: ClassVar[tuple[str, ...]] = ("gate_reader",)

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        self.guidance = Guidance(self, self.settings)
        self.settings = self.guidance.settings

    @property
    def facts(self) -> tuple[str, ...]:
        """See `Defense`."""
        return (self.guidance.told,)

    async def start(self) -> None:
        """See `Defense.start`."""
        await self.guidance.start()

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Mixes, primes, extends, finishes, judges (steps 1 to 6 of the paper)."""
        from anchorlm.search import Beam, Plan, SafetyState, search, unscored

        settings: AlignBeamSettings = self.settings_for(request)
        prompt = self.target.model.encode(request.prompt)
        async with AsyncExitStack() as stack:
            row = await stack.enter_async_context(
                self.target.open(prompt, rows=settings.candidates, room=request.generation.max_new_tokens)
            )
            anchor = self.anchor_for(request)
            if (reading := await self.guidance.read(row, anchor, request, settings)) is not None:
                yield Decision("gate", reading.data)
                if not reading.open:
                    async for event in speak(row, self.target, request.generation):
                        yield event
                    return
            first = await self.guidance.open(
                stack,
                row,
                anchor,
                request,
                settings,
                rows=settings.candidates,
                seen=reading,
                trace_top=settings.trace_top,
            )
            if first.guide is None and settings.candidates == 1:
                yield Decision("chosen", {"why": "alpha is 0 and there is one candidate: the target alone"})
                async for event in speak(first.target, self.target, request.generation):
                    yield event
                return
            tokens = (await first.mixture()).top(settings.candidates)
            if self.target.access < Access.LOGITS:  # what no server has named is no candidate
                tokens = [one for one in tokens if one[1] > -inf] or tokens[:1]
            mixtures = [first, *(first.fork() for _ in tokens[1:])]
            stops = self.target.model.stop_ids
            candidates = [Primed(m, settings.mixed_tokens, stops, *t) for m, t in zip(mixtures, tokens, strict=True)]
            room = room_for(self.target, len(prompt), request.generation)
            plan = Plan(beams=len(tokens), keep=len(tokens), block=room, room=room)
            roots = [Beam(candidate, SafetyState(0.0)) for candidate in candidates]
            found = await search(roots, plan, request.generation, unscored)
        for index, mixture in enumerate(mixtures):
            if mixture.steps:
                yield Decision("mix", {"candidate": index, "steps": mixture.steps})
        likelihoods = [candidate.log_probability for candidate in candidates]
        async for event in picked(
            self,
            request,
            found.beams,
            likelihoods,
            settings,
            prompt_tokens=len(prompt),
        ):
            yield event


class Primed(Guided):
    """One of AlignBeam's candidates: a first token that is given, N - 1 more of the mixture, greedily, then the target
    alone, all in one block.

    Args:
        mixed: Both models before the response.
        tokens: N: how many tokens are mixed, the first among them.
        stops: The tokens that end the target's turn.
        first: The first token.
        log_probability: Of the first token in the mixture.

    Attributes:
        log_probability: Of the mixed tokens so far.
    """

    def __init__(
        self, mixed: MixedSequence, tokens: int, stops: frozenset[int], first: int, log_probability: float
    ) -> None:
        super().__init__(mixed, tokens, stops)
        self.log_probability = log_probability
        self._first = first

    def fork(self) -> Primed:
        """See `Proposal`."""
        return Primed(self.mixed.fork(), self._tokens, self._stops, self._first, self.log_probability)

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`."""
        token, count = self._first, min(max(self._tokens, 1), generation.max_new_tokens)
        while not (ended := token in self._stops):
            self.mixed.append(token)
            if (ended := self.row.end_turn()) or len(self.response) == count:
                break
            token, further = (await self.mixed.mixture()).top(1)[0]
            self.log_probability += further
        self.mixed.release_guide()  # while the target goes alone, the anchor's rows are free
        if ended or len(self.response) == generation.max_new_tokens:
            return ended
        rest = {"max_new_tokens": generation.max_new_tokens - len(self.response)}
        return (await self.row.generate(generation.model_copy(update=rest))).finish_reason == "stop"
