from __future__ import annotations

import math
import random
from itertools import product
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.evaluation import Estimate, Paired, agreement, bootstrap, mcnemar, pareto, similarity
from anchorlm.evaluation.reports._statistics import bootstrap_prompts, resampled, resampled_prompts
from anchorlm.records import effective_size, wilson

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


answers = st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=12)


@given(answers)
def test_an_interval_over_prompts_lies_between_that_of_all_answers_and_that_of_as_many_prompts(
    groups: list[list[bool]],
) -> None:
    pairs = [(prompt, hit) for prompt, group in enumerate(groups) for hit in group]
    found, n, hits = Estimate.of_answers(pairs), len(pairs), sum(hit for _, hit in pairs)
    assert (found.n, found.prompts) == (n, len(groups))
    assert found.value == pytest.approx(hits / n)
    wide, narrow = wilson(found.value * len(groups), len(groups)), wilson(hits, n)
    assert wide[0] - 1e-9 <= found.low <= narrow[0] + 1e-9
    assert narrow[1] - 1e-9 <= found.high <= wide[1] + 1e-9


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 4))
def test_asking_the_same_prompts_of_more_targets_that_answer_alike_tells_nothing_more(
    hits: list[bool], targets: int
) -> None:
    found = Estimate.of_answers([(prompt, hit) for _ in range(targets) for prompt, hit in enumerate(hits)])
    alone = Estimate.of_rate(sum(hits), len(hits))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    again = Paired.of_prompts([(prompt, False, hit) for _ in range(targets) for prompt, hit in enumerate(hits)])
    once = Paired.of([(False, hit) for hit in hits])
    assert (again.difference.low, again.difference.high) == pytest.approx((once.difference.low, once.difference.high))
    assert (again.p is None) == (targets > 1)


def test_none_of_300_prompts_asked_of_three_targets_is_up_to_one_percent() -> None:
    found = Estimate.of_answers([(prompt, False) for _ in range(3) for prompt in range(300)])
    assert (found.low, found.n, found.prompts) == (0, 900, 300)
    assert 0.012 < found.high < 0.013


@given(st.integers(0, 1000))
def test_the_effective_size_is_that_of_the_textbook_s_design_effect(seed: int) -> None:
    rng = random.Random(seed)
    groups = [[rng.random() < 0.5] * rng.randint(1, 2) + [rng.random() < 0.5] for _ in range(60)]
    values = [value for group in groups for value in group]
    n, m, mean = len(values), len(groups), sum(values) / len(values)
    robust = sum(sum(value - mean for value in group) ** 2 for group in groups) * m / (m - 1) / n**2
    t = 1 + (1.96**2 + 1) / (4 * (m - 1))
    assert effective_size(groups) == pytest.approx(min(n, max(m, mean * (1 - mean) / robust / t**2)))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [40, 100, 300])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("alike", [0.0, 0.3, 0.7, 1.0])
def test_clustered_intervals_hold_the_truth_as_often_as_they_say(prompts: int, rate: float, alike: float) -> None:
    """Each answer is, with a chance of `alike`, that of its prompt, and else one of its own."""
    rng, inside, naive, times = random.Random(f"{prompts} {rate} {alike}"), 0, 0, 1000
    for _ in range(times):
        pairs = []
        for prompt in range(prompts):
            common = rng.random() < rate
            pairs += [(prompt, common if rng.random() < alike else rng.random() < rate) for _ in range(3)]
        found = Estimate.of_answers(pairs)
        inside += found.low <= rate <= found.high
        low, high = wilson(sum(hit for _, hit in pairs), len(pairs))
        naive += low <= rate <= high
    # Within 1.5 points of what is said, less one standard error of the simulation.
    assert inside >= (0.935 - math.sqrt(0.935 * 0.065 / times)) * times
    if alike == 1.0:
        assert naive < 0.85 * times


def test_a_bootstrap_over_prompts_is_that_of_the_prompts_means() -> None:
    values = [(prompt, float(prompt % 7)) for _ in range(3) for prompt in range(100)]
    found, alone = bootstrap_prompts(values), bootstrap([float(prompt % 7) for prompt in range(100)])
    assert found.n == 300
    assert found.prompts == 100
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=12), st.integers(1, 3))
def test_times_of_the_same_prompts_around_more_targets_make_a_median_no_surer(seconds: list[float], times: int) -> None:
    found = resampled_prompts([(n, one) for _ in range(times) for n, one in enumerate(seconds)], median, resamples=50)
    alone = resampled(seconds, median, resamples=50)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert (found.n, found.prompts) == (times * len(seconds), len(seconds))
