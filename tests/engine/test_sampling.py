from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import torch
from factories import random_ids, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from anchorlm.engine import LocalEngine, runtime
from anchorlm.engine._sampling import Sampler, choose
from anchorlm.records import GenerationSettings


class Penalties(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's penalties, token by token: transformers has none of them."""

    def __init__(self, start: int, how: GenerationSettings) -> None:
        self.start, self.how = start, how

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answer = input_ids[0, self.start :].tolist()
        for token in range(scores.shape[-1]):
            if count := answer.count(token):
                scores[0, token] -= self.how.presence_penalty + count * self.how.frequency_penalty
        return scores


def reference(logits: torch.Tensor, history: list[int], how: GenerationSettings, start: int = 0) -> torch.Tensor:
    """The distribution of transformers' own processors."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(how.repetition_penalty)])
    steps.append(Penalties(start, how))
    steps.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        steps.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(TopPLogitsWarper(how.top_p))
    if how.min_p:
        steps.append(MinPLogitsWarper(how.min_p))
    scores: torch.Tensor = steps(torch.tensor([history]), logits[None].clone())
    return scores[0].softmax(-1)


SETTINGS = [
    GenerationSettings(do_sample=True),
    GenerationSettings(do_sample=True, temperature=0.6, top_k=5),
    GenerationSettings(do_sample=True, temperature=1.5, top_p=0.7),
    GenerationSettings(do_sample=True, top_k=8, top_p=0.8, repetition_penalty=1.7),
    GenerationSettings(do_sample=True, top_k=1),
    GenerationSettings(do_sample=True, top_p=0.01),
    GenerationSettings(do_sample=True, min_p=0.1),
    GenerationSettings(do_sample=True, min_p=0.05, top_k=6, top_p=0.9, temperature=1.3),
    GenerationSettings(do_sample=True, presence_penalty=1.5, frequency_penalty=-0.5),
    GenerationSettings(do_sample=True, frequency_penalty=2.0, repetition_penalty=1.2, min_p=0.02),
]


@pytest.mark.parametrize("how", SETTINGS, ids=range(len(SETTINGS)))
def test_samples_follow_the_distribution_of_transformers(how: GenerationSettings) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, generator=generator) * 2
    history = [0, 3, 3, 7]
    expected = reference(logits, history, how, start=1)
    draws = 20_000
    sampler = Sampler(how)
    drawn = Counter(choose(logits.expand(draws, -1), [sampler] * draws, [history] * draws, [1] * draws))
    for token, probability in enumerate(expected.tolist()):
        deviation = (probability * (1 - probability) / draws) ** 0.5
        assert abs(drawn[token] / draws - probability) <= 5 * deviation


@given(
    seed=st.integers(0, 10_000),
    how=st.builds(
        GenerationSettings,
        do_sample=st.just(True),
        temperature=st.floats(0.1, 3),
        top_k=st.none() | st.integers(1, 60),
        top_p=st.floats(0.05, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.5, 2),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        seed=st.integers(0, 99),
    ),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_is_possible_and_depends_neither_on_neighbors_nor_on_the_run(
    seed: int, how: GenerationSettings
) -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(seed)) * 3
    histories = random_ids(3, 1, 5, 2, seed=seed, low=0, high=40)
    others = [GenerationSettings(), GenerationSettings(do_sample=True, seed=5, top_k=3), GenerationSettings()]
    alone = choose(logits[:1], [Sampler(how)], histories[:1])
    among = choose(logits, [Sampler(how), *map(Sampler, others)], histories)
    assert among[0] == alone[0]
    assert among[1] == int(logits[1].argmax())
    assert reference(logits[0], histories[0], how)[alone[0]] > 0


def sorted_draw(logits: torch.Tensor, how: GenerationSettings, uniform: float) -> int:
    """What is drawn where the whole vocabulary is sorted first."""
    probabilities, order = (logits / how.temperature).softmax(-1).sort(descending=True, stable=True)
    cumulative = probabilities.cumsum(-1)
    within = min(how.top_k or len(logits), len(logits))
    kept = min(int((cumulative < how.top_p * cumulative[within - 1]).sum()) + 1, within)
    kept = min(kept, int((probabilities >= how.min_p * probabilities[0]).sum()))
    place = int(torch.searchsorted(cumulative, uniform * cumulative[kept - 1], right=True))
    return int(order[min(place, kept - 1)])


@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    steps=st.sampled_from([2, 50, 100_000]),
    how=st.lists(
        st.builds(
            GenerationSettings,
            do_sample=st.just(True),
            top_k=st.none() | st.integers(1, 8000),
            top_p=st.sampled_from([0.1, 0.9, 0.99, 1.0]),
            min_p=st.sampled_from([0.0, 0.0013, 0.37]),
            seed=st.integers(0, 99),
        ),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=40, deadline=None)
def test_what_is_drawn_from_the_head_is_what_is_drawn_where_everything_is_sorted(
    seed: int, spread: float, steps: int, how: list[GenerationSettings]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(how), 8192, generator=generator) * spread * steps).round() / steps  # many are equal
    expected = [sorted_draw(row, one, Sampler(one).random.random()) for row, one in zip(logits, how, strict=True)]
    drawn = choose(logits, list(map(Sampler, how)), [[0]] * len(how))
    ranks = [row.sort(descending=True, stable=True).indices.tolist() for row in logits]
    # Sums of thousands of floats are rounded: a number at the very edge of two tokens may fall to either.
    assert all(abs(rank.index(a) - rank.index(b)) <= 1 for rank, a, b in zip(ranks, drawn, expected, strict=True))


def test_a_large_vocabulary_is_not_sorted_where_top_k_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = torch.Tensor.sort

    def sort(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tensor.shape[-1])
        return plain(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "sort", sort)
    logits = torch.randn(3, 262_144, generator=torch.Generator().manual_seed(0))
    how = GenerationSettings(do_sample=True, top_k=50, top_p=0.9)
    choose(logits, [Sampler(how)] * 3, [[0]] * 3)
    assert sizes
    assert max(sizes) <= 50


def test_the_seed_reproduces_a_text_whatever_runs_beside_it() -> None:
    engine = LocalEngine(tiny_model("llama"))
    prompts = random_ids(4, 9, 6, 13)
    how = [GenerationSettings(do_sample=True, temperature=0.9, seed=seed, max_new_tokens=12) for seed in (0, 1, 0, 2)]

    async def one(prompt: list[int], settings_: GenerationSettings) -> tuple[int, ...]:
        async with engine.open(prompt, room=12) as sequence:
            return (await sequence.generate(settings_)).token_ids

    async def together() -> list[tuple[int, ...]]:
        return await asyncio.gather(*map(one, prompts, how))

    alone = [runtime().run(one(*each)) for each in zip(prompts, how, strict=True)]
    assert runtime().run(together()) == alone
    assert runtime().run(one(prompts[0], how[1])) != alone[0]


@given(
    seed=st.integers(0, 10_000),
    start=st.integers(0, 12),
    how=st.builds(
        GenerationSettings,
        repetition_penalty=st.floats(0.5, 2),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
    ),
)
@settings(max_examples=60, deadline=None)
def test_the_likeliest_token_is_that_of_a_naive_reference_and_only_the_answer_is_counted(
    seed: int, start: int, how: GenerationSettings
) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 2
    [history] = random_ids(12, seed=seed, low=0, high=12)
    best = reference(logits, history, how, start=start)
    [token] = choose(logits[None], [Sampler(how)], [history], [start])
    assert best[token] == pytest.approx(float(best.max()), rel=1e-5)


def test_penalties_count_the_answer_as_the_engine_writes_it() -> None:
    engine = LocalEngine(tiny_model("llama"))
    [prompt] = random_ids(9)

    async def write(**how: float) -> tuple[int, ...]:
        async with engine.open(prompt, room=12) as row:
            ids: list[int] = []
            for _ in range(12):
                logits = await row.logits()
                for token in set(ids):
                    logits = logits.clone()
                    logits[token] -= how["presence_penalty"] + how["frequency_penalty"] * ids.count(token)
                ids.append(int(logits.argmax()))
                row.append(ids[-1:])
            return tuple(ids)

    async def generate(**how: float) -> tuple[int, ...]:
        async with engine.open(prompt, room=12) as row:
            return (await row.generate(GenerationSettings(max_new_tokens=12, **how))).token_ids

    how = {"presence_penalty": 0.7, "frequency_penalty": 1.1}
    assert runtime().run(generate(**how)) == runtime().run(write(**how))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_token_that_is_to_end_the_answer_ends_it_and_is_no_part_of_it(streamed: bool) -> None:
    engine = LocalEngine(tiny_model("llama"))
    [prompt] = random_ids(9)

    async def write(**how: object) -> tuple[list[int], str]:
        generation = GenerationSettings(max_new_tokens=12, **how)
        async with engine.open(prompt, room=12) as row:
            if streamed:
                return [token async for token in row.stream(generation)], "stop"
            found = await row.generate(generation)
            return list(found.token_ids), found.finish_reason

    whole, _ = runtime().run(write())
    stop = whole[5]
    assert runtime().run(write(stop_token_ids=(stop,))) == (whole[: whole.index(stop)], "stop")
    unsaid = next(token for token in range(20) if token not in whole)
    assert runtime().run(write(stop_token_ids=(unsaid,)))[0] == whole


def test_the_repetition_penalty_also_changes_greedy_text() -> None:
    logits = torch.tensor([[3.0, 2.9, -1.0]])
    assert choose(logits, [Sampler(GenerationSettings(repetition_penalty=1.2))], [[0]]) == [1]
    assert choose(logits, [Sampler(GenerationSettings(repetition_penalty=1.2))], [[2]]) == [0]


@pytest.mark.parametrize("temperature", [1e-20, 1e-37, 1e-40, 1e-300, 5e-324])
@pytest.mark.parametrize("offset", [0.0, 200.0, -200.0])
def test_however_cold_it_is_the_likeliest_token_is_drawn(temperature: float, offset: float) -> None:
    logits = torch.randn(64, generator=torch.Generator().manual_seed(3)) * 5 + offset
    sampler = Sampler(GenerationSettings(do_sample=True, temperature=temperature))
    assert choose(logits[None], [sampler], [[0]]) == [int(logits.argmax())]
