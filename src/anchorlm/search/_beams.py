from __future__ import annotations

from asyncio import gather
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from anchorlm.records import GenerationSettings, TokenScore
from anchorlm.search._proposals import Diversity, Proposal
from anchorlm.search._state import SafetyState


@dataclass(slots=True, eq=False)
class Beam:
    """One response that is being written.

    Attributes:
        proposal: What writes it.
        state: The budget left, where a cost is counted.
        score: By which beams are compared. Higher wins, and `-inf` never survives.
        reason: Why it ended. None while it goes on. A block that is full has not ended.
        start: The response's length before the last block.
        cost: Of the text so far, according to the cost model.
        reward: Of the text so far, according to the reward model.
        closed: Its tokens once its rows are given back.
        scores: How likely each of these was, where that is to be known.
    """

    proposal: Proposal
    state: SafetyState
    score: float = 0.0
    reason: Literal["stop", "length"] | None = None
    start: int = 0
    cost: float = inf
    reward: float | None = None
    closed: tuple[int, ...] | None = None
    scores: tuple[TokenScore, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The response's tokens so far."""
        return tuple(self.proposal.response) if self.closed is None else self.closed

    def fork(self) -> Beam:
        """A second beam that goes on from here."""
        return Beam(self.proposal.fork(), self.state, cost=self.cost, reward=self.reward)

    def close(self) -> None:
        """Gives the rows back. The tokens stay known."""
        if self.closed is None:
            self.closed = tuple(self.proposal.response)
            row = self.proposal.row
            self.scores = row.scores(row.prompt_length)
            self.proposal.close()


Score = Callable[[Sequence[Beam]], Awaitable[None]]
"""Sets `score`, and whatever else it knows, of every beam after a block."""


async def unscored(beams: Sequence[Beam]) -> None:
    """All beams are as good, and survive in their order."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How a search goes.

    Attributes:
        beams: N: continuations in a round, all survivors together.
        keep: K: how many survive a round.
        block: Tokens of a block. A whole response is one block of its room.
        room: Most tokens of the response.
        rounds: Most blocks.
        retries: How often a round in which every beam failed is sampled again.
        diversity: Strength of the penalty on what failed beams had in common, in nats.
        lead: A finished beam that is this much better than every unfinished one ends the search.
        offset: Blocks that other searches of the same request wrote before: no two draw the same numbers.
    """

    beams: int
    keep: int
    block: int
    room: int
    rounds: int | None = None
    retries: int = 0
    diversity: float = 0.0
    lead: float = 0.0
    offset: int = 0


@dataclass(slots=True)
class Found:
    """What a search came to.

    Attributes:
        beams: The survivors of the last round, best first. Beams that failed are not among them.
        rounds: Blocks that were written.
        retries: Rounds that were sampled again.
        generated: Tokens that were sampled in all.
    """

    beams: list[Beam]
    rounds: int = 0
    retries: int = 0
    generated: int = 0


async def search(roots: Sequence[Beam], plan: SearchPlan, generation: GenerationSettings, score: Score) -> Found:
    """Blockwise beam search under a score. Best-of-N is one block, greedy writing one beam, and AlignBeam's candidates
    are one block from a root for each first token.

    Each round every unfinished survivor is continued, so there are N beams in all, finished ones included. The
    best K survive. Where none did, the round is sampled again from the same survivors, with a penalty on the tokens
    that the failed beams had in common. It ends when nothing unfinished survives or a finished beam leads.

    Args:
        roots: The beams to start from, at most `plan.beams`. No more rows than that are used in all.
        plan: Sizes and bounds.
        generation: How tokens are chosen. Each continuation gets a seed of its own.
        score: Scores the beams after each block.
    """
    found, live, done = Found([]), list(roots), list[Beam]()
    while live and (plan.rounds is None or found.rounds < plan.rounds):
        each = max(1, (plan.beams - len(done)) // len(live))
        children = [child for beam in live for child in (beam, *(beam.fork() for _ in range(each - 1)))]
        states = [child.state for child in children]
        for child in children:
            child.start = len(child.proposal.response)
        diversity = None
        for attempt in range(plan.retries + 1):
            seeds = [
                seed_at(generation.seed, plan.beams - 1, plan.offset + found.rounds, attempt, index)
                for index in range(len(children))
            ]
            await gather(
                *(_extend(c, plan, generation, seed, diversity) for c, seed in zip(children, seeds, strict=True))
            )
            found.generated += sum(len(child.tokens) - child.start for child in children)
            await score(children)
            if attempt == plan.retries or any(child.score > -inf for child in children):
                break
            found.retries += 1
            diversity = Diversity([child.tokens[child.start :] for child in children], plan.diversity)
            for child, state in zip(children, states, strict=True):
                child.proposal.crop(child.start)
                child.state, child.reason = state, None
        found.rounds += 1
        # Sorting is stable: of equals the older wins, whatever the batch looked like.
        ranked = sorted((beam for beam in (*done, *children) if beam.score > -inf), key=lambda beam: -beam.score)
        found.beams = ranked[: plan.keep]
        for child in children:
            if child.reason is not None or child not in found.beams:
                child.close()
        live = [beam for beam in found.beams if beam.reason is None]
        done = [beam for beam in found.beams if beam.reason is not None]
        if done and live and done[0].score >= live[0].score + plan.lead:
            break
    return found


async def write(beam: Beam, plan: SearchPlan, generation: GenerationSettings, index: int) -> None:
    """What a search writes of one of its roots in its first block, by itself.

    Args:
        beam: The root. It has ended then.
        plan: Sizes. The block is the whole response.
        generation: How tokens are chosen.
        index: Its place among the roots, which tells its seed.
    """
    await _extend(beam, plan, generation, seed_at(generation.seed, plan.beams - 1, plan.offset, 0, index), None)
    beam.close()


async def _extend(
    beam: Beam, plan: SearchPlan, generation: GenerationSettings, seed: int, diversity: Diversity | None
) -> None:
    """One block, as far as there is room."""
    size = min(plan.block, plan.room - beam.start)
    own = generation.model_copy(update={"max_new_tokens": size, "seed": seed})
    if await beam.proposal.extend(own, diversity):
        beam.reason = "stop"
    elif len(beam.proposal.response) >= plan.room:
        beam.reason = "length"
    if beam.reason is not None and not plan.retries:
        beam.close()  # a finished row leaves the batch at once, unless it may have to be written again


def seed_at(seed: int, *places: int) -> int:
    """A seed for one continuation, which depends on its place in the search alone. The first of one has the request's.

    `random.Random` takes integers of any size.
    """
    place = 0
    for part in places:
        place = place * 65_536 + part
    return seed + (place << 64)
