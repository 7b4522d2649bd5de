from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from anchorlm.records import DefenseError
from anchorlm.steering import Gate, cosine_scores

few = settings(max_examples=25, deadline=None)

LAYERS, HIDDEN = 4, 6


def normal(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def fitted(seed: int) -> tuple[Gate, Tensor, Tensor, Tensor]:
    """A gate along the mean difference, the class means, and other activations (20, L, H)."""
    high, low = normal(seed, 2, LAYERS, HIDDEN) * 3 + 1
    gate = Gate.fit(normalize(high - low, dim=-1), high, low)
    return gate, high, low, normal(seed + 1, 20, LAYERS, HIDDEN) * 4 + 1


@few
@given(st.integers(0, 10_000))
def test_the_classes_lie_at_one_and_minus_one_and_their_midpoint_at_zero(seed: int) -> None:
    gate, high, low, _ = fitted(seed)
    ones = torch.ones(LAYERS)
    torch.testing.assert_close(gate.scores(high), ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(gate.scores(low), -ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(gate.scores((high + low) / 2), torch.zeros(LAYERS), atol=1e-3, rtol=0)


@few
@given(st.integers(0, 10_000))
def test_the_papers_formula_decides_alike(seed: int) -> None:
    gate, high, low, others = fitted(seed)
    for a in others:
        for layer in range(LAYERS):
            s = (high[layer] - low[layer]) / (high[layer] - low[layer]).norm()
            b = -(float(high[layer] @ s) + float(low[layer] @ s)) / 2
            value = float(a[layer] @ s) + b
            if abs(value) > 1e-3:  # rounding decides nearer than that
                assert (float(gate.scores(a)[layer]) > 0) == (value > 0)


def test_scores_do_not_depend_on_the_number_format_by_more_than_its_rounding() -> None:
    gate, _, _, others = fitted(3)
    for a in others:
        torch.testing.assert_close(gate.scores(a.bfloat16()), gate.scores(a), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_an_error_and_never_a_closed_gate(bad: float) -> None:
    gate, high, _, _ = fitted(1)
    broken = high.clone()
    broken[2, 3] = bad
    with pytest.raises(DefenseError, match="not numbers"):
        gate.scores(broken)
    with pytest.raises(DefenseError, match="not numbers"):
        cosine_scores(broken, gate.direction)
    with pytest.raises(DefenseError, match="not numbers"):
        Gate(torch.full_like(high, bad), gate.bias, gate.scale).scores(high)


@few
@given(st.integers(0, 10_000))
def test_cosine_scores_are_the_papers_formula(seed: int) -> None:
    activations, condition = normal(seed, 2, LAYERS, HIDDEN)
    condition = normalize(condition, dim=-1)
    for layer, score in enumerate(cosine_scores(activations, condition).tolist()):
        h, c = activations[layer].double(), condition[layer].double()
        projection = torch.tanh(torch.outer(c, c) / (c @ c) @ h)
        assert score == pytest.approx(float(h @ projection / (h.norm() * projection.norm())), abs=1e-4)
        assert -1 <= score <= 1 + 1e-6
