from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchorlm.defenses.inferaligner._gates import best_bias, choose_gate, corners
from anchorlm.defenses.inferaligner._measured import layer_notes
from anchorlm.records import UserError

some = settings(max_examples=60, deadline=None)
scores = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=12).map(torch.tensor)
limits = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99])


def opened(values: Tensor, bias: float) -> int:
    return sum(value + bias > 0 for value in values.tolist())


def every_bias(harmful: Tensor, harmless: Tensor) -> list[float]:
    """One bias for every way in which a threshold can split the scores."""
    values = sorted({*harmful.tolist(), *harmless.tolist()})
    return [-(values[0] - 1), *(-(a + b) / 2 for a, b in pairwise(values)), -(values[-1] + 1)]


@some
@given(scores, scores, limits)
def test_the_bias_opens_on_as_many_harmful_prompts_as_the_limit_allows(
    harmful: Tensor, harmless: Tensor, limit: float
) -> None:
    bias = best_bias(harmful, [(harmless, limit)])
    assert opened(harmless, bias) <= limit * len(harmless)
    within = [b for b in every_bias(harmful, harmless) if opened(harmless, b) <= limit * len(harmless)]
    most = max(opened(harmful, b) for b in within)
    assert opened(harmful, bias) == most
    assert opened(harmless, bias) == min(opened(harmless, b) for b in within if opened(harmful, b) == most)


@some
@given(scores, scores, limits)
def test_nobody_sits_on_the_threshold(harmful: Tensor, harmless: Tensor, limit: float) -> None:
    bias = best_bias(harmful, [(harmless, limit)])
    values = [*harmful.tolist(), *harmless.tolist()]
    gaps = {abs(a - b) for a in values for b in values if a != b} or {2.0}
    assert min(abs(value + bias) for value in values) >= min(*gaps, 2.0) / 2 - 1e-6


@some
@given(scores, scores)
def test_the_curve_has_every_best_trade_and_rises(harmful: Tensor, harmless: Tensor) -> None:
    points = [(opened(harmless, bias), opened(harmful, bias)) for bias in corners(harmful, harmless)]
    assert points[0] == (0, 0)
    assert points[-1] == (len(harmless), len(harmful))
    assert points == sorted(points)
    everything = {(opened(harmless, bias), opened(harmful, bias)) for bias in every_bias(harmful, harmless)}
    assert set(points) <= everything
    for wrong, right in everything:  # nothing lies above the curve
        left = max(point for point in points if point[0] <= wrong)
        beyond = min((point for point in points if point[0] >= wrong), key=lambda point: (point[0], -point[1]))
        share = (wrong - left[0]) / (beyond[0] - left[0]) if beyond[0] > left[0] else 1.0
        assert right <= left[1] + share * (beyond[1] - left[1]) + 1e-9


def test_the_layer_that_tells_the_classes_apart_is_chosen_over_those_that_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    harmful, harmless = (torch.randn(60, 5, generator=generator) for _ in range(2))
    harmful[:, 3] += 8
    best, tried = choose_gate(harmful, [(harmless, 0.0)])
    assert 3 in best.layers
    assert best.opened >= 57
    assert best.wrong == 0
    alone = next(gate for gate in tried if gate.layers == (3,))
    assert (alone.opened, alone.wrong) == (60, 0)
    assert len(tried) == 5 + 4 + 3 + 2


def test_layers_that_each_see_a_part_are_averaged() -> None:
    generator = torch.Generator().manual_seed(1)
    shared = 3 * torch.randn(200, generator=generator)
    harmful, harmless = torch.zeros(100, 2), torch.zeros(100, 2)
    harmful[:, 0], harmful[:, 1] = 1 + shared[:100], 1 - shared[:100]
    harmless[:, 0], harmless[:, 1] = -1 + shared[100:], -1 - shared[100:]
    best, _ = choose_gate(harmful, [(harmless, 0.01)])
    assert best.layers == (0, 1)
    assert best.opened == 100


def test_classes_that_cannot_be_told_apart_are_an_error() -> None:
    with pytest.raises(UserError, match="raise --limit"):
        choose_gate(torch.zeros(10, 2), [(torch.ones(10, 2), 0.0)])


@some
@given(scores, scores, scores, limits, limits)
def test_every_kind_of_harmless_prompts_keeps_its_own_limit(
    harmful: Tensor, plain: Tensor, alike: Tensor, limit: float, other: float
) -> None:
    kinds = [(plain, limit), (alike, other)]
    bias = best_bias(harmful, kinds)
    assert all(opened(kind, bias) <= share * len(kind) for kind, share in kinds)
    within = [
        b
        for b in every_bias(harmful, torch.cat([plain, alike]))
        if all(opened(kind, b) <= share * len(kind) for kind, share in kinds)
    ]
    assert opened(harmful, bias) == max(opened(harmful, b) for b in within)


def test_among_ties_a_wide_mean_about_the_middle_is_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    harmful = torch.randn(200, 30, generator=generator) + 8
    harmless = torch.randn(300, 30, generator=generator)
    best, _ = choose_gate(harmful, [(harmless, 0.01)])
    assert len(best.layers) == 10
    assert abs(sum(best.layers) / 10 - 0.65 * 29) <= 1
    harmful[:, :2] += 90  # the first layers read the form, and look better than any
    assert choose_gate(harmful, [(harmless, 0.01)])[0].layers == best.layers


def test_layers_that_are_worse_beyond_their_interval_are_no_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    harmful, harmless = (torch.randn(200, 30, generator=generator) for _ in range(2))
    harmful[:, :2] += 8
    best, _ = choose_gate(harmful, [(harmless, 0.01)])
    assert min(best.layers) <= 1
    assert layer_notes(best.layers, 30)


def test_what_reads_the_middle_needs_no_note() -> None:
    assert layer_notes(range(14, 24), 30) == []
    assert layer_notes([1], 30)
    assert layer_notes([3], 6) == []
