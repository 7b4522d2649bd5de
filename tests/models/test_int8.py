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
from anchorlm.models._int8 import Int8Linear, with_int8_weights
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


def test_a_row_of_zeros_is_nothing_but_the_bias() -> None:
    plain = nn.Linear(8, 5)
    assert torch.equal(Int8Linear(plain)(torch.zeros(2, 8)), plain.bias.detach().expand(2, 5))


def test_a_model_with_int8_weights_is_served_and_says_nearly_the_same(folder: Path) -> None:
    small = CausalModel.from_pretrained(folder, dtype="int8")
    plain = CausalModel.from_pretrained(folder)
    engines = LocalEngine(small), LocalEngine(plain)
    assert sum(isinstance(module, Int8Linear) for module in small.model.modules()) == 2 * 7 + 1
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
        assert float((got - want)[heard].std() / want[heard].std()) < 0.1


def test_artifacts_fit_the_same_model_with_int8_weights_but_answers_are_not_taken_for_its_own(folder: Path) -> None:
    plain, small = (CausalModel.from_pretrained(folder, dtype=dtype) for dtype in ("float32", "int8"))
    assert stamp(plain).difference(stamp(small)) is None
    assert identity(plain) != identity(small)
    other = CausalModel.from_pretrained(folder)
    with torch.no_grad():
        other.model.model.layers[0].mlp.up_proj.weight[3] *= 2
    changed = CausalModel.wrap(with_int8_weights(other.model, "other"), other.tokenizer)
    assert identity(changed)["weights"] != identity(small)["weights"]


def test_what_cannot_be_done_with_int8_is_said(folder: Path, tmp_path: Path) -> None:
    outline = CausalModel.outline(ModelSettings(path=str(folder)))  # its weights are on no CPU
    with pytest.raises(UserError, match="is for CPUs"):
        with_int8_weights(outline.model, "tiny")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="not how they are written"):
        convert(ModelSettings(path=str(tmp_path / "model.gguf"), dtype="int8"), tmp_path / "out")
