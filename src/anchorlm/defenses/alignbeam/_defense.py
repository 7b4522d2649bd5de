from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from anchorlm.defenses._base import Defense, ends, refuse, room_for, stream_target
from anchorlm.defenses._flow import Flow, flowing
from anchorlm.defenses._picked import Picks
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.defenses.alignbeam._guidance import CERTAIN, GUIDED_BY, Guidance, Guided
from anchorlm.defenses.alignbeam._settings import AlignBeamSettings, MixtureSettings
from anchorlm.records import Access, Decision, Event, FormatSupport, GenerationSettings, Request
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.defenses.alignbeam._mixture import MixedSequence
    from anchorlm.search import Beam, Diversity, SearchPlan
    from anchorlm.tokens import ByteVocabulary


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
                order = await self._openings(beams)
                await write(beams[order[0]], plan, request.generation, order[0])
            else:
                order = list(range(len(beams)))
                await search(beams, plan, request.generation, unscored)
        for place, index in enumerate(order):
            if mixtures[index].steps:
                yield Decision("mix", {"candidate": place, "steps": mixtures[index].steps})
        likely = [candidates[index].log_probability for index in order]
        picks = Picks(self, request, settings)
        if lazy:
            for place, index in enumerate(order):
                if place:
                    await self._finish(beams[index], thinking, plan, request.generation, index)
                if await picks.add([beams[index]], [likely[place]]):
                    break
        else:
            await picks.add(beams, likely)
        for event in picks.events(len(prompt), len(order)):
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
            for place, one in enumerate(_distinct(openings, self.target.model.vocabulary))
        ]

    async def _openings(self, beams: Sequence[Beam]) -> list[int]:
        """Writes the mixed tokens of all candidates, and gives back all rows but the likeliest's.

        Returns:
            The candidates by likelihood; of those that open with the same text only the first.
        """
        openings = [cast(Primed, beam.proposal) for beam in beams]
        await gather(*(one.open() for one in openings))
        order = sorted(range(len(beams)), key=lambda index: -openings[index].log_probability)
        decode = self.target.model.vocabulary.decode
        texts = {decode(openings[index].response): index for index in reversed(order)}
        order = [index for index in order if index in texts.values()]
        for index, beam in enumerate(beams):
            if index != order[0]:
                beam.close()
        return order

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


class Primed(Guided):
    """One of AlignBeam's candidates: a first token that is given, N - 1 more of the mixture, greedily, then the target
    alone, all in one block.

    Args:
        mixed: Both models before the response.
        tokens: N: how many tokens are mixed, the first among them.
        stops: The tokens that end the target's turn.
        room: Most tokens of the response; some may be there already, where a response format forces them.
        first: The first token that is a choice.
        log_probability: Of the first token in the mixture.

    Attributes:
        log_probability: Of the mixed tokens so far.
    """

    def __init__(
        self, mixed: MixedSequence, tokens: int, stops: frozenset[int], room: int, first: int, log_probability: float
    ) -> None:
        super().__init__(mixed, tokens, stops)
        self._room = room
        self.log_probability = log_probability
        self._first = first
        self._ended: bool | None = None

    @property
    def ended(self) -> bool:
        """Whether the turn ended among the mixed tokens."""
        return bool(self._ended)

    def fork(self) -> Primed:
        """See `Proposal`."""
        return Primed(self.mixed.fork(), self._tokens, self._stops, self._room, self._first, self.log_probability)

    async def open(self) -> bool:
        """Writes the mixed tokens; whether the turn ended among them."""
        token, guided = self._first, max(self._tokens, 1)
        while not (ended := token in self._stops):
            self.mixed.append(token)
            if (ended := self.row.end_turn()) or self.mixed.guided >= guided or len(self.response) >= self._room:
                break
            token, further = (await self.mixed.mixture()).top(1)[0]
            self.log_probability += further
        self.mixed.release_guide()  # while the target goes alone, the anchor's rows are free
        self._ended = ended
        return ended

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`; all of the response that there is room for."""
        if await self.open() if self._ended is None else self._ended:
            return True
        left = self._room - len(self.response)
        if left <= 0:
            return False
        return (await self.row.generate(generation.model_copy(update={"max_new_tokens": left}))).finish_reason == "stop"


def _distinct(openings: Sequence[Primed], vocabulary: ByteVocabulary) -> list[Primed]:
    """The likeliest first; of those that open with the same text only the first."""
    order = sorted(openings, key=lambda one: -one.log_probability)
    texts = {vocabulary.decode(one.response): one for one in reversed(order)}
    return [one for one in order if one in texts.values()]
