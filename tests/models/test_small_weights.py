from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from factories import random_ids, tiny_tokenizer, tiny_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel, ModelSettings, convert, stamp
from anchorlm.models._int4 import Int4Linear
from anchorlm.models._int8 import Int8Linear
from anchorlm.models._small import Small, small_weights, with_small_weights
from anchorlm.models._stamp import identity
from anchorlm.records import GenerationSettings, UserError

if "x86" not in torch.backends.quantized.supported_engines:
    pytest.skip("this build of torch has no int8 kernels for CPUs", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    tiny_weights("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=st.integers(1, 20),
    spread=st.sampled_from([1e-6, 1.0, 1e4]),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_a_row_becomes_the_same_alone_and_among_others_and_nearly_what_it_was(
    sizes: tuple[int, int], rows: int, spread: float, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = nn.Linear(*sizes, bias=bias)
    small = Int8Linear(plain)
    given_ = torch.randn(rows, sizes[0]) * spread * torch.logspace(-2, 2, rows)[:, None]
    given_[0, 0] = 0
    with torch.inference_mode():
        together, exact = small(given_), plain(given_)
        assert torch.equal(together, torch.cat([small(row[None]) for row in given_]))
        assert torch.equal(together, small(given_[:, None])[:, 0])
    # Each product is off by half a step of either factor at most.
    bound = given_.abs().amax(1, keepdim=True) * plain.weight.abs().amax(1) * sizes[0] * (0.5 / 63 + 0.6 / 127)
    assert bool(((together - exact).abs() <= bound + 1e-6 * exact.abs() + 1e-7).all())


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rows=st.integers(1, 20),
    spread=st.sampled_from([1e-6, 1.0, 1e4]),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_with_half_a_byte_a_row_becomes_the_same_alone_and_among_others_and_nearly_what_the_codes_say(
    sizes: tuple[int, int], rows: int, spread: float, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = nn.Linear(32 * sizes[0], 16 * sizes[1], bias=bias)
    small = Int4Linear(plain)
    given_ = torch.randn(rows, plain.in_features) * spread
    with torch.inference_mode():
        together = small(given_)
        assert torch.equal(together, torch.cat([small(row[None]) for row in given_]))
        assert torch.equal(together, small(given_[:, None])[:, 0])
        weights = of_codes(plain.weight)
        exact = nn.functional.linear(given_, weights, plain.bias)
        bound = given_.abs() @ weights.abs().T
    assert bool(((together - exact).abs() <= 2**-6 * bound + 1e-6 * exact.abs() + 1e-30).all())


def of_codes(weight: torch.Tensor) -> torch.Tensor:
    """What is left of weights in sixteen steps for each 32 neighbors, one at a time."""
    left = torch.empty_like(weight)
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], 32):
            some = weight.detach()[row, start : start + 32]
            scale = float(((some.max() - some.min()) / 15).bfloat16())
            zero = float((some.min() + 8 * scale).bfloat16())
            for place, value in enumerate(some.tolist()):
                left[row, start + place] = (min(max(round((value - zero) / scale + 8), 0), 15) - 8) * scale + zero
    return left


def test_weights_of_a_file_with_four_bits_a_weight_stay_what_they_are() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (16, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15  # a file's steps reach from its least weight to its greatest
    scale, low = torch.rand(16, 4, 1) * 0.05, -torch.rand(16, 4, 1)
    plain = nn.Linear(128, 16, bias=False)
    plain.weight.data = (codes * scale + low).view(16, 128)
    assert float((of_codes(plain.weight) - plain.weight.detach()).abs().max()) < 2**-8


def test_a_row_of_zeros_is_nothing_but_the_bias() -> None:
    plain = nn.Linear(8, 5)
    assert torch.equal(Int8Linear(plain)(torch.zeros(2, 8)), plain.bias.detach().expand(2, 5))


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.1), ("int4", 0.4)])
def test_a_model_with_small_weights_is_served_and_says_nearly_the_same(folder: Path, dtype: Small, most: float) -> None:
    small = CausalModel.from_pretrained(folder, dtype=dtype)
    plain = CausalModel.from_pretrained(folder)
    engines = LocalEngine(small), LocalEngine(plain)
    assert sum(isinstance(module, Int4Linear | Int8Linear) for module in small.model.modules()) == 2 * 7 + 1
    assert small_weights(small.model) == dtype
    assert dtype in small.place
    assert isinstance(small.model.get_output_embeddings(), Int8Linear)
    assert small.vocab_size == plain.vocab_size
    prompts = random_ids(40, 9, 17)

    async def logits(engine: LocalEngine, prompt: list[int]) -> torch.Tensor:
        async with engine.open(prompt, room=4) as row:
            await row.generate(GenerationSettings(max_new_tokens=2))
            row.crop(len(prompt))
            return await row.logits()

    async def all_of(engine: LocalEngine) -> list[torch.Tensor]:
        return list(await asyncio.gather(*(logits(engine, prompt) for prompt in prompts)))

    for got, want in zip(*(runtime().run(all_of(engine)) for engine in engines), strict=True):
        heard = ~want.isneginf()
        assert float((got - want)[heard].std() / want[heard].std()) < most


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_artifacts_fit_the_same_model_with_small_weights_but_answers_are_not_taken_for_its_own(
    folder: Path, dtype: Small
) -> None:
    plain, small = (CausalModel.from_pretrained(folder, dtype=kind) for kind in ("float32", dtype))
    assert stamp(plain).difference(stamp(small)) is None
    assert identity(plain) != identity(small)
    other = CausalModel.from_pretrained(folder)
    with torch.no_grad():
        other.model.model.layers[0].mlp.up_proj.weight[3] *= 2
    changed = CausalModel.wrap(with_small_weights(other.model, "other", dtype), other.tokenizer)
    assert identity(changed)["weights"] != identity(small)["weights"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_what_cannot_be_done_with_small_weights_is_said(folder: Path, tmp_path: Path, dtype: Small) -> None:
    outline = CausalModel.outline(ModelSettings(path=str(folder)))  # its weights are on no CPU
    with pytest.raises(UserError, match="is for CPUs"):
        with_small_weights(outline.model, "tiny", dtype)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="not how they are written"):
        convert(ModelSettings(path=str(tmp_path / "model.gguf"), dtype=dtype), tmp_path / "out")
