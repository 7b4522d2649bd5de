"""Linear layers whose weights lie as the CPU's kernels read them."""

from __future__ import annotations

import asyncio
from copy import deepcopy

import pytest
import torch
from factories import ARCHITECTURES, random_ids, tiny_tokenizer, tiny_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel, identity, prepack, stamp
from anchorlm.models._prepacked import SIBLINGS, SMALLEST, PrepackedLinear
from anchorlm.records import GenerationSettings

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of torch has no oneDNN", allow_module_level=True)


def both(kind: str, dtype: torch.dtype = torch.float32) -> tuple[CausalModel, CausalModel]:
    """A tiny model, and the same with its weights put in order."""
    plain = tiny_weights(kind).to(dtype)
    other = prepack(deepcopy(plain), smallest=1)
    return CausalModel.wrap(plain, tiny_tokenizer()), CausalModel.wrap(other, tiny_tokenizer())


def packed(model: CausalModel) -> list[str]:
    return [name for name, each in model.model.named_modules() if isinstance(each, PrepackedLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_gives_the_same_logits(kind: str, dtype: torch.dtype) -> None:
    plain, other = both(kind, dtype)
    ids = torch.tensor(random_ids(11, 11))
    with torch.inference_mode():
        want, got = (each.model(input_ids=ids).logits.float() for each in (plain, other))
    assert (got - want).abs().max() <= (1e-4 if dtype == torch.float32 else 0.1) * want.abs().max()


def test_the_layers_of_a_llama_are_all_replaced() -> None:
    _, other = both("llama")
    names = packed(other)
    assert len(names) == 2 * 7 + 1
    assert "lm_head" in names


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text", "gpt_neox", "opt"])
def test_a_model_is_known_by_the_same_stamp_and_identity(kind: str) -> None:
    plain, other = both(kind)
    assert packed(other)
    assert stamp(other) == stamp(plain)
    assert identity(other) == identity(plain)


@given(
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=12),
    rows=st.integers(1, 5),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_siblings_may_be_asked_in_any_order_and_as_often_as_you_like(
    calls: list[tuple[int, int]], rows: int, bias: bool
) -> None:
    torch.manual_seed(rows)
    module = nn.Module()
    for name, size in zip(SIBLINGS[0], (12, 4, 4), strict=True):
        setattr(module, name, nn.Linear(8, size, bias=bias))
    plain = deepcopy(module)
    holder = tiny_weights("llama")
    holder.add_module("more", module)
    prepack(holder, smallest=1)
    inputs = [torch.randn(rows, 8), torch.randn(1, rows, 8)]
    with torch.inference_mode():
        for place, which in calls:
            name = SIBLINGS[0][place]
            got, want = getattr(module, name)(inputs[which]), getattr(plain, name)(inputs[which])
            assert torch.allclose(got, want, atol=1e-5)


def test_an_engine_writes_the_same_greedy_text() -> None:
    plain, other = both("llama")
    prompts = random_ids(3, 17, 9)

    async def write(engine: LocalEngine, prompt: list[int]) -> list[int]:
        async with engine.open(prompt, room=8) as row:
            return list((await row.generate(GenerationSettings(max_new_tokens=8))).token_ids)

    async def together(engine: LocalEngine) -> list[list[int]]:
        return list(await asyncio.gather(*(write(engine, prompt) for prompt in prompts)))

    texts = [runtime().run(together(LocalEngine(model))) for model in (plain, other)]
    assert texts[0] == texts[1]


def test_a_small_model_is_left_as_it_is() -> None:
    model = tiny_weights("llama")
    assert sum(each.numel() for each in model.parameters()) < SMALLEST
    assert not any(isinstance(each, PrepackedLinear) for each in prepack(model).modules())


def test_a_layer_of_another_class_is_left_as_it_is() -> None:
    class Own(nn.Linear):
        """Not a plain layer: nobody knows what it does."""

    model = tiny_weights("llama")
    model.lm_head = Own(64, len(tiny_tokenizer()))
    assert type(prepack(model, smallest=1).lm_head) is Own
