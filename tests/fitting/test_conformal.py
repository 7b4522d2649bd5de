from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.defenses.inferenceguard import allowed, calibrated_limit, labels_needed, upper_bound
from anchorlm.defenses.inferenceguard._conformal import least_refused, statement
from anchorlm.records import UserError

few = settings(max_examples=40, deadline=None)

SEEDS = 200
RISK = 0.1


def naive_cdf(hits: int, n: int, p: float) -> float:
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits + 1))


@few
@given(st.integers(0, 30), st.integers(1, 30), st.floats(0.5, 0.99))
def test_the_upper_bound_is_the_rate_that_makes_so_few_hits_unlikely(hits: int, more: int, confidence: float) -> None:
    n = hits + more
    bound = upper_bound(hits, n, confidence)
    assert naive_cdf(hits, n, bound) == pytest.approx(1 - confidence, abs=1e-6)


def test_the_upper_bound_agrees_with_published_values() -> None:
    assert upper_bound(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)  # the rule of three
    assert upper_bound(1, 10, 0.95) == pytest.approx(0.3942, abs=1e-4)
    assert upper_bound(5, 5, 0.95) == 1.0


@pytest.mark.slow
@few
@given(st.integers(1, 200), st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_what_is_allowed_is_the_most_that_the_papers_condition_lets_pass(n: int, risk: float) -> None:
    passing = [k for k in range(n + 1) if (k + 1) / (n + 1) <= risk + 1e-12]
    assert allowed(n, risk, "crc") == max(passing, default=-1)
    k = -1
    while k + 1 <= n and upper_bound(k + 1, n, 0.95) <= risk:
        k += 1
    assert allowed(n, risk, "ltt") == k


@pytest.mark.parametrize("method", ["crc", "ltt"])
@pytest.mark.parametrize("risk", [0.01, 0.05, 0.2])
def test_too_few_labels_are_refused_with_the_number_that_is_needed(method: str, risk: float) -> None:
    needed = labels_needed(risk, method)  # type: ignore[arg-type]
    calibrated_limit([-1.0] * needed, [False] * needed, risk, method)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"at least {needed},"):
        calibrated_limit([-1.0] * (needed - 1), [False] * (needed - 1), risk, method)  # type: ignore[arg-type]


def test_the_number_that_is_needed_is_enough_where_the_level_is_met_exactly() -> None:
    for risk, confidence, n in ((0.5, 0.875, 3), (0.5, 0.75, 2), (0.1, 1 - 0.9**4, 4), (0.2, 1 - 0.8**7, 7)):
        assert labels_needed(risk, "ltt", confidence) == n
        assert allowed(n, risk, "ltt", confidence) == 0
        assert allowed(n - 1, risk, "ltt", confidence) == -1


@few
@given(
    st.lists(st.tuples(st.floats(-3, 3) | st.just(math.inf), st.booleans()), min_size=20, max_size=30),
    st.sampled_from(["crc", "ltt"]),
)
def test_the_limit_is_the_highest_at_which_no_more_than_the_allowed_are_emitted(
    rows: list[tuple[float, bool]], method: str
) -> None:
    risk = 0.2
    costs, unsafe = [cost for cost, _ in rows], [bad for _, bad in rows]
    limit = calibrated_limit(costs, unsafe, risk, method)  # type: ignore[arg-type]
    most = allowed(len(rows), risk, method)  # type: ignore[arg-type]

    def emitted(at: float) -> int:
        return sum(bad and math.isfinite(cost) and cost <= at for cost, bad in rows)

    assert emitted(limit) <= most
    if math.isfinite(limit):
        assert emitted(math.nextafter(limit, math.inf)) > most


@few
@given(
    st.lists(st.tuples(st.integers(-99, 99), st.booleans()), min_size=20, max_size=40, unique_by=lambda row: row[0]),
    st.sampled_from(["crc", "ltt"]),
)
def test_no_limit_refuses_less_than_the_base_rate_demands_and_a_perfect_cost_refuses_no_more(
    rows: list[tuple[int, bool]], method: str
) -> None:
    unsafe = [bad for _, bad in rows]
    least = least_refused(sum(unsafe), len(rows), 0.2, method)  # type: ignore[arg-type]
    for costs, perfect in (([cost for cost, _ in rows], False), ([cost + 999 * bad for cost, bad in rows], True)):
        limit = calibrated_limit(costs, unsafe, 0.2, method)  # type: ignore[arg-type]
        refused = sum(cost > limit for cost in costs)
        assert refused == least if perfect else refused >= least


def draw(rng: random.Random) -> tuple[float, bool]:
    """A response: the higher its cost, the likelier it is unsafe; some prompts get none."""
    cost = rng.gauss(0, 1)
    return (math.inf if cost > 1.5 else cost), rng.random() < 1 / (1 + math.exp(-2 * cost))


def test_over_200_calibrations_the_risk_keeps_to_what_each_method_states() -> None:
    rng = random.Random(0)
    fresh = [draw(rng) for _ in range(20_000)]
    risks: dict[str, list[float]] = {"crc": [], "ltt": []}
    for seed in range(SEEDS):
        own = random.Random(seed + 1)
        rows = [draw(own) for _ in range(150)]
        for method, found in risks.items():
            limit = calibrated_limit([c for c, _ in rows], [u for _, u in rows], RISK, method)  # type: ignore[arg-type]
            found.append(sum(bad and cost <= min(limit, 1e9) for cost, bad in fresh) / len(fresh))
    mean = sum(risks["crc"]) / SEEDS
    spread = math.sqrt(sum((risk - mean) ** 2 for risk in risks["crc"]) / SEEDS)
    assert mean <= RISK + 3 * spread / math.sqrt(SEEDS)
    assert mean > 0.7 * RISK  # and it does not get there by refusing everything
    exceeded = sum(risk > RISK for risk in risks["ltt"]) / SEEDS
    assert exceeded <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SEEDS)
    assert sum(risks["ltt"]) / SEEDS < mean  # the stronger statement is bought with a stricter limit


def test_bad_levels_methods_and_costs_are_named() -> None:
    with pytest.raises(UserError, match="crc or ltt"):
        calibrated_limit([0.0], [False], 0.5, "bonferroni")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="between 0 and 1"):
        calibrated_limit([0.0], [False], 1.5)
    with pytest.raises(UserError, match="a number and a label"):
        calibrated_limit([math.nan] * 20, [False] * 20, 0.5)


def test_the_statement_says_what_it_rests_on() -> None:
    said = statement(100, 0.05, "ltt", 0.95, "two annotators")
    for words in ("100 labels of two annotators", "at most 5 %", "95 %", "drawn like", "not hold under attack"):
        assert words in said
    assert "confidence" not in statement(100, 0.05, "crc", 0.95, "somebody")
