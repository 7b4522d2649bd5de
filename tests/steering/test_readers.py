from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchorlm.defenses.inferaligner import best_threshold, null_space_reader
from anchorlm.steering import Moments

few = settings(max_examples=25, deadline=None)

HIDDEN = 20


def moments(activations: Tensor) -> Moments:
    found = Moments()
    for row in activations:
        found.add(row)
    return found


def classes(seed: int, n: int, rank: int) -> tuple[Tensor, Tensor]:
    """Harmful and harmless activations (n, 1, H); the harmless ones in a subspace, the harmful ones beside it."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(rank, HIDDEN, generator=generator)
    good = torch.randn(n, 1, rank, generator=generator) @ inside * 3
    beside = 6 * torch.randn(HIDDEN, generator=generator)
    bad = torch.randn(n, 1, rank, generator=generator) @ inside * 3 + beside
    return bad + 0.1 * torch.randn(n, 1, HIDDEN, generator=generator), good


@few
@given(st.integers(0, 10_000), st.integers(16, 60), st.integers(1, 8))
def test_harmless_samples_read_as_zero_and_harmful_ones_as_about_one(seed: int, n: int, rank: int) -> None:
    bad, good = classes(seed, n, rank)
    w = null_space_reader(moments(bad), moments(good))[0]
    assert float((good[:, 0] @ w).abs().max()) < 1e-3
    read = bad[:, 0] @ w
    assert 0.4 < float(read.mean()) < 1.1
    assert float(read.std()) < 0.25


@few
@given(st.integers(0, 10_000))
def test_the_reader_is_the_ridge_regression_of_the_paper(seed: int) -> None:
    """With D = r d^T, and P the projection, `d = P (P X X^T P + penalty)^-1 P X 1`: the H x H matrices written out."""
    bad, good = classes(seed, 30, HIDDEN)
    w = null_space_reader(moments(bad), moments(good), share=0.5, ridge=2.0)[0].double()
    x, g = bad[:, 0].double().T, good[:, 0].double().T  # (H, n)
    values, vectors = torch.linalg.eigh(g @ g.T)
    kernel = vectors[:, values.argsort()[: HIDDEN // 2]]
    p = kernel @ kernel.T
    penalty = 2.0 * float(((kernel.T @ x) ** 2).mean())
    ones = torch.ones(x.shape[1], 1, dtype=torch.float64)
    d = p @ torch.linalg.inv(p @ x @ x.T @ p + penalty * torch.eye(HIDDEN, dtype=torch.float64)) @ p @ x @ ones
    torch.testing.assert_close(w[:, None], d, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_layer_that_says_the_same_of_every_prompt_reads_as_nothing(value: float) -> None:
    same = moments(torch.full((12, 1, HIDDEN), value))
    assert float(null_space_reader(same, same).abs().max()) < 1e-5


def test_layers_are_read_apart() -> None:
    pairs = [classes(seed, 20, 4) for seed in (1, 2)]
    both = null_space_reader(
        moments(torch.cat([bad for bad, _ in pairs], dim=1)), moments(torch.cat([good for _, good in pairs], dim=1))
    )
    for layer, (bad, good) in enumerate(pairs):
        torch.testing.assert_close(both[layer], null_space_reader(moments(bad), moments(good))[0])


def f1(positive: list[float], negative: list[float], threshold: float) -> float:
    hits = sum(score > threshold for score in positive)
    wrong = sum(score > threshold for score in negative)
    missed = len(positive) - hits
    return 2 * hits / (2 * hits + wrong + missed)


SCORES = st.lists(st.integers(-100, 100).map(lambda n: n / 100), min_size=1, max_size=12)


@few
@given(SCORES, SCORES)
def test_the_best_threshold_is_that_of_brute_force(positive: list[float], negative: list[float]) -> None:
    threshold, score = best_threshold(torch.tensor(positive), torch.tensor(negative))
    assert score == pytest.approx(f1(positive, negative, threshold), abs=1e-6)
    tried = [-2.0, *(n / 100 + 0.005 for n in range(-101, 101))]
    assert score == pytest.approx(max(f1(positive, negative, each) for each in tried), abs=1e-6)


def test_classes_apart_are_separated_in_the_middle() -> None:
    threshold, score = best_threshold(torch.tensor([0.8, 0.6]), torch.tensor([0.1, 0.2]))
    assert threshold == pytest.approx(0.4)
    assert score == 1.0
