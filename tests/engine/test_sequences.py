from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from factories import greedy, heard, random_ids, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import LocalEngine, runtime
from anchorlm.engine._sequence import LocalSequence
from anchorlm.models import CausalModel
from anchorlm.records import DefenseError, GenerationSettings, UserError

MODELS = {name: tiny_model(name) for name in ("llama", "mistral")}
ENGINES = {name: LocalEngine(model, prefill_tokens=16) for name, model in MODELS.items()}


def from_scratch(model: CausalModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = model.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return heard(model, logits)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, atol=1e-4, rtol=1e-4)


tokens = st.lists(st.integers(3, 299), min_size=1, max_size=12)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), tokens),
        st.tuples(st.just("crop"), st.integers(1, 30)),
        st.tuples(st.just("fork"), st.none()),
        st.tuples(st.just("close"), st.integers(0, 7)),
        st.tuples(st.just("turn"), st.integers(0, 7)),
        st.tuples(st.just("logits"), st.none()),
        st.tuples(st.just("all logits"), st.none()),
        st.tuples(st.just("generate"), st.integers(1, 4)),
        st.tuples(st.just("activations"), st.none()),
    ),
    max_size=14,
)


@pytest.mark.parametrize("name", MODELS)
@given(prompt=tokens, program=operations)
@settings(max_examples=25, deadline=None)
def test_any_program_of_operations_gives_what_a_fresh_forward_gives(
    name: str, prompt: list[int], program: list[tuple[str, object]]
) -> None:
    model, engine = MODELS[name], ENGINES[name]

    async def run() -> None:
        async with engine.open(prompt, rows=4, room=120) as root:
            alive: list[LocalSequence] = [root]
            for action, argument in program:
                one = alive[0]
                if action == "append" and len(one.ids) + len(argument) <= 120:  # type: ignore[arg-type]
                    one.append(argument)  # type: ignore[arg-type]
                elif action == "crop":
                    one.crop(argument)  # type: ignore[arg-type]
                elif action == "fork" and len(alive) < 4:
                    alive.append(one.fork())
                elif action == "close" and len(alive) > 1:
                    alive.pop(argument % len(alive)).close()  # type: ignore[operator]
                elif action == "turn":
                    alive.append(alive.pop(0))
                elif action == "logits":
                    assert same(await one.logits(), from_scratch(model, one.ids))
                elif action == "all logits":
                    for row, got in zip(alive, await asyncio.gather(*(row.logits() for row in alive)), strict=True):
                        assert same(got, from_scratch(model, row.ids))
                elif action == "generate" and len(one.ids) < 110:
                    before = list(one.ids)
                    written = await one.generate(GenerationSettings(max_new_tokens=argument))
                    assert one.ids == [*before, *written.token_ids]
                    for length in range(len(before), len(one.ids)):
                        assert int(from_scratch(model, one.ids[:length]).argmax()) == one.ids[length]
                elif action == "activations":
                    await one.activations((0, -1))
            for row in alive:
                assert same(await row.logits(), from_scratch(model, row.ids))

    runtime().run(run())


def block_outputs(model: CausalModel, ids: list[int]) -> torch.Tensor:
    """What each block hands on at every position (layers, T, H), by a plain forward."""
    found: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
        for block in model.blocks
    ]
    with torch.inference_mode():
        states = model.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    for hook in hooks:
        hook.remove()
    assert torch.allclose(found[0], states[1], atol=1e-5)
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "falcon"])
def test_activations_are_the_hidden_states_of_transformers(name: str) -> None:
    model = tiny_model(name)
    (prompt,) = random_ids(25)
    reference = block_outputs(model, prompt)

    async def run(engine: LocalEngine) -> torch.Tensor:
        async with engine.open(prompt) as sequence:
            await sequence.logits()
            return await sequence.activations((-1, 0, 7, 7))

    for prefill in (4, 2048):  # read in seven forwards, and in one
        got = runtime().run(run(LocalEngine(model, prefill_tokens=prefill)))
        assert got.shape == (2, 4, 64)
        for layer in range(2):
            assert torch.allclose(got[layer], reference[layer, [-1, 0, 7, 7]], atol=1e-4)


@pytest.mark.parametrize("prefill", [4, 2048])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_means_of_activations_are_those_of_the_hidden_states_in_a_batch_and_alone(name: str, prefill: int) -> None:
    model = tiny_model(name)
    engine = LocalEngine(model, prefill_tokens=prefill)
    plans: list[tuple[list[int], list[int], int]] = [
        (random_ids(25)[0], [24], 0),
        (random_ids(3, seed=1)[0], [2], 2),
        (random_ids(17, seed=2)[0], [16, 5, 9, 5], 3),
        (random_ids(12, seed=3)[0], [-1], 11),
    ]

    async def read(prompt: list[int], positions: list[int], first: int) -> torch.Tensor:
        async with engine.open(prompt) as sequence:
            return await sequence.activations(positions, first)

    async def together() -> list[torch.Tensor]:
        return await asyncio.gather(*(read(*plan) for plan in plans))

    for plan, got in zip(plans, runtime().run(together()), strict=True):
        prompt, positions, first = plan
        reference = block_outputs(model, prompt)
        assert torch.allclose(got, runtime().run(read(*plan)), atol=1e-4)
        for place, position in enumerate(positions):
            last = position % len(prompt)
            mean = reference[:, first : last + 1].mean(dim=1)
            assert torch.allclose(got[:, place], torch.cat([reference[:, last], mean], dim=-1), atol=1e-4)
    with pytest.raises(IndexError):
        runtime().run(read(plans[0][0], [3], 4))


@pytest.mark.parametrize("prefill", [4, 2048])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "falcon"])
def test_activations_in_a_batch_after_forks_and_crops_are_those_of_a_plain_forward(name: str, prefill: int) -> None:
    model = tiny_model(name)
    engine = LocalEngine(model, prefill_tokens=prefill)

    async def edited(prompt: list[int], length: int, tail: list[int], positions: list[int]) -> tuple[torch.Tensor, ...]:
        async with engine.open(prompt, rows=2, room=9) as sequence:
            await sequence.logits()
            fork = sequence.fork()
            sequence.crop(length)
            sequence.append(tail)
            got, untouched = await asyncio.gather(sequence.activations(positions), fork.activations(positions))
            logits = await sequence.logits()  # the row, read once more in part, is whole
            sequence.append([7])
            return got, untouched, logits, await sequence.logits()

    plans = [
        ([3, 5, 8, 13, 21], 5, [], [-1]),
        (random_ids(23)[0], 9, [4, 5, 6], [0, -1]),
        (random_ids(17, seed=1)[0], 16, [9], [15, 2, 2]),
        (random_ids(12, seed=2)[0], 0, [11, 12, 13], [-2, 1]),
    ]

    async def together() -> list[tuple[torch.Tensor, ...]]:
        return await asyncio.gather(*(edited(*plan) for plan in plans))

    for (prompt, length, tail, positions), found in zip(plans, runtime().run(together()), strict=True):
        ids = prompt[:length] + tail
        for got, text in zip(found[:2], (ids, prompt), strict=True):
            assert torch.allclose(got, block_outputs(model, text)[:, positions], atol=1e-4)
        for got, text in zip(found[2:], (ids, [*ids, 7]), strict=True):
            assert same(got, from_scratch(model, text))


def test_a_hook_that_does_not_fire_is_an_error() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)
    hidden = model.blocks[1]
    model.blocks  # noqa: B018 (the list is looked up before the forward loses sight of a block)
    model.model.model.layers = torch.nn.ModuleList([model.blocks[0], tiny_model("llama").blocks[1]])

    async def run() -> None:
        async with engine.open([5, 6, 7]) as sequence:
            await sequence.activations()

    assert hidden is model.blocks[1]
    with pytest.raises(DefenseError, match="Only 1 of 2 blocks"):
        runtime().run(run())


def test_a_stream_that_is_left_early_leaves_just_what_was_taken() -> None:
    model, engine = MODELS["llama"], ENGINES["llama"]
    (prompt,) = random_ids(6)
    expected = greedy(model.model, prompt, 12)

    async def run() -> None:
        async with engine.open(prompt, room=40) as sequence:
            stream: Any = sequence.stream(GenerationSettings(max_new_tokens=12))
            taken = [await anext(stream) for _ in range(3)]
            for _ in range(50):
                await asyncio.sleep(0)  # the model runs ahead
            await stream.aclose()
            assert sequence.ids == [*prompt, *taken] == [*prompt, *expected[:3]]
            rest = await sequence.generate(GenerationSettings(max_new_tokens=9))
            assert [*taken, *rest.token_ids] == expected

    runtime().run(run())


def test_streamed_tokens_are_the_generated_ones() -> None:
    (prompt,) = random_ids(9)

    async def run() -> None:
        how = GenerationSettings(max_new_tokens=15, do_sample=True, seed=3)
        async with ENGINES["llama"].open(prompt, rows=2, room=15) as sequence:
            other = sequence.fork()
            streamed = [token async for token in sequence.stream(how)]
            assert tuple(streamed) == (await other.generate(how)).token_ids
            assert sequence.ids == other.ids

    runtime().run(run())


def test_misuse_is_told_and_never_hangs() -> None:
    engine = ENGINES["llama"]

    async def run() -> None:
        async with engine.open([5, 6], rows=1, room=3) as sequence:
            with pytest.raises(RuntimeError, match="outgrew"):
                sequence.append([7, 8, 9, 10])
            with pytest.raises(RuntimeError, match="forked beyond"):
                sequence.fork()
            with pytest.raises(IndexError):
                await sequence.activations((2,))
            waiting = asyncio.ensure_future(sequence.logits())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one thing at a time"):
                await sequence.logits()
            await waiting
            sequence.crop(0)
            with pytest.raises(RuntimeError, match="without a token"):
                await sequence.logits()
            sequence.append([9])
            assert same(await sequence.logits(), from_scratch(MODELS["llama"], [9]))
        with pytest.raises(RuntimeError, match="closed"):
            await sequence.logits()
        with pytest.raises(RuntimeError, match="closed"):
            sequence.append([1])

    runtime().run(asyncio.wait_for(run(), 30))


def test_prompts_that_do_not_fit_are_refused_in_one_sentence() -> None:
    async def open_(ids: list[int], **how: int) -> None:
        async with ENGINES["llama"].open(ids, **how):
            raise AssertionError

    for ids, how, words in (
        ([], {}, "The prompt is empty"),
        ([5] * 256, {}, "has 256 tokens, but tiny-llama reads 256"),
        ([5], {"rows": 257}, "raise max_rows or max_tokens"),
    ):
        with pytest.raises(UserError, match=words):
            runtime().run(open_(ids, **how))


def test_a_first_request_that_fits_into_the_slots_of_the_check_can_fork() -> None:
    async def run(engine: LocalEngine) -> torch.Tensor:
        async with engine.open([5, 6], rows=2, room=2) as root:
            await root.logits()
            fork = root.fork()
            fork.append([7])
            return await fork.logits()

    assert same(runtime().run(run(LocalEngine(MODELS["llama"]))), from_scratch(MODELS["llama"], [5, 6, 7]))
