from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Protocol

from anchorlm.defenses._base import Defense
from anchorlm.defenses.inferenceguard._conformal import (
    Method,
    allowed,
    calibrated_limit,
    check_level,
    labels_needed,
    least_refused,
    statement,
    upper_bound,
)
from anchorlm.defenses.inferenceguard._defense import InferenceGuard
from anchorlm.defenses.inferenceguard._pipeline import CALIBRATION, generation_data
from anchorlm.engine import runtime
from anchorlm.records import (
    Artifact,
    GenerationSettings,
    Messages,
    Request,
    UserError,
    as_messages,
    data_digest,
    sketches,
)
from anchorlm.records import prompt_key as key
from anchorlm.team import Progress


def rounding(cost: float) -> float:
    """By how much a cost may differ where the same text is read in another batch, in half precision, too."""
    return 1e-3 + 2**-8 * abs(cost)


@dataclass(frozen=True, slots=True)
class Labeled:
    """What the pipeline answered to one prompt, and what an independent labeler thinks of it.

    Attributes:
        prompt: The conversation, or one turn of the user.
        response: What was given.
        unsafe: The label.
        refused: Whether the configured refusal was given, which is nothing that the limit could hold back.
    """

    prompt: Messages | str
    response: str
    unsafe: bool
    refused: bool = False


class Pipeline(Protocol):
    """What a calibration asks of a guard."""

    defense: Defense
    generation: GenerationSettings


def calibrate_inferenceguard(
    guard: Pipeline,
    labels: Sequence[Labeled],
    *,
    risk: float = 0.05,
    method: Method = "crc",
    confidence: float = 0.95,
    labeler: str = "the given labels",
    progress: Progress | None = None,
) -> Artifact:
    """Chooses the highest cost at which a response may be emitted so that few prompts get an unsafe one.

    Args:
        guard: The very pipeline that made the responses: inferenceguard without a calibration.
        labels: Its responses with labels. Every prompt of the calibration set, refused ones included.
        risk: The most prompts that may get an unsafe response, as a share.
        method: `crc` bounds the expectation, `ltt` the share with a `confidence` over calibration sets.
        confidence: 1 - delta, for `ltt`.
        labeler: Who gave the labels, for the statement.
        progress: Told what is done, and how much of it.

    Returns:
        The artifact, not yet saved, bound to the pipeline. `figures["statement"]` says what it shows.

    Raises:
        UserError: Too few labels for the risk, another defense, or responses that this pipeline did not make.
    """
    defense = guard.defense
    if not isinstance(defense, InferenceGuard) or defense.settings.release != "whole":
        raise UserError("Only inferenceguard with release = whole can be calibrated: choose it in the recipe.")
    if defense.settings.calibration is not None:
        raise UserError("This pipeline has a calibration already: leave it out while making another.")
    if twice := len(labels) - len({key(as_messages(one.prompt)) for one in labels}):
        raise UserError(
            f"{twice} of the {len(labels)} rows label a prompt again, but a calibration counts on independent ones: "
            "leave one row for each prompt."
        )
    check_level(risk, method, confidence)
    n = len(labels)
    if allowed(n, risk, method, confidence) < 0:
        calibrated_limit([inf] * n, [False] * n, risk, method, confidence)  # says how many are needed, at once
    costs = runtime().run(_costs(defense, labels, progress or (lambda what, done, total: None)))
    unsafe = [one.unsafe for one in labels]
    limit = calibrated_limit(costs, unsafe, risk, method, confidence)
    if isfinite(limit):
        limit -= rounding(limit)  # so that what was held back here is held back in any batch

    def risk_at(most: float) -> dict[str, Any]:
        given = [bad for bad, cost in zip(unsafe, costs, strict=True) if isfinite(cost) and cost <= most]
        return {"unsafe and emitted": sum(given), "emitted": len(given), "n": n}

    from anchorlm.models import stamp

    return Artifact(
        kind=CALIBRATION,
        models={"target": stamp(defense.target.model)},
        data={
            "labels": {
                "n": n,
                "digest": data_digest(f"{key(one.prompt)}\n{one.response}\n{one.unsafe}" for one in labels),
                "sketches": sketches(one.prompt for one in labels),
            },
            "labeler": labeler,
        },
        settings={
            "limit": limit if isfinite(limit) else None,
            "margin": max(0.0, defense.settings.budget - limit),
            "risk": risk,
            "method": method,
            "confidence": confidence,
            "pipeline": defense.pipeline,
            "parts": defense.parts,
            "generation": generation_data(guard.generation),
        },
        figures={
            # After the choice no bound holds but the statement: the same labels chose the limit.
            "before": {
                **(seen := risk_at(defense.settings.budget)),
                "upper bound": upper_bound(seen["unsafe and emitted"], n, confidence),
            },
            "after": (left := risk_at(min(limit, defense.settings.budget))),
            "refused at least": least_refused(seen["unsafe and emitted"], n, risk, method, confidence),
            "refused": seen["emitted"] - left["emitted"],
            "labels needed": labels_needed(risk, method, confidence),
            "statement": statement(n, risk, method, confidence, labeler),
        },
        tensors={},
    )


_OVER = 0.02
"""Share of responses whose cost may lie over the budget when they are read again. Near the budget, a model in bfloat16
may read a text otherwise in another batch, by more than `rounding`."""


async def _costs(defense: InferenceGuard, labels: Sequence[Labeled], step: Progress) -> list[float]:
    """The cost of each response, at most the budget. Infinite where the refusal was given."""
    costs: list[float] = []
    over: list[tuple[int, float]] = []
    for number, one in enumerate(labels, start=1):
        cost = inf
        if one.refused and one.unsafe:
            raise UserError(
                f"Response {number} of the labels is the refusal, and labeled unsafe, which no limit can hold back: "
                "take another refusal, or correct the label."
            )
        if not one.refused:
            (cost,) = await defense.scores("cost", Request(one.prompt), [one.response])
            if cost > defense.settings.budget + rounding(cost):
                over.append((number, cost))
            cost = min(cost, defense.settings.budget)
        costs.append(cost)
        step("Reading the labels", number, len(labels))
    if len(over) > _OVER * sum(not one.refused for one in labels):
        number, cost = over[0]
        raise UserError(
            f"Response {number} of the labels costs {cost:.3f}, over the budget of {defense.settings.budget:g}, so "
            "this pipeline cannot have made it: label what the pipeline itself answers."
        )
    return costs
