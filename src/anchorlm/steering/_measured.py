from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from torch import Tensor

from anchorlm.records import wilson
from anchorlm.steering._sets import LOOK_ALIKES, TWINS

_WIDTH = 1.96


def rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its 95 % Wilson interval, as plain data."""
    low, high = wilson(hits, n)
    return {"hits": hits, "n": n, "rate": round(hits / n, 4), "low": round(low, 4), "high": round(high, 4)}


def separation(high: Tensor, low: Tensor) -> dict[str, Any] | None:
    """How often a harmful prompt's score (n,) is above a harmless one's (m,), ties counting half: the AUROC, with a
    95 % interval (Hanley and McNeil 1982). None where a class is empty.
    """
    n, m = len(high), len(low)
    if not n or not m:
        return None
    above = high[:, None].double() - low[None].double()
    area = float((above > 0).double().mean() + (above == 0).double().mean() / 2)
    one, other = area / (2 - area), 2 * area**2 / (1 + area)
    spread = sqrt(max(0.0, area * (1 - area) + (n - 1) * (one - area**2) + (m - 1) * (other - area**2)) / (n * m))
    bounds = max(0.0, area - _WIDTH * spread), min(1.0, area + _WIDTH * spread)
    return {"auroc": round(area, 4), "low": round(bounds[0], 4), "high": round(bounds[1], 4), "n": n, "m": m}


def set_rates(names: Sequence[Sequence[str]], scores: Sequence[Tensor], threshold: float) -> list[dict[str, Any]]:
    """On how many prompts of every set a gate opens, by one score (n,) a prompt: harmful ones, then harmless ones."""
    return [
        {"set": name, "class": kind, "opened": rate(int((chosen > threshold).sum()), len(chosen))}
        for kind, own, found in zip(("harmful", "harmless"), names, scores, strict=True)
        for name in dict.fromkeys(own)
        if len(chosen := found[[place for place, one in enumerate(own) if one == name]])
    ]


def look_alikes_told(names: Sequence[Sequence[str]], scores: Sequence[Tensor]) -> dict[str, Any] | None:
    """The AUROC of harmful twins against look-alikes. Where there are no twins, of all harmful prompts."""
    twins = [place for place, name in enumerate(names[0]) if name == TWINS]
    alike = [place for place, name in enumerate(names[1]) if name == LOOK_ALIKES]
    return separation(scores[0][twins] if twins else scores[0], scores[1][alike])
