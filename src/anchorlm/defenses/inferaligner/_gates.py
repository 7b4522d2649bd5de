from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from anchorlm.records import UserError, wilson

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

    On prompts of one style every layer looks as good as any. The first ones read the form, the last ones the next word.
    """

    def distance(layers: tuple[int, ...]) -> tuple[float, int]:
        width, center = len(layers), (layers[0] + layers[-1]) / 2
        return abs(width - depth / 3) / 2 + abs(center - _MIDDLE * (depth - 1)), -width

    return min(windows, key=distance)


_MIDDLE = 0.65
"""Where in a model harm is told best, as a share of its depth."""


Limited = tuple[Tensor, float]
"""Scores of harmless prompts, (m,), (m, L) or (m, K, L), and the most of them on which a gate may open, as a share."""


@dataclass(frozen=True, slots=True)
class GateChoice:
    """A gate that was tried: which layers it reads and where it opens.

    Attributes:
        layers: Whose scores are averaged. None where two readers share it.
        bias: Added to the score. The gate opens above 0.
        opened: Harmful prompts on which it opens.
        wrong: Harmless prompts on which it opens, of all kinds.
        margin: Between the 5 % lowest harmful and the 5 % highest harmless scores.
    """

    layers: tuple[int, ...]
    bias: float
    opened: int
    wrong: int
    margin: float


def best_bias(harmful: Tensor, harmless: Sequence[Limited]) -> float:
    """The bias that opens on most harmful prompts among those that keep the limit of every kind of harmless ones.

    Of the biases that do equally well on the harmful prompts, those that open on fewest harmless ones are taken, and
    of these the middle: a prompt that scores a little otherwise stays on its side.

    Args:
        harmful: Scores (n,).
        harmless: Scores (m,) of each kind, with its limit.
    """
    scores = torch.cat([harmful, *(kind for kind, _ in harmless)]).sort().values.tolist()
    floor = scores[0] - 1.0
    highest = floor
    for kind, limit in harmless:
        ranked = [*kind.sort(descending=True).values.tolist(), floor]
        highest = max(highest, ranked[int(limit * len(kind) + 1e-9)])
    first = min((score for score in harmful.tolist() if score > highest), default=scores[-1] + 2.0)
    below = max((score for score in scores if score < first), default=floor)
    threshold: float = (below + first) / 2
    return -threshold


def choose_gate(harmful: Tensor, harmless: Sequence[Limited]) -> tuple[GateChoice, list[GateChoice]]:
    """The best gate among single layers and means of adjacent ones, and all that were tried.

    Gates whose rates lie within one another's 95 % interval are ties, because a few hundred prompts do not tell them
    apart. The first layers read the form of a prompt and the last ones the next word, and on prompts of one style both
    look as good as any. Of ties the one that generalizes is taken, a mean over a third of the layers about the middle.

    Args:
        harmful: Scores (n, L) of harmful prompts, in units of half the distance between the classes. Or (n, K, L) of K
            looks at each, of which the worst decides.
        harmless: Those of each kind of harmless ones, in the same way, with its limit.

    Raises:
        UserError: Within the limits, no gate opens on anything.
    """
    tried = [_tried(layers, harmful, harmless) for layers in layer_sets(harmful.shape[-1])]
    best = max(tried, key=lambda gate: (gate.opened, -gate.wrong, gate.margin))
    if not best.opened:
        raise UserError(
            "No gate opens on any harmful prompt while it keeps to the limits on harmless ones ("
            + ", ".join(f"{limit:.1%}" for _, limit in harmless)
            + "): raise --limit or --look-alike-limit, or fit with more prompts that look like these."
        )
    n = len(harmful)
    ties = {gate.layers: gate for gate in tried if tied(gate.opened / n, best.opened / n, n)}
    return ties[wide_middle(ties, harmful.shape[-1])], tried


def joint_gate(harmful: Tensor, harmless: Sequence[Limited]) -> GateChoice:
    """The gate that two readers share.

    Args:
        harmful: Means (n,) of their scores of harmful prompts.
        harmless: The same (m,) of each kind of harmless ones, with its limit.
    """
    return _placed((), harmful, harmless)


def _tried(layers: tuple[int, ...], harmful: Tensor, harmless: Sequence[Limited]) -> GateChoice:
    kinds = [(mean_scores(scores, layers), limit) for scores, limit in harmless]
    return _placed(layers, mean_scores(harmful, layers), kinds)


def _placed(layers: tuple[int, ...], high: Tensor, harmless: Sequence[Limited]) -> GateChoice:
    low = torch.cat([kind for kind, _ in harmless])
    bias = best_bias(high, harmless)
    opened, wrong = int((high > -bias).sum()), int((low > -bias).sum())
    return GateChoice(layers, bias, opened, wrong, float(high.quantile(0.05) - low.quantile(0.95)))


def corners(harmful: Tensor, harmless: Tensor) -> list[float]:
    """The biases, from never open to always open, at which a gate trades harmful for harmless prompts.

    Between two of them only one of the two rates changes, or both in step with no choice.
    """
    values = sorted({*harmful.tolist(), *harmless.tolist()})
    thresholds = [values[-1] + 1.0, *((a + b) / 2 for a, b in pairwise(values[::-1])), values[0] - 1.0]
    points = [
        (int((harmful > threshold).sum()), int((harmless > threshold).sum()), threshold) for threshold in thresholds
    ]
    kept = [
        point
        for index, point in enumerate(points)
        if index in (0, len(points) - 1) or _turns(points[index - 1], point, points[index + 1])
    ]
    return [-threshold for _, _, threshold in kept]


def _turns(before: tuple[int, int, float], here: tuple[int, int, float], after: tuple[int, int, float]) -> bool:
    """Whether a curve changes its direction here."""
    return (here[0] - before[0]) * (after[1] - here[1]) != (here[1] - before[1]) * (after[0] - here[0])


def mean_scores(scores: Tensor, layers: Sequence[int]) -> Tensor:
    """A gate's scores (n,), float64, from those of every layer (n, L), or of K looks (n, K, L) the worst."""
    means = look_means(scores, layers)
    return means if means.dim() == 1 else means.amax(dim=1)


def look_means(scores: Tensor, layers: Sequence[int]) -> Tensor:
    """A gate's scores (n, ...), float64, of every look, from those of every layer (n, ..., L)."""
    return scores[..., list(layers)].mean(dim=-1).double()
