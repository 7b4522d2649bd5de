from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, Needs, Team, room_for, speak
from anchorlm.defenses._guidance import Guidance, MixtureSettings
from anchorlm.mixing import MixedSequence
from anchorlm.records import Access, Decision, DefenseError, Event, Request
from anchorlm.search import Candidate, release, select, ungraded


class AlignBeamSettings(MixtureSettings):
    """The knobs of AlignBeam; defaults are the paper's (arXiv 2606.12342)."""

    candidates: int = Field(default=3, ge=1, le=64, description="K: first tokens that are tried.")
    max_harm: float = Field(default=0.375, ge=0, le=1, description="Most harm that may pass (0.375 is a grade of 2.5).")
    trace_top: int = Field(default=3, ge=0, description="Tokens per distribution and step in the trace; 0: no steps.")


class AlignBeam(Defense):
    """A small aligned anchor of any family guides the first tokens; a judge picks the safest of K responses."""

    name: ClassVar[str] = "alignbeam"
    needs: ClassVar[Needs] = Needs(target=Access.LOGITS, anchor=Access.LOGITS, judge=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    settings_type: ClassVar[type[MixtureSettings]] = AlignBeamSettings
    fixed: ClassVar[tuple[str, ...]] = ("artifact",)

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        self.guidance = Guidance(self, self.settings)

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Mixes, primes, extends, finishes, judges (steps 1 to 6 of the paper)."""
        settings: AlignBeamSettings = self.settings_for(request)
        prompt = self.target.model.encode(request.messages)
        async with AsyncExitStack() as stack:
            row = await stack.enter_async_context(
                self.target.open(prompt, rows=settings.candidates, room=request.generation.max_new_tokens)
            )
            if (reading := await self.guidance.read(row, settings)) is not None:
                yield Decision("gate", reading.data)
                if not reading.open:
                    async for event in speak(row, self.target, request.generation):
                        yield event
                    return
            first = await self.guidance.open(
                stack, row, request, settings, rows=settings.candidates, trace_top=settings.trace_top
            )
            if first.guide is None and settings.candidates == 1:
                yield Decision("chosen", {"why": "alpha is 0 and there is one candidate: the target alone"})
                async for event in speak(first.target, self.target, request.generation):
                    yield event
                return
            tokens = (await first.mixture()).top(settings.candidates)
            beams = [first, *(first.fork() for _ in tokens[1:])]
            candidates = await gather(
                *(self._extend(beam, *token, request, settings) for beam, token in zip(beams, tokens, strict=True))
            )
        # The rows are free: judging, here or elsewhere, holds nobody up.
        for index, beam in enumerate(beams):
            if beam.steps:
                yield Decision("mix", {"candidate": index, "steps": beam.steps})
        try:
            grades = await self.grades(request, [candidate.text for candidate in candidates])
        except DefenseError:
            yield ungraded(candidates)
            raise
        choice = select(candidates, grades, settings.max_harm)
        for event in release(choice, candidates, grades, settings.refusal, prompt_tokens=len(prompt)):
            yield event

    async def _extend(
        self, beam: MixedSequence, token: int, log_probability: float, request: Request, settings: AlignBeamSettings
    ) -> Candidate:
        """The first token, N - 1 more mixed ones, greedily, then the target alone."""
        stops = self.target.model.stop_ids
        limit = room_for(self.target, beam.target.prompt_length, request.generation)
        mixed = min(settings.mixed_tokens, limit) if beam.guide else 1
        while token not in stops:
            beam.append(token)
            if len(beam.response) == mixed:
                break
            token, further = (await beam.mixture()).top(1)[0]
            log_probability += further
        beam.release_guide()
        reason: Literal["stop", "length"] = "stop" if token in stops else "length"
        if token not in stops and len(beam.response) < limit:
            rest = {"max_new_tokens": limit - len(beam.response), "seed": request.generation.seed + token}
            reason = (await beam.target.generate(request.generation.model_copy(update=rest))).finish_reason
        ids = tuple(beam.response)
        scores = beam.target.scores(beam.target.prompt_length)
        beam.target.close()
        text = self.target.model.vocabulary.decode(ids).decode("utf-8", errors="replace")
        return Candidate(text, ids, reason, log_probability, scores)
