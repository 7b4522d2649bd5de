from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, DefenseSettings, ends, room_for, varied
from anchorlm.defenses._picked import COMFORT, Picks
from anchorlm.defenses._thinking import Thinking
from anchorlm.records import Access, Event, FormatSupport, Request
from anchorlm.team import Needs


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


class BestOfN(Defense):
    """Samples n responses of the target and lets a judge pick among them."""

    name: ClassVar[str] = "best_of_n"
    needs: ClassVar[Needs] = Needs(target=Access.TEXT, judge=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "any"
    calls: ClassVar[bool] = True
    settings_type: ClassVar[type[DefenseSettings]] = BestOfNSettings

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
            beam = Beam(TargetProposal(root, ends(root, generation)), SafetyState(0.0))
            found = await search([beam], plan, varied(generation, settings.temperature), unscored)
        picks = Picks(self, request, settings)
        await picks.add(found.beams, [None] * len(found.beams))
        for chosen in picks.events(len(ids)):
            yield chosen
