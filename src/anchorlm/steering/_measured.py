from __future__ import annotations

from asyncio import gather
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from torch import Tensor

from anchorlm.engine import Edit, Engine, Steering
from anchorlm.judging import opens_refusing
from anchorlm.records import GenerationSettings, Messages, as_messages, wilson
from anchorlm.steering._companions import best_threshold
from anchorlm.steering._directions import Directions
from anchorlm.steering._layers import layer_sets, tied, wide_middle
from anchorlm.steering._sets import LOOK_ALIKES, TWINS

_PROBES, _PROBE_TOKENS = 16, 16
_WIDTH = 1.96


def best_layers(opened: Tensor, closed: Tensor) -> list[int]:
    """The layers whose mean score tells held-out prompts apart best; of those that do as well, wide middle ones.

    Args:
        opened: Scores (n, L) of harmful prompts.
        closed: Those (m, L) of harmless ones.
    """

    def right(layers: tuple[int, ...]) -> float:
        high, low = (scores[:, list(layers)].mean(dim=1) for scores in (opened, closed))
        return float((high > 0).double().mean() + (low <= 0).double().mean()) / 2

    depth, n = opened.shape[1], len(opened) + len(closed)
    balanced = {layers: right(layers) for layers in layer_sets(depth)}
    best = max(balanced.values())
    return list(wide_middle((layers for layers, share in balanced.items() if tied(share, best, n)), depth))


def accuracy(opened: Tensor, closed: Tensor) -> list[dict[str, Any]]:
    """How well the gate of each layer tells held-out prompts apart, with 95 % intervals.

    Args:
        opened: Its scores (n, L) of harmful prompts.
        closed: Its scores (m, L) of harmless ones.
    """
    n, m = len(opened), len(closed)
    figures = []
    for layer in range(opened.shape[1]):
        hits, passes = int((opened[:, layer] > 0).sum()), int((closed[:, layer] <= 0).sum())
        figures.append(
            {
                "layer": layer,
                "harmful opened": round(hits / n, 4),
                "harmful interval": [round(value, 4) for value in wilson(hits, n)],
                "harmless closed": round(passes / m, 4),
                "harmless interval": [round(value, 4) for value in wilson(passes, m)],
                "balanced": round((hits / n + passes / m) / 2, 4),
                "margin": round(float(opened[:, layer].quantile(0.05) - closed[:, layer].quantile(0.95)), 4),
            }
        )
    return figures


def rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its 95 % Wilson interval, as plain data."""
    low, high = wilson(hits, n)
    return {"hits": hits, "n": n, "rate": round(hits / n, 4), "low": round(low, 4), "high": round(high, 4)}


def separation(high: Tensor, low: Tensor) -> dict[str, Any] | None:
    """How often a harmful prompt's score (n,) is above a harmless one's (m,), ties counting half: the AUROC, with a
    95 % interval (Hanley and McNeil 1982); None where a class is empty.
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


def set_figures(
    names: tuple[Sequence[str], Sequence[str]], scores: tuple[Tensor, Tensor], layers: Sequence[int]
) -> dict[str, Any]:
    """On how many prompts of every set a gate opens, and how well it tells look-alikes from their harmful twins.

    Args:
        names: The set of each harmful and of each harmless prompt.
        scores: Those of the harmful prompts (n, L) and of the harmless ones (m, L).
        layers: Whose mean counts.
    """
    means = [each[:, list(layers)].mean(dim=1) for each in scores]
    return {"sets": set_rates(names, means, 0.0), "look-alikes told": look_alikes_told(names, means)}


def set_rates(names: Sequence[Sequence[str]], scores: Sequence[Tensor], threshold: float) -> list[dict[str, Any]]:
    """On how many prompts of every set a gate opens, by one score (n,) a prompt: harmful ones, then harmless ones."""
    return [
        {"set": name, "class": kind, "opened": rate(int((chosen > threshold).sum()), len(chosen))}
        for kind, own, found in zip(("harmful", "harmless"), names, scores, strict=True)
        for name in dict.fromkeys(own)
        if len(chosen := found[[place for place, one in enumerate(own) if one == name]])
    ]


def look_alikes_told(names: Sequence[Sequence[str]], scores: Sequence[Tensor]) -> dict[str, Any] | None:
    """The AUROC of harmful twins against look-alikes; where there are no twins, of all harmful prompts."""
    twins = [place for place, name in enumerate(names[0]) if name == TWINS]
    alike = [place for place, name in enumerate(names[1]) if name == LOOK_ALIKES]
    return separation(scores[0][twins] if twins else scores[0], scores[1][alike])


def cast_thresholds(high: Tensor, low: Tensor) -> list[tuple[float, float]]:
    """CAST's threshold and F1 at every layer, by the cosines of harmful (n, L) and harmless prompts (m, L)."""
    return [best_threshold(high[:, layer], low[:, layer]) for layer in range(high.shape[1])]


async def sign_of(
    engine: Engine, shift: Directions, layers: Sequence[int], prompts: Sequence[Messages | str]
) -> dict[str, Any]:
    """Which way along the vectors refusals lie: measured, because accounts of the paper disagree.

    An answer counts as refused if it opens as a refusal; that is not how reports grade, so that the instrument that
    chose here does not grade there. Where no prompt is refused either way nothing was measured; harm then lies where
    the anchor's harmful prompts do.
    """
    settings = GenerationSettings(max_new_tokens=_PROBE_TOKENS)
    probes = prompts[:_PROBES]

    async def refuses(prompt: Messages | str, edits: Mapping[int, Edit]) -> bool:
        async with engine.open(engine.model.encode(as_messages(prompt)), room=_PROBE_TOKENS) as row:
            row.steer(Steering(edits, 0.5, "prompt"))
            return opens_refusing((await row.generate(settings)).text)

    refused: dict[int, int] = {}
    for sign in (1, -1):
        edits = {layer: Edit(shift=sign * shift.length[layer] * shift.unit[layer]) for layer in layers}
        refused[sign] = sum(await gather(*(refuses(prompt, edits) for prompt in probes)))
    return {
        "sign": 1 if refused[1] >= refused[-1] else -1,
        "measured": any(refused.values()),
        "refused towards": refused[1],
        "refused away": refused[-1],
        "n": len(probes),
    }
