from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

_SEVERAL = 20


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The Wilson score interval of a rate at 95 % (Wilson 1927, equation for p1 and p2).

    Args:
        hits: How often it happened.
        n: Out of how many, a fraction where it is an effective number. With none, the interval is all of [0, 1].
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    p, spread = hits / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_size(clusters: Iterable[Sequence[float]]) -> float:
    """How many independent answers some answers are worth of which several belong to one prompt.

    That is their number over the design effect (Kish 1965), the ratio of the cluster-robust variance of their mean
    to the variance of as many independent ones: the effective sample size of Korn and Graubard 1998, also by
    Student's t. It lies between the number of prompts and that of answers. Where fewer than 20 prompts have an answer
    unlike the commonest, the variance cannot be estimated, and it is the number of prompts: the safe end.

    Args:
        clusters: The values of each prompt's answers.
    """
    groups = [list(group) for group in clusters if len(group)]
    n, m = sum(map(len, groups)), len(groups)
    if m < 2 or m == n:
        return float(m)
    common, _ = Counter(value for group in groups for value in group).most_common(1)[0]
    if sum(any(value != common for value in group) for group in groups) < _SEVERAL:
        return float(m)
    mean = sum(map(sum, groups)) / n
    independent = sum((value - mean) ** 2 for group in groups for value in group) / n / n
    robust = m / (m - 1) * sum((sum(group) - mean * len(group)) ** 2 for group in groups) / n**2
    if not robust:
        return float(n)
    # Student's t over the normal quantile, squared, to first order (Abramowitz and Stegun 26.7.5).
    few = (1 + (1.96**2 + 1) / (4 * (m - 1))) ** 2
    return min(float(n), max(float(m), n * independent / robust / few))


def clustered(clusters: Iterable[Sequence[bool]]) -> tuple[float, float]:
    """The Wilson interval of a rate at 95 % where answers to one prompt are not independent: that of the effective
    number of answers (Dean and Pagano 2015).

    Args:
        clusters: Whether it happened, for each prompt's answers.
    """
    groups = [list(group) for group in clusters]
    n, hits = sum(map(len, groups)), sum(map(sum, groups))
    size = effective_size(groups)
    return wilson(hits * size / n, size) if n else (0.0, 1.0)
