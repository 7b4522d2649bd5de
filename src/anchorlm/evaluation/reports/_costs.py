from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from anchorlm.evaluation.reports._statistics import Estimate, resampled_prompts

SPENT = ("defense", "n", "median s", "95 % s", "first text s", "× undefended", "forwards per token",
           "s, many at once", "MB")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """What the responses of one defense cost, all targets together.

    Attributes:
        defense: Its label.
        n: Responses that were timed alone, one after another.
        median: Seconds of a whole response, with its 95 % interval.
        p95: The same, 95th percentile.
        first: Median seconds until the first text.
        forwards: Forwards of all models, per token of the response.
        ratio: Seconds of all over those of the undefended target on the same prompts, with its interval. None where
            that is not known.
        together: Seconds per response, many under way at once.
        peak: Most memory, bytes: of the accelerator, or of the process as far as it had come.
    """

    defense: str
    n: int
    median: Estimate
    p95: float
    first: float
    forwards: float
    ratio: Estimate | None
    together: float | None
    peak: int | None


def costs(timings: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> list[Cost]:
    """The costs of a run's defenses, in the recipe's order.

    Args:
        timings: What `read_timings` gives.
        about: What `read_recipe` gives.
    """
    bare = next((one["label"] for one in about["defenses"] if one["defense"] == "undefended"), None)
    alone: dict[str, dict[tuple[str, str, str], Mapping[str, Any]]] = {}
    together: dict[str, list[Mapping[str, Any]]] = {}
    for one in timings:
        if "together" in one:
            together.setdefault(one["defense"], []).append(one)
        else:
            alone.setdefault(one["defense"], {})[one["target"], one["data"], one["case"]] = one
    floor = alone.get(bare, {}) if bare else {}
    found = []
    for label in (one["label"] for one in about["defenses"]):
        if not (own := alone.get(label)):
            continue
        seconds = sorted(float(one["seconds"]) for one in own.values())
        shared = own.keys() & floor.keys()
        tokens = sum(int(one["tokens"]) for one in own.values())
        many = together.get(label, [])
        answered = sum(int(one["together"]) for one in many)
        found.append(
            Cost(
                defense=label,
                n=len(seconds),
                median=resampled_prompts([(at[1:], float(one["seconds"])) for at, one in own.items()], median),
                p95=seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
                first=median(float(one["first"] or one["seconds"]) for one in own.values()),
                forwards=sum(int(one["forwards"]) for one in own.values()) / max(1, tokens),
                ratio=resampled_prompts(
                    [(k[1:], (own[k]["seconds"], floor[k]["seconds"])) for k in sorted(shared)], _ratio
                )
                if shared
                else None,
                together=sum(float(one["seconds"]) for one in many) / answered if answered else None,
                peak=max((int(one["peak_memory"]) for one in many if one["peak_memory"]), default=None),
            )
        )
    return found


def cells(one: Cost) -> list[str]:
    """A row of the table, after `SPENT`."""
    ratio = "–" if one.ratio is None else f"{one.ratio.value:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
    return [
        one.defense,
        str(one.n),
        f"{one.median.value:.3f} ({one.median.low:.3f} to {one.median.high:.3f})",
        f"{one.p95:.3f}",
        f"{one.first:.3f}",
        ratio,
        f"{one.forwards:.2f}",
        "–" if one.together is None else f"{one.together:.3f}",
        "–" if one.peak is None else f"{one.peak / 1e6:.0f}",
    ]


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(own for own, _ in pairs) / sum(floor for _, floor in pairs)
