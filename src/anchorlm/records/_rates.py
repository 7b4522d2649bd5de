from __future__ import annotations

import math


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a rate at 95 % (Wilson 1927, equation for p1 and p2).

    Args:
        hits: How often it happened.
        n: Out of how many; with none, the interval is all of [0, 1].
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    p, spread = hits / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
