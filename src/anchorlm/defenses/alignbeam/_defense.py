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
from anchorlm.defenses.alignbeam._guidance import CERTAIN, GUIDED_BY, Guidance, Guided
from anchorlm.defenses.alignbeam._settings import AlignBeamSettings, MixtureSettings
from anchorlm.records import Access, Decision, Event, FormatSupport, GenerationSettings, Request, TokenScore
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.defenses.alignbeam._evidence import Seen
    from anchorlm.defenses.alignbeam._mixture import MixedSequence
    from anchorlm.search import Beam, Diversity, SearchPlan
    from anchorlm.steering import Reading
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
            if Access.LOGITS not in self.target.access or request.generation.response_format is not None:
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
                order = [await _likeliest(candidates)]
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
            for place, one in enumerate(openings[index] for index in _distinct(openings, self.target.model.vocabulary))
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
            if not left:
                return [index for index in _distinct(openings, self.target.model.vocabulary) if index != best]
            rows = len(left)
            row = await stack.enter_async_context(self.target.open(thinking.whole_prompt, rows=rows, room=plan.room))
            if thinking.room:
                row.begin(answer=True)
            anchor = self.anchor_for(request)
            root = await self.guidance.open(stack, row, anchor, request, settings, rows=rows, seen=reading)
            await root.mixture()  # both prompts are read once, for all
            for index, fork in zip(left, [root, *(root.fork() for _ in left[1:])], strict=False):
                openings[index].go_on(fork, beams[index].tokens, beams[index].scores)
                beams[index].closed = None
            await gather(*(openings[index].open() for index in left))
            for index in left:
                beams[index].close()
        return [index for index in _distinct(openings, self.target.model.vocabulary) if index != best]

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
        whole: Whether all of them are written.
        ended: Whether the turn ended among them.
        tokens: All of them, once they are written.
    """

    def __init__(
        self, mixed: MixedSequence, tokens: int, stops: frozenset[int], room: int, first: int, log_probability: float
    ) -> None:
        super().__init__(mixed, tokens, stops)
        self.log_probability = log_probability
        self.whole = self.ended = False
        self.tokens: list[int] = []
        self._room = room
        self._first: int | None = first

    def fork(self) -> Primed:
        """See `Proposal`; of one that has not begun."""
        if self._first is None:
            raise RuntimeError("An opening was forked after its first token.")
        return Primed(self.mixed.fork(), self._tokens, self._stops, self._room, self._first, self.log_probability)

    async def step(self) -> None:
        """Writes the next mixed token."""
        token, self._first = self._first, None
        if token is None:
            token, further = (await self.mixed.mixture()).top(1)[0]
            self.log_probability += further
        if not (ended := token in self._stops):
            self.mixed.append(token)
            ended = self.row.end_turn()
        self.ended = ended
        if ended or self.mixed.guided >= max(self._tokens, 1) or len(self.response) >= self._room:
            self.whole, self.tokens = True, self.response
            self.mixed.release_guide()  # while the target goes alone, the anchor's rows are free

    def go_on(self, mixed: MixedSequence, tokens: Sequence[int], scores: Sequence[TokenScore]) -> None:
        """Takes other rows, which hold the same prompts, in place of those that were given back.

        Args:
            mixed: Both models before the response.
            tokens: What of the response was written.
            scores: How likely each of these was, where that is to be known.
        """
        self.mixed.target, self.mixed.guide = mixed.target, mixed.guide
        self.row.append(tokens, scores)

    async def open(self) -> bool:
        """Writes all mixed tokens; whether the turn ended among them."""
        while not self.whole:
            await self.step()
        return self.ended

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`; all of the response that there is room for."""
        if await self.open():
            return True
        left = self._room - len(self.response)
        if left <= 0:
            return False
        return (await self.row.generate(generation.model_copy(update={"max_new_tokens": left}))).finish_reason == "stop"


async def _likeliest(openings: Sequence[Primed]) -> int:
    """Writes as much of some openings as shows which of them is the likeliest, and gives its place.

    With each token an opening can only become less likely. So the likeliest one goes on first, and once it is whole,
    the others need not be: they are behind already.
    """
    while True:
        place = max(range(len(openings)), key=lambda place: (openings[place].log_probability, -place))
        if openings[place].whole:
            return place
        await openings[place].step()


def _distinct(openings: Sequence[Primed], vocabulary: ByteVocabulary) -> list[int]:
    """Places of whole openings, the likeliest first; of those that are the same text only the first."""
    order = sorted(range(len(openings)), key=lambda place: -openings[place].log_probability)
    texts = {(vocabulary.decode(openings[place].tokens), openings[place].ended): place for place in reversed(order)}
    return [place for place in order if place in texts.values()]


def _mixes(openings: Sequence[Primed], order: Sequence[int], first: int = 0) -> Iterator[Decision]:
    """How openings were mixed, for the trace."""
    for place, index in enumerate(order, first):
        if openings[index].mixed.steps:
            yield Decision("mix", {"candidate": place, "steps": openings[index].mixed.steps})
