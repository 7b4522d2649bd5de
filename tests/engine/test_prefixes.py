from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from factories import greedy, random_ids, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import Edit, LocalEngine, Steering, runtime
from anchorlm.records import GenerationSettings

MODELS = {name: tiny_model(name) for name in ("llama", "mistral", "gemma3_text")}


def run(coroutine: Any) -> Any:
    return runtime().run(asyncio.wait_for(coroutine, 120))


async def write(
    engine: LocalEngine, prompt: Sequence[int], new: int = 6, steering: Steering | None = None
) -> list[int]:
    async with engine.open(prompt, room=new) as sequence:
        sequence.steer(steering)
        return list((await sequence.generate(GenerationSettings(max_new_tokens=new))).token_ids)


async def together(engine: LocalEngine, prompts: Sequence[Sequence[int]], new: int = 6) -> list[list[int]]:
    return list(await asyncio.gather(*(write(engine, prompt, new) for prompt in prompts)))


def pushed(model: str, strength: float = 1.0, positions: str = "all", seed: int = 0) -> Steering:
    width = MODELS[model].text_config.hidden_size
    shift = 3 * torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Steering({0: Edit(shift=shift), 1: Edit(shift=-shift)}, strength, positions)  # type: ignore[arg-type]


prompts = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 70), st.lists(st.integers(3, 299), min_size=1, max_size=24)),
    min_size=1,
    max_size=6,
)
BEGINNINGS = random_ids(70, 70, 70, 70)


@pytest.mark.parametrize("name", MODELS)
@given(rounds=st.lists(prompts, min_size=2, max_size=3), most=st.sampled_from([0, 40, 100, 4096]))
@settings(max_examples=12, deadline=None)
def test_what_rows_write_does_not_depend_on_what_is_kept(
    name: str, rounds: list[list[tuple[int, int, list[int]]]], most: int
) -> None:
    engine, fresh = (LocalEngine(MODELS[name], prefix_tokens=size, prefill_tokens=48) for size in (most, 0))
    for some in rounds:
        asked = [[*BEGINNINGS[which][:length], *own] for which, length, own in some]
        assert run(together(engine, asked, 4)) == run(together(fresh, asked, 4))
        assert engine.prefixes.size <= most
    assert fresh.prefixes.saved == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_row_that_begins_like_one_before_reads_only_what_is_new(name: str) -> None:
    engine = LocalEngine(MODELS[name])
    shared, one, other = random_ids(60, 9, 12)
    run(write(engine, [*shared, *one]))
    before = engine.prefixes.saved
    assert run(write(engine, [*shared, *other])) == greedy(MODELS[name].model, [*shared, *other], 6)
    assert engine.prefixes.saved - before == 60


def test_the_next_turn_of_a_conversation_starts_behind_the_last_answer() -> None:
    engine = LocalEngine(MODELS["llama"])
    prompt, more = random_ids(40, 10)
    answer = run(write(engine, prompt, 24))
    assert len(answer) == 24
    before = engine.prefixes.saved
    following = [*prompt, *answer, *more]
    assert run(write(engine, following)) == greedy(MODELS["llama"].model, following, 6)
    assert engine.prefixes.saved - before >= len(prompt) + len(answer) - 1


def test_a_stream_from_kept_states_is_what_the_whole_text_is() -> None:
    engine = LocalEngine(MODELS["gemma3_text"])
    (prompt,) = random_ids(80)
    whole = run(write(engine, prompt, 12))

    async def streamed() -> list[int]:
        async with engine.open(prompt, room=12) as sequence:
            return [token async for token in sequence.stream(GenerationSettings(max_new_tokens=12))]

    before = engine.prefixes.saved
    assert run(streamed()) == whole
    assert engine.prefixes.saved - before == 79


def test_of_many_rows_that_begin_alike_the_beginning_is_read_once() -> None:
    engine = LocalEngine(MODELS["llama"])
    shared, *own = random_ids(200, *[7] * 12)
    asked = [[*shared, *each] for each in own]
    assert run(together(engine, asked)) == [greedy(MODELS["llama"].model, prompt, 6) for prompt in asked]
    assert engine.prefixes.saved == 11 * 200


def test_rows_do_not_wait_for_a_beginning_that_could_not_be_kept() -> None:
    engine = LocalEngine(MODELS["llama"], prefix_tokens=70)
    shared, *own = random_ids(200, *[7] * 12)
    before = engine.runner.forwards
    run(together(engine, [[*shared, *each] for each in own], 1))
    assert engine.runner.forwards - before <= 4


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_a_steered_prefix_is_never_used_for_a_row_that_is_steered_otherwise(positions: str) -> None:
    states = [
        None,
        pushed("llama", 1.0, positions),
        pushed("llama", 0.5, positions),
        pushed("llama", 1.0, positions, 1),
    ]
    fresh = LocalEngine(MODELS["llama"], prefix_tokens=0)
    (prompt,) = random_ids(60)
    expected = [run(write(fresh, prompt, 8, steering)) for steering in states]
    assert len({tuple(text) for text in expected}) == len(states)
    for first in range(len(states)):
        engine = LocalEngine(MODELS["llama"])
        order = [*range(first, len(states)), *range(first)]
        for index in order:
            assert run(write(engine, prompt, 8, states[index])) == expected[index]
        assert engine.prefixes.saved == 0
        assert run(write(engine, prompt, 8, states[first])) == expected[first]
        assert engine.prefixes.saved == 59


def test_states_behind_a_steered_prompt_are_not_kept_as_if_they_were_steered() -> None:
    steering = pushed("llama", 1.0, "prompt")
    engine, fresh = LocalEngine(MODELS["llama"]), LocalEngine(MODELS["llama"], prefix_tokens=0)
    (prompt,) = random_ids(40)
    answer = run(write(engine, prompt, 30, steering))
    longer = [*prompt, *answer, 7, 8]
    assert run(write(engine, longer, 8, steering)) == run(write(fresh, longer, 8, steering))
    assert engine.prefixes.saved == 40


def test_what_a_function_changes_is_not_kept() -> None:
    calls = []

    def change(stream: torch.Tensor) -> torch.Tensor:
        calls.append(stream.shape[1])
        return torch.zeros_like(stream)

    engine = LocalEngine(MODELS["llama"])
    (prompt,) = random_ids(60)
    for _ in range(2):
        run(write(engine, prompt, 2, Steering({0: change})))
    assert calls.count(60) == 2
    assert engine.prefixes.size == engine.prefixes.saved == 0


def test_activations_at_any_positions_are_those_of_a_fresh_engine() -> None:
    engine, fresh = LocalEngine(MODELS["llama"]), LocalEngine(MODELS["llama"], prefix_tokens=0)
    (prompt,) = random_ids(90)

    async def states(where: LocalEngine, positions: Sequence[int]) -> torch.Tensor:
        async with where.open(prompt) as sequence:
            return await sequence.activations(positions)

    run(write(engine, prompt))
    for positions in ((-1,), (0, 50), (20, 30, 89), tuple(range(90))):
        got, want = run(states(engine, positions)), run(states(fresh, positions))
        assert torch.allclose(got, want, atol=1e-4)
    assert engine.prefixes.saved == 89 + 20


def test_slots_and_what_is_kept_stay_within_max_tokens_and_the_least_recently_used_goes_first() -> None:
    engine = LocalEngine(MODELS["llama"], max_rows=4, max_tokens=400, prefix_tokens=100)
    first, second, third = random_ids(40, 40, 40)

    def saved(prompt: Sequence[int]) -> int:
        before = engine.prefixes.saved
        run(write(engine, prompt, 1))
        cache = engine.runner.cache
        assert cache.slots * cache.length + engine.prefixes.size <= 400
        return engine.prefixes.saved - before

    assert [saved(each) for each in (first, second, first)] == [0, 0, 39]
    assert saved(third) == 0  # which drives the second out
    assert [saved(first), saved(third), saved(second)] == [39, 39, 0]

    async def large() -> None:
        async with engine.open(first, rows=4, room=60) as sequence:  # 400 positions
            assert engine.prefixes.size == 0
            await sequence.logits()

    run(large())


def test_a_row_without_numbers_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)
    with torch.no_grad():
        model.model.get_input_embeddings().weight[7] = torch.nan
    with pytest.raises(Exception, match="not numbers"):
        run(write(engine, [*range(20, 60), 7, 9]))
    assert engine.prefixes.size == 0
