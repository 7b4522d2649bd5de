from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, DefenseSettings, ends, room_for, varied
from anchorlm.defenses._thinking import Thinking
from anchorlm.records import Access, Decision, Event, Finished, FormatSupport, Request, TextDelta, Usage
from anchorlm.team import Needs

if TYPE_CHECKING:
    from anchorlm.search import Beam


class ControlledDecodingSettings(DefenseSettings):
    """Sizes, and what a text is worth."""

    n: int = Field(default=16, ge=1, le=512, description="How many continuations of each block are sampled.")
    block: int = Field(default=32, ge=0, description="Tokens of a block. 0: the whole response is one block.")
    weight: float = Field(default=5.0, ge=0, description="lambda: how much a unit of cost takes from the reward.")
    temperature: float = Field(
        default=1.0, gt=0, description="Temperature of the samples. A request that samples brings its own."
    )


class BeamSearchSettings(ControlledDecodingSettings):
    """As in the table of InferenceGuard's paper; best-of-N is a block of 0."""

    keep: float = Field(default=0.25, gt=0, le=1, description="K as a share of N: how many beams survive a block.")
    score: Literal["reward", "lagrangian", "safety_state"] = Field(
        default="lagrangian",
        description="What beams are ranked by. `reward`: the reward. `lagrangian`: the reward less lambda times the "
        "cost. `safety_state`: the reward while the budget holds, and a penalty after that.",
    )
    budget: float = Field(default=0.0, ge=0, description="d, for `safety_state`: the most that a response may cost.")


class BeamSearch(Defense):
    """Blockwise beam search or best-of-N under a score, as InferenceGuard's paper compares itself with them.

    As published they have no gate: the best of what was found is given, even where it is over budget.
    """

    name: ClassVar[str] = "beam_search"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    calls: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(target=Access.TEXT, cost=True, reward=True, continues=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    settings_type: ClassVar[type[DefenseSettings]] = BeamSearchSettings

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Searches, and gives the best."""
        from anchorlm.engine import read_ahead
        from anchorlm.search import Beam, SafetyState, SearchPlan, TargetProposal, search

        settings: Any = self.settings_for(request)
        thinking = Thinking(self.target, request)
        prompt = thinking.prompt
        room = room_for(self.target, len(prompt), request.generation)
        sampling = varied(request.generation, settings.temperature)
        async with self.target.open(prompt, rows=settings.n, room=room + thinking.room) as row:
            async for piece in thinking.begin(row, settings.refusal):
                yield piece
            if thinking.failed is not None:
                return
            room, asked = room_for(self.target, row.prompt_length, request.generation), thinking.request
            plan = SearchPlan(settings.n, self._keep(settings), settings.block or room, room, lead=inf)
            await read_ahead(self.target, row)  # read once, shared by all
            proposal = TargetProposal(row, ends(row, request.generation))
            root = Beam(proposal, SafetyState(getattr(settings, "budget", inf)))
            found = await search([root], plan, sampling, lambda beams: self._score(asked, settings, beams))
            best = found.beams[0]
            best.close()
        yield Decision("chosen", {"score": best.score, "cost": best.cost, "reward": best.reward})
        yield TextDelta(self._text(best), best.tokens, best.scores)
        yield Finished(best.reason or "length", Usage(len(prompt), len(best.tokens), found.generated))

    def _keep(self, settings: Any) -> int:
        return max(1, int(settings.n * settings.keep))

    async def _score(self, request: Request, settings: Any, beams: Sequence[Beam]) -> None:
        texts = [self._text(beam) for beam in beams]
        costs = await self.scores("cost", request, texts)
        rewards = await self.scores("reward", request, texts)
        for beam, cost, reward in zip(beams, costs, rewards, strict=True):
            beam.state = beam.state.after(len(beam.tokens) - beam.start, cost)
            beam.cost, beam.reward = cost, reward
            beam.score = self._value(settings, beam, reward, cost)

    def _value(self, settings: Any, beam: Beam, reward: float, cost: float) -> float:
        """What a beam is worth; a penalty is finite, because the best is given in any case."""
        if settings.score == "safety_state":
            return reward if beam.state.within else reward - 1e6
        return reward - (settings.weight * cost if settings.score == "lagrangian" else 0.0)

    def _text(self, beam: Beam) -> str:
        return self.target.model.vocabulary.decode(beam.tokens).decode("utf-8", errors="replace")


class ControlledDecoding(BeamSearch):
    """Blockwise controlled decoding (arXiv 2310.17022): the most valuable continuation of each block goes on."""

    name: ClassVar[str] = "controlled_decoding"
    settings_type: ClassVar[type[DefenseSettings]] = ControlledDecodingSettings

    def _keep(self, settings: Any) -> int:
        return 1

    def _value(self, settings: Any, beam: Beam, reward: float, cost: float) -> float:
        return reward - float(settings.weight) * cost
