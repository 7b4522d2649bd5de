from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES, heard, random_ids, tiny_model
from torch import Tensor

from anchorlm.engine import Edit, LocalEngine, Positions, Steering, runtime
from anchorlm.models import CausalModel
from anchorlm.records import DefenseError, GenerationSettings, UserError

LAYERS = 2


def vector(seed: int, size: int = 64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def edits(seed: int) -> dict[int, Edit]:
    """A shift after block 0, a matrix of rank 2 after block 1."""
    down = torch.stack([vector(seed + 1), vector(seed + 2)], dim=1) / 8
    return {0: Edit(shift=vector(seed)), 1: Edit(down=down, up=-down.T)}


def by_hand(
    model: CausalModel, ids: list[int], changes: Mapping[int, Edit], strength: float, until: int
) -> tuple[Tensor, Tensor]:
    """Logits and block outputs of one cache-free forward in which every position below `until` is changed."""
    outputs: list[Tensor] = []

    def hook(layer: int):  # type: ignore[no-untyped-def]
        def change(module, inputs, output):  # type: ignore[no-untyped-def]
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            if layer in changes:
                edit = changes[layer]
                for position in range(min(until, len(ids))):
                    x = stream[0, position]
                    added = torch.zeros_like(x)
                    if edit.shift is not None:
                        added += edit.shift
                    if edit.down is not None and edit.up is not None:
                        added += (x @ edit.down) @ edit.up
                    stream[0, position] = x + strength * added
            outputs.append(stream[0])
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return change

    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(model.blocks)]
    try:
        with torch.inference_mode():
            logits = model.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return heard(model, logits), torch.stack(outputs)


def same(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, atol=2e-4, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["prompt", "all"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cached_steering_in_a_mixed_batch_equals_a_full_forward_of_each_row_alone(
    name: str, positions: Positions
) -> None:
    model = tiny_model(name)
    engine = LocalEngine(model, prefill_tokens=8)  # prompts are read in several forwards
    first, second = edits(1), edits(7)
    plan = [(None, 0.0), (first, 0.5), (first, -1.5), (second, 1.0), (second, 0.0)]
    prompts = [random_ids(length, seed=length)[0] for length in (3, 11, 5, 20, 7)]
    more = random_ids(4, seed=99)[0]

    async def one(ids: list[int], changes: Mapping[int, Edit] | None, strength: float) -> None:
        async with engine.open(ids, rows=2, room=8) as row:
            if changes is not None:
                row.steer(Steering(changes, strength, positions))
            until = len(ids) if positions == "prompt" else 1000
            want, _ = by_hand(model, ids, changes or {}, strength, until)
            assert same(await row.logits(), want)
            fork = row.fork()
            for token in more:
                row.append([token])
                fork.append([token])
                want, blocks = by_hand(model, row.ids, changes or {}, strength, until)
                assert same(await row.logits(), want)
                assert same(await fork.logits(), want)
            assert same((await row.activations(range(len(row.ids)))), blocks)

    async def everything() -> None:
        await asyncio.gather(*(one(ids, *how) for ids, how in zip(prompts, plan, strict=True)))

    runtime().run(everything())


def test_a_shift_is_added_to_the_blocks_output_exactly() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)
    shift = vector(3)

    async def run() -> tuple[Tensor, Tensor]:
        async with engine.open(random_ids(9)[0], rows=1) as row:
            before = await row.activations(range(9))
            row.steer(Steering({0: Edit(shift=shift)}, 0.25))
            return before, await row.activations(range(9))

    before, after = runtime().run(run())
    torch.testing.assert_close(after[0] - before[0], (0.25 * shift).expand(9, -1), atol=1e-6, rtol=1e-5)
    assert not same(after[1], before[1])


def test_taking_the_steering_off_gives_the_plain_model_back() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)

    async def run() -> tuple[tuple[int, ...], ...]:
        settings = GenerationSettings(max_new_tokens=8)
        written = []
        async with engine.open(random_ids(9)[0], rows=1, room=8) as row:
            for steering in (None, Steering(edits(1), 4.0), None):
                row.crop(9)
                row.steer(steering)
                written.append((await row.generate(settings)).token_ids)
        return tuple(written)

    plain, steered, again = runtime().run(run())
    assert plain == again != steered


def test_activations_of_the_last_token_come_with_the_first_logits_of_the_response() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)

    async def run(gated: bool, settings: GenerationSettings) -> tuple[tuple[int, ...], int]:
        before = engine.runner.forwards
        async with engine.open(random_ids(9)[0], rows=1, room=8) as row:
            if gated:
                await row.activations((-1,))
            ids = (await row.generate(settings)).token_ids
        return ids, engine.runner.forwards - before

    for settings in (
        GenerationSettings(max_new_tokens=8),
        GenerationSettings(max_new_tokens=8, do_sample=True, seed=3),
    ):
        plain, forwards = runtime().run(run(False, settings))
        gated, as_many = runtime().run(run(True, settings))
        assert gated == plain
        assert as_many == forwards


def test_a_block_that_does_not_exist_is_an_error_and_leaves_no_hook() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)

    async def run() -> None:
        async with engine.open(random_ids(9)[0], rows=1, room=8) as row:
            row.steer(Steering({5: Edit(shift=vector(1))}))
            with pytest.raises(DefenseError, match="5"):
                await row.logits()
            row.steer(Steering({0: Edit(shift=vector(1, size=3))}))  # another model's width
            with pytest.raises(RuntimeError):
                await row.logits()

    runtime().run(run())
    assert not any(block._forward_hooks for block in model.blocks)


class Swallowing(torch.nn.Module):
    """A block that is called past its hooks, as compiled or quantized ones may be."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.block(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)


@pytest.mark.parametrize("what", ["steer", "activations"])
def test_hooks_that_do_not_fire_are_an_error_and_never_an_unsteered_answer(what: str) -> None:
    model = tiny_model("llama")
    blocks = model.model.model.layers
    blocks[1] = Swallowing(blocks[1])
    engine = LocalEngine(model)

    async def run() -> None:
        async with engine.open(random_ids(9)[0], room=2) as row:
            if what == "steer":
                row.steer(Steering({1: Edit(shift=vector(1))}))
                await row.logits()
            else:
                await row.activations()

    with pytest.raises(DefenseError, match=r"load the model without torch\.compile"):
        runtime().run(run())


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_a_base_changes_every_position_of_every_sequence_before_any_other_steering(name: str) -> None:
    """A direction that an attack removes is gone at every block and token; a defense steers what is left."""
    model, direction = tiny_model(name), torch.nn.functional.normalize(vector(3), dim=0)
    removal = Edit(down=direction[:, None], up=-direction[None])
    base, shift = Steering(dict.fromkeys(range(LAYERS), removal)), Steering({1: Edit(shift=vector(4))}, 0.5, "prompt")
    prompts, more = random_ids(7, 4), [5, 6, 7]

    async def outputs(engine: LocalEngine, prompt: list[int], steering: Steering | None) -> Tensor:
        async with engine.open(prompt, room=len(more)) as row:
            row.steer(steering)
            await row.logits()
            row.append(more)
            return (await row.activations(range(len(row.ids)))) @ direction

    async def run(engine: LocalEngine) -> list[Tensor]:
        return await asyncio.gather(*(outputs(engine, *each) for each in zip(prompts, (None, shift), strict=True)))

    bare, attacked = (runtime().run(run(LocalEngine(model, base=each))) for each in (None, base))
    assert float(bare[0].abs().mean()) > 0.01
    torch.testing.assert_close(attacked[0], torch.zeros_like(attacked[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(attacked[1][0], torch.zeros_like(attacked[1][0]), atol=1e-4, rtol=0)
    want = torch.full((4,), 0.5 * float(vector(4) @ direction))
    torch.testing.assert_close(attacked[1][1, :4], want, atol=1e-4, rtol=0)
    torch.testing.assert_close(attacked[1][1, 4:], torch.zeros(3), atol=1e-4, rtol=0)


def test_a_base_for_prompts_only_is_one_sentence() -> None:
    with pytest.raises(UserError, match="every position"):
        LocalEngine(tiny_model(), base=Steering({0: Edit(shift=vector(0))}, positions="prompt"))
