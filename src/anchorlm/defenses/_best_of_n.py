from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, DefenseSettings, ends, room_for, varied
from anchorlm.defenses._flow import Block, Flow, Release, flowing
from anchorlm.defenses._picked import COMFORT, Picks
from anchorlm.defenses._thinking import Thinking
from anchorlm.records import Access, Event, FormatSupport, Request, UserError
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.engine import TokenSequence


class BestOfNSettings(DefenseSettings):
    """How many, how varied, and what counts as safe."""

    n: int = Field(default=16, ge=1, le=512, description="How many responses are sampled.")
    temperature: float = Field(
        default=1.0, gt=0, description="Temperature of the samples. A request that samples brings its own."
    )
    max_harm: float = Field(
        default=0.375, ge=0, le=1, description="The most harm that may pass. 0.375 is a grade of 2.5 of 5."
    )
    comfort: float = Field(
        default=COMFORT,
        ge=0,
        le=1,
        description="How far below `max_harm` the first sample wins. At 1 the least harmful always wins.",
    )
    release: Release = "whole"
    block: Block = 8


class BestOfN(Defense):
    """Samples n responses of the target and lets a judge pick among them."""

    name: ClassVar[str] = "best_of_n"
    needs: ClassVar[Needs] = Needs(target=Access.TEXT, judge=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "any"
    calls: ClassVar[bool] = True
    settings_type: ClassVar[type[DefenseSettings]] = BestOfNSettings
    fixed: ClassVar[tuple[str, ...]] = ("release",)

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        if self.settings.release == "blocks":
            if not team.offer.continues:
                raise UserError(
                    'With release = "blocks" best_of_n goes on with answers that have begun, and the target\'s server '
                    "cannot: set release to whole, or give the target's tokenizer with tokenizer."
                )
            self.streams = "blocks"  # type: ignore[misc]  # of this guard
            self.formats = "local"  # type: ignore[misc]  # a server holds a format only in what it writes at once

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Samples, judges, picks."""
        from anchorlm.engine import read_ahead
        from anchorlm.search import Beam, SafetyState, SearchPlan, TargetProposal, search, unscored

        settings: BestOfNSettings = self.settings_for(request)
        thinking = Thinking(self.target, request)
        ids, generation = thinking.prompt, request.generation
        room = room_for(self.target, len(ids), generation)
        async with self.target.open(ids, rows=settings.n, room=room + thinking.room) as root:
            async for piece in thinking.begin(root, settings.refusal):
                yield piece
            if thinking.failed is not None:
                return
            request, room = thinking.request, room_for(self.target, root.prompt_length, generation)
            plan = SearchPlan(beams=settings.n, keep=settings.n, block=room, room=room)
            await read_ahead(self.target, root)  # one prefill, shared by all
            if settings.release == "blocks":
                rounds = self._flows(root, request, settings, room)
                async for event in flowing(self, request, settings, rounds, prompt_tokens=len(ids)):
                    yield event
                return
            beam = Beam(TargetProposal(root, ends(root, generation)), SafetyState(0.0))
            found = await search([beam], plan, varied(generation, settings.temperature), unscored)
        picks = Picks(self, request, settings)
        await picks.add(found.beams, [None] * len(found.beams))
        for chosen in picks.events(len(ids)):
            yield chosen

    def _flows(
        self, root: TokenSequence, request: Request, settings: BestOfNSettings, room: int
    ) -> Iterator[list[Flow]]:
        """The first sample, and if it does not win, all the others at once: as a rule it does."""
        from anchorlm.search import seed_at

        generation = varied(request.generation, settings.temperature)

        def flow(row: TokenSequence, index: int) -> Flow:
            seed = seed_at(generation.seed, settings.n - 1, 0, 0, index)  # as where all are written whole
            own = generation.model_copy(update={"seed": seed})
            return Flow(self, request, own, row, settings.block, room)

        other = root.fork() if settings.n > 1 else None  # before anything is written
        yield [flow(root, 0)]
        if other is not None:
            yield [flow(other.fork(), index) for index in range(1, settings.n - 1)] + [flow(other, settings.n - 1)]
