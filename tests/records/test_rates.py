from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.records import wilson

few = settings(max_examples=50, deadline=None)
COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Of ten, as in textbooks
        (0, 10, 0.0000, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0000),
    ],
)
def test_intervals_are_those_of_the_literature(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_without_any_trial_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@few
@given(COUNTS)
def test_the_interval_holds_the_rate_and_lies_between_zero_and_one(counts: tuple[int, int]) -> None:
    hits, n = counts
    low, high = wilson(hits, n)
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= hits / n <= high + 1e-9


@few
@given(COUNTS)
def test_the_interval_is_where_the_score_test_does_not_reject(counts: tuple[int, int]) -> None:
    hits, n = counts
    for p in wilson(hits, n):
        if 1e-6 < p < 1 - 1e-6:
            assert abs(hits / n - p) / (p * (1 - p) / n) ** 0.5 == pytest.approx(1.959964, rel=1e-4)


@few
@given(COUNTS)
def test_misses_mirror_hits(counts: tuple[int, int]) -> None:
    hits, n = counts
    low, high = wilson(hits, n)
    assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low))


@few
@given(COUNTS)
def test_more_hits_raise_both_ends_and_more_trials_narrow(counts: tuple[int, int]) -> None:
    hits, n = counts
    low, high = wilson(hits, n)
    if hits < n:
        more = wilson(hits + 1, n)
        assert more[0] > low
        assert more[1] > high or high == more[1] == 1
    wide = wilson(4 * hits, 4 * n)
    assert wide[1] - wide[0] < high - low
