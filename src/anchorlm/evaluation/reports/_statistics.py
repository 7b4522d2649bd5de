from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeVar

from anchorlm.records import clustered, effective_size, wilson

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate or a mean with its 95 % interval.

    Attributes:
        value: In the unit of what was measured. A rate lies in [0, 1].
        low: Lower end.
        high: Upper end.
        n: Of how many answers.
        prompts: Of how many distinct prompts. Answers to one prompt are not independent.
    """

    value: float
    low: float
    high: float
    n: int
    prompts: int

    @classmethod
    def of_rate(cls, hits: int, n: int) -> Estimate:
        """A rate with its Wilson interval."""
        return cls(hits / n if n else 0.0, *wilson(hits, n), n, n)

    @classmethod
    def of_answers(cls, answers: Sequence[tuple[Hashable, bool]]) -> Estimate:
        """A rate over answers, each with the prompt that it answers. The interval is clustered by prompt."""
        groups = grouped(answers)
        n, hits = len(answers), sum(hit for _, hit in answers)
        return cls(hits / n if n else 0.0, *clustered(groups), n, len(groups))


def grouped(pairs: Sequence[tuple[Hashable, T]]) -> list[list[T]]:
    """The values of each prompt."""
    groups: dict[Hashable, list[T]] = {}
    for prompt, value in pairs:
        groups.setdefault(prompt, []).append(value)
    return list(groups.values())


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = 1000) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron 1979). The same for the same seed.

    Args:
        values: At least one.
        seed: Of the resampling.
        resamples: How many.
    """
    return resampled(values, lambda some: math.fsum(some) / len(some), seed=seed, resamples=resamples)


def resampled(
    values: Sequence[T], statistic: Callable[[Sequence[T]], float], *, seed: int = 0, resamples: int = 1000
) -> Estimate:
    """Any statistic with its percentile bootstrap interval (Efron 1979). The same for the same seed.

    Args:
        values: At least one.
        statistic: Of some values.
        seed: Of the resampling.
        resamples: How many.
    """
    rng, n = random.Random(f"bootstrap:{seed}"), len(values)
    found = sorted(statistic(rng.choices(values, k=n)) for _ in range(resamples))
    return Estimate(statistic(values), found[int(0.025 * resamples)], found[int(0.975 * resamples) - 1], n, n)


def resampled_prompts(
    values: Sequence[tuple[Hashable, T]],
    statistic: Callable[[Sequence[T]], float],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Estimate:
    """Any statistic with its bootstrap interval, in which whole prompts are drawn (Davison and Hinkley 1997).

    Args:
        values: At least one, each with the prompt that it belongs to.
        statistic: Of some values.
        seed: Of the resampling.
        resamples: How many.
    """
    groups = grouped(values)
    found = resampled(groups, lambda some: statistic([value for group in some for value in group]),
                      seed=seed, resamples=resamples)  # fmt: skip
    return Estimate(found.value, found.low, found.high, len(values), len(groups))


def bootstrap_prompts(values: Sequence[tuple[Hashable, float]], *, seed: int = 0, resamples: int = 1000) -> Estimate:
    """A mean over answers, in the same way."""
    return resampled_prompts(values, lambda some: math.fsum(some) / len(some), seed=seed, resamples=resamples)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of a paired difference of two rates (McNemar 1947): that both are equal.

    Args:
        only_first: Pairs in which it happened under the first alone.
        only_second: Pairs in which it happened under the second alone.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, float(2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


@dataclass(frozen=True, slots=True)
class Paired:
    """What changed between two rates over the same prompts.

    Attributes:
        difference: Second less first, with its 95 % interval.
        p: That nothing changed (`mcnemar`). None where the pairs are not independent.
    """

    difference: Estimate
    p: float | None

    @classmethod
    def of(cls, pairs: Sequence[tuple[bool, bool]]) -> Paired:
        """The change from the first to the second of each pair. The interval is that of Agresti and Min (2005), which
        keeps its level for small n.
        """
        return cls.of_prompts([(prompt, *pair) for prompt, pair in enumerate(pairs)])

    @classmethod
    def of_prompts(cls, pairs: Sequence[tuple[Hashable, bool, bool]]) -> Paired:
        """The same where each pair comes with its prompt: the interval is that of the effective number of pairs, and
        where a prompt has several there is no p, which takes independent pairs.
        """
        groups = grouped([(prompt, float(after) - before) for prompt, before, after in pairs])
        n, size = len(pairs), effective_size(groups)
        counts = Counter((before, after) for _, before, after in pairs)
        lost, won = counts[True, False], counts[False, True]
        share = size / n if n else 0.0
        middle = (won - lost) * share / (size + 2)
        half = 1.96 * math.sqrt((((won + lost) * share + 1) / (size + 2) - middle**2) / (size + 2))
        low, high = max(-1.0, middle - half), min(1.0, middle + half)
        value = (won - lost) / n if n else 0.0
        return cls(Estimate(value, low, high, n, len(groups)), mcnemar(lost, won) if len(groups) == n else None)


def pareto(points: Mapping[T, Sequence[float]]) -> list[T]:
    """Those that nothing beats: no other is at least as good in every figure and better in one. Larger is better.

    Args:
        points: The figures by name.

    Returns:
        The names, in the order in which they came.
    """
    return [
        name
        for name, own in points.items()
        if not any(
            all(a >= b for a, b in zip(other, own, strict=True)) and any(a > b for a, b in zip(other, own, strict=True))
            for other in points.values()
        )
    ]


def similarity(first: str, second: str) -> float:
    """How much two texts have in common, from 0 to 1: twice the words in matching runs over all words."""
    if first == second:
        return 1.0
    return SequenceMatcher(None, first.split(), second.split(), autojunk=False).ratio()


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two graders say the same.

    Attributes:
        rate: Share of equal outcomes.
        kappa: Cohen's: the same beyond what chance would give. 1 where both always say one and the same thing.
        n: Answers that both graded.
    """

    rate: float
    kappa: float
    n: int


def agreement(first: Sequence[str], second: Sequence[str]) -> Agreement:
    """The agreement of two graders, answer by answer (Cohen 1960)."""
    n = len(first)
    if n == 0:
        return Agreement(0.0, 0.0, 0)
    same = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(first.count(word) * second.count(word) for word in set(first) | set(second)) / (n * n)
    return Agreement(same, 1.0 if chance == 1.0 else (same - chance) / (1 - chance), n)
