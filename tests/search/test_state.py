from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.search import SafetyState, spend

few = settings(max_examples=40, deadline=None)

COSTS = st.lists(st.floats(-5, 5), min_size=1, max_size=12)
GAMMA = st.floats(0.5, 1.0)


def token_by_token(left: float, costs: list[float], gamma: float) -> float:
    """The paper's recursion, one token at a time, with clamped costs."""
    for cost in costs:
        left = (left - max(0.0, cost)) / gamma
    return left


@few
@given(st.floats(-3, 10), COSTS, GAMMA)
def test_a_block_leaves_what_its_tokens_leave_one_by_one(left: float, costs: list[float], gamma: float) -> None:
    want = token_by_token(left, costs, gamma)
    assert spend(left, torch.tensor(costs, dtype=torch.float64), gamma) == pytest.approx(want, rel=1e-9, abs=1e-9)


@few
@given(st.floats(-3, 10), COSTS, GAMMA, st.integers(0, 12))
def test_it_does_not_matter_where_a_text_is_cut_into_blocks(
    left: float, costs: list[float], gamma: float, cut: int
) -> None:
    whole = torch.tensor(costs, dtype=torch.float64)
    halves = spend(spend(left, whole[:cut], gamma), whole[cut:], gamma)
    assert halves == pytest.approx(spend(left, whole, gamma), rel=1e-9, abs=1e-9)


@few
@given(st.floats(0, 5), st.lists(st.tuples(st.integers(0, 9), st.floats(-5, 5)), min_size=1, max_size=8), GAMMA)
def test_a_spent_budget_never_recovers(budget: float, blocks: list[tuple[int, float]], gamma: float) -> None:
    state, spent = SafetyState(budget), False
    for tokens, cost in blocks:
        state = state.after(tokens, cost, gamma)
        spent = spent or not state.within
        assert state.within != spent


@few
@given(st.lists(st.integers(-300, 300), min_size=1, max_size=8))
def test_a_text_that_costs_its_budget_to_the_digit_is_within_it_however_it_came_there(cents: list[int]) -> None:
    budget = max(0, *cents) / 100
    state = SafetyState(budget)
    for cost in cents:
        state = state.after(3, cost / 100)
        assert state.within
    assert not state.after(3, budget + 0.01).within


@few
@given(st.floats(0, 5), st.lists(st.tuples(st.integers(0, 9), st.floats(-5, 5)), min_size=1, max_size=8))
def test_undiscounted_a_text_is_within_budget_where_all_its_prefixes_are(
    budget: float, blocks: list[tuple[int, float]]
) -> None:
    state = SafetyState(budget)
    for tokens, cost in blocks:
        state = state.after(tokens, cost)
    worst = max(0.0, *(cost for _, cost in blocks))
    assert state.left == pytest.approx(budget - worst, abs=1e-9)
    assert state.worst == worst


def test_a_discount_forgives_what_comes_late() -> None:
    early, late = SafetyState(1.0).after(1, 1.5, 0.9), SafetyState(1.0).after(8, 1.5, 0.9)
    assert not early.within
    assert late.within
    assert late.left == pytest.approx((1.0 - 0.9**7 * 1.5) / 0.9**8)
    assert math.isclose(spend(2.0, torch.zeros(0)), 2.0)


def test_a_cost_that_is_no_number_is_within_no_budget() -> None:
    state = SafetyState(10.0).after(3, math.nan)
    assert not state.within
    assert not state.after(2, 0.0).within
