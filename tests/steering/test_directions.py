from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from anchorlm.steering import Moments, fisher_directions, harm_directions

few = settings(max_examples=25, deadline=None)

LAYERS = 3


def moments(activations: Tensor) -> Moments:
    """Of activations (n, L, H)."""
    found = Moments()
    for row in activations:
        found.add(row)
    return found


def planted(n: int, hidden: int, seed: int, *, distance: float = 4.0) -> tuple[Tensor, Moments, Moments]:
    """Unit directions (L, H), and two classes that lie `distance` apart along them in noise of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    unit = normalize(torch.randn(LAYERS, hidden, generator=generator), dim=-1)
    common = 10 * torch.randn(LAYERS, hidden, generator=generator)
    noise = torch.randn(2, n, LAYERS, hidden, generator=generator)
    noise -= noise.mean(dim=1, keepdim=True)
    return unit, moments(common + distance * unit + noise[0]), moments(common + noise[1])


@few
@given(st.integers(0, 10_000), st.floats(0.5, 50))
def test_planted_directions_are_recovered_with_their_length(seed: int, distance: float) -> None:
    unit, harmful, harmless = planted(32, 24, seed, distance=distance)
    found = harm_directions(harmful, harmless)
    assert (cosine_similarity(found.unit, unit) > 0.99).all()
    torch.testing.assert_close(found.unit.norm(dim=-1), torch.ones(LAYERS))
    torch.testing.assert_close(found.length, torch.full((LAYERS,), distance), rtol=1e-3, atol=1e-3)


def test_the_length_is_the_distance_of_the_class_means() -> None:
    bad, good = torch.randn(2, 20, LAYERS, 8, generator=torch.Generator().manual_seed(1))
    found = harm_directions(moments(bad), moments(good))
    v = bad.mean(dim=0) - good.mean(dim=0)
    torch.testing.assert_close(found.length, v.norm(dim=-1))
    torch.testing.assert_close(found.unit * found.length[:, None], v)


def test_classes_with_one_mean_have_no_direction_but_numbers() -> None:
    activations = torch.randn(6, LAYERS, 8, generator=torch.Generator().manual_seed(2))
    found = harm_directions(moments(activations), moments(activations))
    assert torch.equal(found.length, torch.zeros(LAYERS))
    assert torch.equal(found.unit, torch.zeros(LAYERS, 8))


def literal(bad: Tensor, good: Tensor, shrinkage: float) -> Tensor:
    """`(C + lambda I)^-1 v` of one layer (n, H), by a matrix of H x H."""
    rows = torch.cat([bad - bad.mean(dim=0), good - good.mean(dim=0)]).double()
    spread = rows.T @ rows / len(rows)
    weight = shrinkage * spread.diagonal().mean()
    v = (bad.double().mean(dim=0) - good.double().mean(dim=0)).double()
    return normalize(torch.linalg.inv(spread + weight * torch.eye(len(v), dtype=torch.float64)) @ v, dim=-1).float()


@few
@given(st.integers(2, 30), st.integers(2, 30), st.integers(2, 40), st.floats(0.01, 10), st.integers(0, 1_000))
def test_fisher_directions_are_the_formula_also_with_fewer_prompts_than_dimensions(
    n: int, m: int, hidden: int, shrinkage: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(hidden, generator=generator) * 3 + 0.1
    bad = torch.randn(n, LAYERS, hidden, generator=generator) * scale + 1
    good = torch.randn(m, LAYERS, hidden, generator=generator) * scale
    found = fisher_directions(moments(bad), moments(good), shrinkage)
    want = torch.stack([literal(bad[:, layer], good[:, layer], shrinkage) for layer in range(LAYERS)])
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-3)


def test_much_shrinkage_is_the_mean_difference() -> None:
    _, harmful, harmless = planted(16, 12, 3)
    torch.testing.assert_close(
        fisher_directions(harmful, harmless, 1e6), harm_directions(harmful, harmless).unit, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("n", "hidden"), [(64, 16), (24, 64)])
def test_whitening_separates_new_prompts_better_where_a_nuisance_varies_much(n: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(5)
    harm, nuisance = torch.eye(hidden)[:2]

    def draw(count: int, harmful: bool) -> Tensor:
        noise = torch.randn(count, 1, hidden, generator=generator) * 0.3
        loud = 8 * torch.randn(count, 1, 1, generator=generator) * nuisance
        found: Tensor = noise + loud + (1.0 if harmful else -1.0) * harm
        return found

    bad, good = moments(draw(n, True)), moments(draw(n, False))
    high, low = draw(500, True)[:, 0], draw(500, False)[:, 0]

    def correct(unit: Tensor) -> float:
        threshold = (((bad.mean + good.mean) / 2) @ unit).item()
        return float(((high @ unit > threshold).float().mean() + (low @ unit <= threshold).float().mean()) / 2)

    plain = correct(harm_directions(bad, good).unit[0])
    whitened = correct(fisher_directions(bad, good)[0])
    assert whitened > 0.97
    assert whitened > plain + 0.05
