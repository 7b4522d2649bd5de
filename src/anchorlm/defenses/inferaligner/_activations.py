from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlm.engine import Engine
from anchorlm.records import UserError
from anchorlm.steering import (
    Directions,
    Gate,
    Moments,
    Pooling,
    Split,
    Whitening,
    fisher_directions,
    harm_directions,
    prompt_activations,
)


@dataclass(slots=True)
class Reading:
    """What one model's activations on the fitting prompts gave."""

    harmful: Moments
    harmless: Moments
    means: tuple[Moments, Moments] | None  # of the means over prompts, where the gate reads these, too
    kept: list[Tensor]  # (L, H) of every harmless prompt, where a map between two models is fitted on them

    @property
    def directions(self) -> Directions:
        return harm_directions(self.harmful, self.harmless)


async def read_fitting(engine: Engine, split: Split, pooling: Pooling, keep: bool, tick: Callable[[], None]) -> Reading:
    means = (Moments(0), Moments(1)) if pooling == "both" else None
    reading = Reading(Moments(0), Moments(1), means, [])
    for harmless, (moments, prompts) in enumerate(
        ((reading.harmful, split.harmful), (reading.harmless, split.harmless))
    ):
        async for activations in prompt_activations(engine, prompts, pooling):
            end = _end(activations, pooling)
            _add(moments, end, engine)
            if means is not None:
                _add(means[harmless], activations[:, end.shape[1] :], engine)
            # A map that had seen both classes would carry one's mean onto the other's, whatever the anchor knows.
            if keep and harmless:
                reading.kept.append(end.float())
            tick()
    if (reading.directions.length <= 1e-5 * reading.harmless.mean.norm(dim=-1)).all():
        raise UserError(
            f"{engine.model.name} reads harmful and harmless prompts alike: check that its chat template shows them."
        )
    return reading


@dataclass(frozen=True, slots=True)
class Held:
    """What the held-out prompts say.

    Attributes:
        directions: Theirs.
        names: Of the set of each harmful and of each harmless prompt.
        scores: By each scorer in turn, those of the harmful prompts (n, L) and of the harmless ones (m, L).
    """

    directions: Directions
    names: tuple[list[str], list[str]]
    scores: list[tuple[Tensor, Tensor]]


async def read_held_out(
    engine: Engine,
    split: Split,
    pooling: Pooling,
    tick: Callable[[], None],
    gate: Callable[[Tensor], Tensor],
    *scorers: Callable[[Tensor], Tensor],
) -> Held:
    """Scores the held-out prompts as they come, so no activations pile up: by the gate, and by what reads their
    last token alone.
    """
    moments = Moments(0), Moments(1)
    scores: list[list[Tensor]] = []
    names: tuple[list[str], list[str]] = ([], [])
    for own, sets, known in zip(moments, (split.held_harmful, split.held_harmless), names, strict=True):
        rows: list[list[Tensor]] = [[] for _ in (gate, *scorers)]
        known += [name for name, prompts in sets.items() for _ in prompts]
        given = [each for prompts in sets.values() for each in prompts]
        async for activations in prompt_activations(engine, given, pooling):
            end = _end(activations, pooling)
            _add(own, end, engine)
            for kept, score in zip(rows, (gate(activations), *(scorer(end) for scorer in scorers)), strict=True):
                kept.append(score)
            tick()
        scores.append([torch.stack(kept) for kept in rows])
    return Held(harm_directions(*moments), names, list(zip(*scores, strict=True)))


def _end(activations: Tensor, pooling: Pooling) -> Tensor:
    """Those at the last token (L, H)."""
    return activations[:, : activations.shape[1] // 2] if pooling == "both" else activations


def _add(moments: Moments, activations: Tensor, engine: Engine) -> None:
    try:
        moments.add(activations)
    except ValueError:
        raise UserError(
            f"{engine.model.name} has activations that are not numbers: check its weights, or load it in bfloat16 or "
            "float32."
        ) from None


def prompt_gate(reading: Reading, whitening: Whitening) -> Gate:
    """The gate on one model's activations."""
    end = end_gate(reading, whitening)
    return end if reading.means is None else Gate.joined(end, _fitted_gate(*reading.means, whitening))


def end_gate(reading: Reading, whitening: Whitening) -> Gate:
    """The one that reads the last token alone."""
    return _fitted_gate(reading.harmful, reading.harmless, whitening)


def _fitted_gate(harmful: Moments, harmless: Moments, whitening: Whitening) -> Gate:
    plain = whitening == "none"
    unit = harm_directions(harmful, harmless).unit if plain else fisher_directions(harmful, harmless)
    return Gate.fit(unit, harmful.mean, harmless.mean)
