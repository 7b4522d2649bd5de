from __future__ import annotations

from collections.abc import Iterable

from anchorlm.records import wilson

_STARTS = 24
"""About how many places a window of layers is tried at, however deep the model is."""


def layer_sets(depth: int) -> list[tuple[int, ...]]:
    """The layers that a gate may average: single ones, and adjacent ones up to half of all."""
    widths = sorted({1, 2, 3, 4, max(1, depth // 4), max(1, depth // 3), max(1, depth // 2)})
    step = max(1, depth // _STARTS)
    return [
        tuple(range(start, start + width))
        for width in widths
        if width <= depth
        for start in range(0, depth - width + 1, 1 if width == 1 else step)
    ]


def tied(share: float, best: float, n: float) -> bool:
    """Whether two rates of `n` each lie within one another's 95 % interval: so many prompts do not tell them apart."""
    return share == best or (wilson(best * n, n)[0] <= share and best <= wilson(share * n, n)[1])


def wide_middle(windows: Iterable[tuple[int, ...]], depth: int) -> tuple[int, ...]:
    """Of sets of adjacent layers the one that is nearest to a third of all about the middle.

    On prompts of one style every layer looks as good as any; the first ones read the form, the last ones the next word.
    """

    def distance(layers: tuple[int, ...]) -> tuple[float, int]:
        width, center = len(layers), (layers[0] + layers[-1]) / 2
        return abs(width - depth / 3) / 2 + abs(center - _MIDDLE * (depth - 1)), -width

    return min(windows, key=distance)


_MIDDLE = 0.65
"""Where in a model harm is told best, as a share of its depth."""
