from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.evaluation import Estimate, Paired, agreement, bootstrap, mcnemar, pareto, similarity

counts = st.integers(0, 6)
words = st.lists(st.sampled_from(["refused", "complied", "broken"]), min_size=1, max_size=30)


@given(counts, counts)
def test_mcnemar_is_the_share_of_coin_throws_that_are_at_least_as_odd(first: int, second: int) -> None:
    n, seen = first + second, abs(first - second)
    throws = list(product((1, -1), repeat=n))
    assert mcnemar(first, second) == pytest.approx(sum(abs(sum(one)) >= seen for one in throws) / len(throws))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_bootstrap_holds_its_mean_and_is_the_same_for_the_same_seed(values: list[float]) -> None:
    found = bootstrap(values, seed=3, resamples=200)
    assert found == bootstrap(values, seed=3, resamples=200)
    assert found.value == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_a_bootstrap_is_as_wide_as_the_normal_interval_of_many_values() -> None:
    values = [float(i % 7) for i in range(700)]
    spread = math.sqrt(sum((v - 3) ** 2 for v in values) / len(values) / len(values))
    found = bootstrap(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


@given(st.dictionaries(st.text(max_size=3), st.tuples(counts, counts), max_size=8))
def test_the_front_is_what_nothing_beats(points: dict[str, tuple[int, int]]) -> None:
    front = pareto(points)

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    assert front == [name for name in points if not any(beats(other, points[name]) for other in points.values())]
    assert bool(front) == bool(points)


@given(words, st.randoms(use_true_random=False))
def test_kappa_is_one_for_equal_graders_and_its_definition_for_others(first: list[str], rng: object) -> None:
    assert agreement(first, first).kappa == 1.0
    second = [rng.choice(first) for _ in first]  # type: ignore[attr-defined]
    found, n = agreement(first, second), len(first)
    same = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum((first.count(w) / n) * (second.count(w) / n) for w in ("refused", "complied", "broken"))
    assert found.rate == pytest.approx(same)
    assert found.kappa * (1 - chance) == pytest.approx(same - chance) or chance == pytest.approx(1)


@given(st.text(alphabet="ab ", max_size=20), st.text(alphabet="ab ", max_size=20))
def test_similarity_is_a_share_and_one_for_equal_texts(first: str, second: str) -> None:
    assert 0 <= similarity(first, second) <= 1
    assert similarity(first, first) == 1
    assert similarity("a a a", "b b b") == 0


@given(counts, counts)
def test_a_rate_lies_in_its_interval(hits: int, misses: int) -> None:
    found = Estimate.of_rate(hits, hits + misses)
    assert 0 <= found.low <= found.high <= 1
    assert found.n == 0 or found.low - 1e-9 <= found.value <= found.high + 1e-9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_difference_is_that_of_the_rates_within_its_interval(pairs: list[tuple[bool, bool]]) -> None:
    n = len(pairs)
    found = Paired.of(pairs)
    rates = [sum(side) / n for side in zip(*pairs, strict=True)]
    assert found.difference.value == pytest.approx(rates[1] - rates[0])
    assert -1 <= found.difference.low <= found.difference.value <= found.difference.high <= 1
    turned = Paired.of([(b, a) for a, b in pairs]).difference
    assert (turned.low, turned.high) == pytest.approx((-found.difference.high, -found.difference.low))
    assert found.p == mcnemar(pairs.count((True, False)), pairs.count((False, True)))


def test_the_interval_of_a_paired_difference_keeps_its_level() -> None:
    rng = random.Random(0)
    truth, inside = 0.2, 0
    for _ in range(400):
        pairs = [(u < 0.5, u < 0.5 or u > 0.8) for u in (rng.random() for _ in range(30))]
        found = Paired.of(pairs).difference
        inside += found.low <= truth <= found.high
    assert inside >= 0.93 * 400
