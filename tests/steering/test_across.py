from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from anchorlm.defenses.inferaligner import matching_layer, ridge_map

few = settings(max_examples=25, deadline=None)


def normal(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def closed_form(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """`(A^T A + p I)^-1 A^T B`, through an H x H matrix whatever the number of prompts."""
    a, b = x.double() - x.double().mean(dim=0), y.double() - y.double().mean(dim=0)
    penalty = strength * float((a * a).sum()) / a.shape[1]
    inverse: Tensor = torch.linalg.inv(a.T @ a + penalty * torch.eye(a.shape[1], dtype=torch.float64))
    return inverse @ a.T @ b


@few
@given(st.integers(8, 40), st.integers(2, 30), st.integers(1, 12), st.sampled_from([1e-3, 0.1, 10]), st.integers(0, 99))
def test_the_map_is_the_closed_form_with_more_and_with_fewer_prompts_than_dimensions(
    n: int, wide: int, other: int, strength: float, seed: int
) -> None:
    x, y = normal(seed, n, wide) + 3, normal(seed + 1, n, other) - 2
    found = ridge_map(x, y, [strength])
    assert found.strength == strength
    torch.testing.assert_close(found.matrix, closed_form(x, y, strength), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("x", "y"), [(torch.ones(20, 4), normal(0, 20, 6)), (normal(0, 20, 4), torch.ones(20, 6))])
def test_a_layer_that_says_the_same_of_every_prompt_maps_to_nothing(x: Tensor, y: Tensor) -> None:
    found = ridge_map(x, y)
    assert float(found.matrix.abs().max()) < 1e-6
    assert found.r2 <= 1


def test_the_strength_is_that_of_the_best_held_out_r2() -> None:
    x = normal(1, 40, 20)
    y = x @ normal(2, 20, 6) + 4 * normal(3, 40, 6)
    cut = 30
    center = y[:cut].double().mean(dim=0)
    scores = {}
    for strength in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
        guess = (x[cut:].double() - x[:cut].double().mean(dim=0)) @ closed_form(x[:cut], y[:cut], strength) + center
        scores[strength] = float(1 - ((y[cut:] - guess) ** 2).sum() / ((y[cut:] - center) ** 2).sum())
    found = ridge_map(x, y)
    assert found.strength == max(scores, key=lambda strength: scores[strength])
    assert found.r2 == pytest.approx(max(scores.values()), abs=1e-5)
    torch.testing.assert_close(found.matrix, closed_form(x, y, found.strength), atol=1e-6, rtol=1e-5)


@few
@given(st.integers(0, 10_000))
def test_a_planted_map_carries_directions_over(seed: int) -> None:
    planted = normal(seed, 12, 9)
    x = normal(seed + 1, 96, 12) + 5
    found = ridge_map(x, x @ planted + 0.01 * normal(seed + 2, 96, 9) - 7)
    assert found.r2 > 0.99
    directions = normal(seed + 3, 5, 12)
    assert (cosine_similarity(found(directions), directions @ planted) > 0.99).all()
    torch.testing.assert_close(found(directions).norm(dim=-1), torch.ones(5))
    assert found(directions).dtype == torch.float32


@few
@given(st.integers(0, 10_000))
def test_independent_noise_is_not_explained(seed: int) -> None:
    found = ridge_map(normal(seed, 200, 10), normal(seed + 1, 200, 10))
    assert -0.1 < found.r2 < 0.1


@few
@given(st.integers(1, 80), st.integers(1, 80))
def test_matching_layers_keep_their_order_and_their_relative_depth(layers: int, others: int) -> None:
    found = [matching_layer(layer, layers, others) for layer in range(layers)]
    assert found == sorted(found)
    assert found[-1] == others - 1
    assert all(0 <= layer < others for layer in found)
    for layer, match in enumerate(found):
        depth = (layer + 1) / layers  # share of the model that the stream has passed
        assert abs((match + 1) / others - depth) <= 0.5 / others + 1e-9 or (match == 0 and depth < 1 / others)
    if layers == others:
        assert found == list(range(layers))
    if others <= layers:
        assert set(found) == set(range(others))
