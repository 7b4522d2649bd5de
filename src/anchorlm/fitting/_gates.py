from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from anchorlm.records import UserError, wilson

_WIDEST = 4
"""Most adjacent layers whose scores are averaged."""


@dataclass(frozen=True, slots=True)
class GateChoice:
    """A gate that was tried: which layers it reads and where it opens.

    Attributes:
        layers: Whose scores are averaged; none where two readers share it.
        bias: Added to the score; the gate opens above 0.
        opened: Harmful prompts on which it opens.
        wrong: Harmless prompts on which it opens.
        margin: Between the 5 % lowest harmful and the 5 % highest harmless scores.
    """

    layers: tuple[int, ...]
    bias: float
    opened: int
    wrong: int
    margin: float


def rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its 95 % Wilson interval, as plain data."""
    low, high = wilson(hits, n)
    return {"hits": hits, "n": n, "rate": round(hits / n, 4), "low": round(low, 4), "high": round(high, 4)}


def best_bias(harmful: Tensor, harmless: Tensor, limit: float) -> float:
    """The bias that opens on most harmful prompts among those that open on at most `limit` of the harmless ones.

    Of the biases that do equally well on the harmful prompts, those that open on fewest harmless ones are taken, and
    of these the middle: whoever scores a little otherwise stays on his side.

    Args:
        harmful: Scores (n,).
        harmless: Scores (m,).
        limit: Share of the harmless prompts.
    """
    allowed = int(limit * len(harmless) + 1e-9)
    scores = torch.cat([harmful, harmless]).sort().values.tolist()
    floor = scores[0] - 1.0
    ranked = [*harmless.sort(descending=True).values.tolist(), floor]
    first = min((score for score in harmful.tolist() if score > ranked[allowed]), default=scores[-1] + 2.0)
    below = max((score for score in scores if score < first), default=floor)
    threshold: float = (below + first) / 2
    return -threshold


def choose_gate(harmful: Tensor, harmless: Tensor, limit: float) -> tuple[GateChoice, list[GateChoice]]:
    """The best gate among single layers and means of up to four adjacent ones, and all that were tried.

    Args:
        harmful: Scores (n, L) of harmful prompts, in units of half the distance between the classes; or (n, K, L) of K
            looks at each, of which the worst decides.
        harmless: Those of harmless ones, likewise.
        limit: Most of the harmless prompts on which it may open, as a share.

    Raises:
        UserError: Within the limit, no gate opens on anything.
    """
    depth = harmful.shape[-1]
    tried = []
    for width in range(1, min(_WIDEST, depth) + 1):
        for start in range(depth - width + 1):
            layers = tuple(range(start, start + width))
            tried.append(_tried(layers, mean_scores(harmful, layers), mean_scores(harmless, layers), limit))
    best = max(tried, key=lambda gate: (gate.opened, -gate.wrong, gate.margin))
    if not best.opened:
        raise UserError(
            f"No gate opens on any harmful prompt while it opens on at most {limit:.1%} of the harmless ones: raise "
            "--limit, or fit with more prompts that look like these."
        )
    return best, tried


def joint_gate(harmful: Tensor, harmless: Tensor, limit: float) -> GateChoice:
    """The gate that two readers share.

    Args:
        harmful: Means (n,) of their scores of harmful prompts.
        harmless: The same (m,) of harmless ones.
        limit: Most of the harmless prompts on which it may open, as a share.
    """
    return _tried((), harmful, harmless, limit)


def _tried(layers: tuple[int, ...], high: Tensor, low: Tensor, limit: float) -> GateChoice:
    bias = best_bias(high, low, limit)
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
