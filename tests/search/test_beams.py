from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest
import torch
from factories import random_ids, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import LocalEngine, runtime
from anchorlm.records import GenerationSettings
from anchorlm.search import Beam, Diversity, Found, SafetyState, SearchPlan, TargetProposal, search, seed_at

few = settings(max_examples=40, deadline=None)

PROMPT = random_ids(9)[0]
SAMPLING = GenerationSettings(do_sample=True, temperature=1.3, seed=5)
PLAN = SearchPlan(beams=6, keep=2, block=3, room=8, lead=inf)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(tiny_model("llama"))


def worth(tokens: Sequence[int]) -> float:
    """Any function of the tokens without ties."""
    return float(sum((place + 1) * token**0.5 for place, token in enumerate(tokens))) % 17


async def by_worth(beams: Sequence[Beam]) -> None:
    for beam in beams:
        beam.score = worth(beam.tokens)


async def fails(beams: Sequence[Beam]) -> None:
    for beam in beams:
        beam.score = -inf


async def searched(
    engine: LocalEngine, plan: SearchPlan, generation: GenerationSettings, score: object = by_worth
) -> Found:
    async with engine.open(PROMPT, rows=plan.beams, room=plan.room) as row:
        root = Beam(TargetProposal(row, engine.model.stop_ids), SafetyState(0.0))
        found = await search([root], plan, generation, score)  # type: ignore[arg-type]
        for beam in found.beams:
            beam.close()
        return found


async def written(engine: LocalEngine, tokens: Sequence[int], size: int, seed: int) -> tuple[list[int], bool]:
    """A block after a prompt and a prefix that are read anew."""
    async with engine.open([*PROMPT, *tokens], room=size) as row:
        update = {"max_new_tokens": size, "seed": seed}
        one = await row.generate(SAMPLING.model_copy(update=update))
        return [*tokens, *one.token_ids], one.finish_reason == "stop"


async def naive(engine: LocalEngine, plan: SearchPlan) -> list[list[int]]:
    """Blockwise beam search with lists, one beam after another, every prefix read from the start."""
    survivors: list[tuple[list[int], bool]] = [([], False)]
    for turn in range(plan.room):
        live = [tokens for tokens, ended in survivors if not ended]
        done = [(tokens, ended) for tokens, ended in survivors if ended]
        if not live:
            break
        each = max(1, (plan.beams - len(done)) // len(live))
        pool: list[tuple[list[int], bool]] = list(done)
        for index, tokens in enumerate(t for t in live for _ in range(each)):
            size = min(plan.block, plan.room - len(tokens))
            longer, stopped = await written(
                engine, tokens, size, seed_at(SAMPLING.seed, plan.beams - 1, turn, 0, index)
            )
            pool.append((longer, stopped or len(longer) == plan.room))
        survivors = sorted(pool, key=lambda one: -worth(one[0]))[: plan.keep]
    return [tokens for tokens, _ in survivors]


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, keep=6), replace(PLAN, block=1, room=4), replace(PLAN, keep=1)])
def test_without_penalty_the_search_is_plain_blockwise_beam_search(engine: LocalEngine, plan: SearchPlan) -> None:
    found = runtime().run(searched(engine, plan, SAMPLING))
    assert [list(beam.tokens) for beam in found.beams] == runtime().run(naive(engine, plan))
    assert all(beam.reason is not None for beam in found.beams)


@pytest.mark.parametrize("generation", [GenerationSettings(), SAMPLING])
def test_one_beam_of_one_block_is_what_the_engine_writes(engine: LocalEngine, generation: GenerationSettings) -> None:
    async def alone() -> tuple[int, ...]:
        async with engine.open(PROMPT, room=8) as row:
            return (await row.generate(generation.model_copy(update={"max_new_tokens": 8}))).token_ids

    found = runtime().run(searched(engine, SearchPlan(1, 1, 8, 8), generation))
    assert found.beams[0].tokens == runtime().run(alone())


def test_a_full_block_is_not_the_end_of_a_text(engine: LocalEngine) -> None:
    found = runtime().run(searched(engine, replace(PLAN, rounds=1, keep=6), SAMPLING))
    full = [beam for beam in found.beams if len(beam.tokens) == PLAN.block]
    assert full
    assert all(beam.reason is None for beam in full)


def test_where_all_beams_fail_the_search_ends_after_its_retries(engine: LocalEngine) -> None:
    found = runtime().run(searched(engine, replace(PLAN, retries=3, diversity=5.0), SAMPLING, fails))
    assert found.beams == []
    assert (found.rounds, found.retries) == (1, 3)
    assert found.generated <= 4 * PLAN.beams * PLAN.block


def test_a_second_try_avoids_what_the_failed_beams_shared(engine: LocalEngine) -> None:
    tries: list[list[tuple[int, ...]]] = []

    async def once(beams: Sequence[Beam]) -> None:
        tries.append([beam.tokens for beam in beams])
        for beam in beams:
            beam.score = -inf if len(tries) == 1 else 0.0

    cold = SAMPLING.model_copy(update={"temperature": 0.05})  # the beams say much the same
    runtime().run(searched(engine, SearchPlan(6, 6, 3, 3, retries=1, diversity=1e6), cold, once))
    first, second = ({tokens[0] for tokens in attempt if tokens} for attempt in tries)
    assert first
    assert second
    assert not first & second


@few
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.integers(0, 4), st.floats(0, 9))
def test_the_penalty_is_the_share_of_failed_blocks_with_the_token(
    blocks: list[list[int]], step: int, strength: float
) -> None:
    penalty = Diversity(blocks, strength).penalty(step, torch.zeros(10))
    for token in range(10):
        share = sum(len(block) > step and block[step] == token for block in blocks) / len(blocks)
        assert float(penalty[token]) == pytest.approx(strength * share, abs=1e-5)


def test_a_search_is_reproducible_whatever_runs_beside_it(engine: LocalEngine) -> None:
    async def together() -> list[Found]:
        others = [SAMPLING.model_copy(update={"seed": seed}) for seed in (1, 5, 9)]
        return list(await asyncio.gather(*(searched(engine, PLAN, one) for one in others)))

    alone = runtime().run(searched(engine, PLAN, SAMPLING))
    beside = runtime().run(together())
    assert [beam.tokens for beam in alone.beams] == [beam.tokens for beam in beside[1].beams]
    assert [beam.tokens for beam in alone.beams] != [beam.tokens for beam in beside[0].beams]


def test_a_finished_beam_that_leads_ends_the_search(engine: LocalEngine) -> None:
    async def short(beams: Sequence[Beam]) -> None:
        for beam in beams:
            beam.score = 5.0 if beam.reason else -float(len(beam.tokens))

    for seed in range(16):  # until a beam ends its turn before the room ends
        how = SAMPLING.model_copy(update={"seed": seed})
        leads = runtime().run(searched(engine, replace(PLAN, block=1, room=30, lead=1.0), how, short))
        if leads.beams[0].reason == "stop":
            break
    waits = runtime().run(searched(engine, replace(PLAN, block=1, room=30), how, short))
    assert leads.beams[0].reason is not None
    assert leads.rounds < waits.rounds
