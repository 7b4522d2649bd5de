from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from anchorlm.defenses._base import Defense, ends, refuse, room_for, stream_target
from anchorlm.defenses._flow import Flow, flowing
from anchorlm.defenses._picked import Picks
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.defenses.alignbeam._guidance import CERTAIN, GUIDED_BY, Guidance
from anchorlm.defenses.alignbeam._openings import Primed, distinct, likeliest
from anchorlm.defenses.alignbeam._settings import AlignBeamSettings, MixtureSettings
from anchorlm.records import Access, Decision, Event, FormatSupport, GenerationSettings, Request
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.defenses.alignbeam._evidence import Seen
    from anchorlm.search import Beam, SearchPlan
    from anchorlm.steering import Reading


class AlignBeam(Defense):
    """A small aligned anchor of any family guides the first tokens; a judge picks among K responses."""

    name: ClassVar[str] = "alignbeam"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    calls: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(target=Access.LOGPROBS, anchor=Access.LOGPROBS, judge=True, continues=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    settings_type: ClassVar[type[MixtureSettings]] = AlignBeamSettings
    artifacts: ClassVar[Mapping[str, str]] = GUIDED_BY
    beside: ClassVar[tuple[str, ...]] = tuple(GUIDED_BY)
    fixed: ClassVar[tuple[str, ...]] = ("gate_reader", "release")

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        self.guidance = Guidance(self, self.settings)
        self.settings = self.guidance.settings
        if self.settings.release == "blocks":
            self.streams = "blocks"  # type: ignore[misc]  # of this guard

    @property
    def facts(self) -> tuple[str, ...]:
        """See `Defense`."""
        return (self.guidance.told,)

    async def start(self) -> None:
        """See `Defense.start`."""
        await self.guidance.start()

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Mixes, primes, extends, finishes, judges (steps 1 to 6 of the paper), each only as far as it is needed."""
        from anchorlm.search import Beam, SafetyState, SearchPlan, search, unscored, write

        settings: AlignBeamSettings = self.settings_for(request)
        thinking = Thinking(self.target, request)
        prompt = thinking.prompt
        async with AsyncExitStack() as stack:
            longest = request.generation.max_new_tokens + thinking.room
            row = await stack.enter_async_context(self.target.open(prompt, rows=settings.candidates, room=longest))
            anchor = self.anchor_for(request)
            async with thinking.as_fitted(row) as plain:  # before the thought
                reading = await self.guidance.read(plain, anchor, request, settings)
            if reading is not None:
                yield Decision("gate", reading.data)
                if not reading.open:
                    async for event in said(thinking, row, self.target, settings.refusal):
                        yield event
                    return
                if self.guidance.refuses(reading, settings):
                    for event in refuse(settings.refusal, CERTAIN, prompt_tokens=len(prompt)):
                        yield event
                    return
            async for piece in self.guidance.think(thinking, row, anchor, settings, reading):
                yield piece
            if thinking.failed is not None:
                for event in thinking.refusal(settings.refusal):
                    yield event
                return
            request = thinking.request
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
                rest = stream_target(first.target, self.target, request.generation, prompt_tokens=len(prompt))
                async for event in rest:
                    yield event
                return
            room = room_for(self.target, row.prompt_length, request.generation)
            await first.lead(room - 1)
            tokens = (await first.mixture()).top(settings.candidates)
            # What no server has named is no candidate, nor is what the response format forbids.
            if self.target.access < Access.LOGITS or request.generation.response_format is not None:
                tokens = [one for one in tokens if one[1] > -inf] or tokens[:1]
            mixtures = [first, *(first.fork() for _ in tokens[1:])]
            stops = ends(row, request.generation)
            candidates = [
                Primed(m, settings.mixed_tokens, stops, room, *t) for m, t in zip(mixtures, tokens, strict=True)
            ]
            if settings.release == "blocks":
                rounds = [[flow] for flow in await self._flows(candidates, request, settings, room)]
                async for event in flowing(self, request, settings, rounds, prompt_tokens=len(prompt)):
                    yield event
                return
            plan = SearchPlan(beams=len(tokens), keep=len(tokens), block=room, room=room)
            beams = [Beam(candidate, SafetyState(0.0)) for candidate in candidates]
            if lazy := settings.candidates_written == "lazy" and len(beams) > 1:
                order = [await likeliest(candidates)]
                for beam in beams:
                    if beam is not beams[order[0]]:
                        beam.close()
                await write(beams[order[0]], plan, request.generation, order[0])
            else:
                order = list(range(len(beams)))
                await search(beams, plan, request.generation, unscored)
        picks, begun = Picks(self, request, settings), len(beams)
        for decision in _mixes(candidates, order):
            yield decision
        enough = await picks.add(
            [beams[index] for index in order], [candidates[index].log_probability for index in order]
        )
        if lazy and not enough:
            left = await self._others(beams, order[0], thinking, plan, request, settings, reading)
            begun = 1 + len(left)
            for decision in _mixes(candidates, left, 1):
                yield decision
            for index in left:
                await self._finish(beams[index], thinking, plan, request.generation, index)
                if await picks.add([beams[index]], [candidates[index].log_probability]):
                    break
        for event in picks.events(len(prompt), begun):
            yield event

    async def _flows(
        self, openings: Sequence[Primed], request: Request, settings: AlignBeamSettings, room: int
    ) -> list[Flow]:
        """Writes the openings. The likeliest first; of those that are the same text only the first."""
        await gather(*(one.open() for one in openings))
        return [
            Flow(
                self,
                request,
                request.generation,
                one.row,
                settings.block,
                room,
                one.ended,
                one.log_probability,
                [Decision("mix", {"candidate": place, "steps": one.mixed.steps})] if one.mixed.steps else [],
            )
            for place, one in enumerate(openings[index] for index in distinct(openings, self.target.model.vocabulary))
        ]

    async def _others(
        self,
        beams: Sequence[Beam],
        best: int,
        thinking: Thinking,
        plan: SearchPlan,
        request: Request,
        settings: AlignBeamSettings,
        reading: Reading | Seen | None,
    ) -> list[int]:
        """Goes on with the openings that were left, whose rows were given back; prompt and thought are read again.

        Returns:
            Their places, the likeliest first; without those that open with the same text as a likelier one.
        """
        openings = [cast(Primed, beam.proposal) for beam in beams]
        left = [index for index, opening in enumerate(openings) if not opening.whole]
        async with AsyncExitStack() as stack:
            rows = max(1, len(left))
            row = await stack.enter_async_context(self.target.open(thinking.whole_prompt, rows=rows, room=plan.room))
            if thinking.room:
                row.begin(answer=True)
            anchor = self.anchor_for(request)
            root = await self.guidance.open(stack, row, anchor, request, settings, rows=rows, seen=reading)
            if left:
                await root.mixture()  # both prompts are read once, for all
            for index, fork in zip(left, [root, *(root.fork() for _ in left[1:])], strict=False):
                openings[index].go_on(fork, beams[index].tokens, beams[index].scores)
                beams[index].closed = None
            await gather(*(openings[index].open() for index in left))
            for index in left:
                beams[index].close()
        return [index for index in distinct(openings, self.target.model.vocabulary) if index != best]

    async def _finish(
        self, beam: Beam, thinking: Thinking, plan: SearchPlan, generation: GenerationSettings, index: int
    ) -> None:
        """Goes on from an opening whose row was given back; prompt and thought are read again."""
        from anchorlm.search import write

        opening = cast(Primed, beam.proposal)
        async with self.target.open(thinking.whole_prompt, room=plan.room) as row:
            if thinking.room:
                row.begin(answer=True)
            row.append(beam.tokens, beam.scores)
            opening.mixed.target, beam.closed = row, None
            await write(beam, plan, generation, index)


def _mixes(openings: Sequence[Primed], order: Sequence[int], first: int = 0) -> Iterator[Decision]:
    """How openings were mixed, for the trace."""
    for place, index in enumerate(order, first):
        if openings[index].mixed.steps:
            yield Decision("mix", {"candidate": place, "steps": openings[index].mixed.steps})
