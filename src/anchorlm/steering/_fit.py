from __future__ import annotations

import random
from asyncio import gather
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from anchorlm.engine import Edit, Engine, Steering
from anchorlm.judging import OPENINGS, opens_refusing
from anchorlm.models import stamp
from anchorlm.records import (
    Artifact,
    GenerationSettings,
    Messages,
    UserError,
    as_messages,
    prompt_key,
    prompts_digest,
    sketches,
    wilson,
)
from anchorlm.steering._across import RidgeMap, matching_layer, ridge_map
from anchorlm.steering._aligner import KIND
from anchorlm.steering._companions import best_threshold, null_space_reader
from anchorlm.steering._directions import Directions, Whitening, fisher_directions, harm_directions
from anchorlm.steering._gate import Gate, cosine_scores
from anchorlm.steering._looks import prompt_activations
from anchorlm.steering._moments import Moments
from anchorlm.steering._trust import established

_PROBES, _PROBE_TOKENS = 16, 16
_DRAWS = 32
_WELL = 0.9
"""Balanced accuracy from which on a layer counts as one that separates the classes well."""

Across = Literal["auto", "always", "never"]
"""Whether vectors are mapped between the models; `auto`: where these are of two families."""

Progress = Callable[[int, int], None]
"""Told how many of how many prompts have been read."""


@dataclass(slots=True)
class _Reading:
    """What one model's activations on the fitting prompts gave."""

    harmful: Moments
    harmless: Moments
    kept: list[Tensor]  # (L, H) of every harmless prompt, where a map between two models is fitted on them

    @property
    def directions(self) -> Directions:
        return harm_directions(self.harmful, self.harmless)


@dataclass(frozen=True, slots=True)
class _Split:
    """Prompts by class, those that fit and those that are held out to measure."""

    harmful: list[Messages | str]
    harmless: list[Messages | str]
    held_harmful: list[Messages | str]
    held_harmless: list[Messages | str]

    @property
    def size(self) -> int:
        return sum(map(len, (self.harmful, self.harmless, self.held_harmful, self.held_harmless)))


async def fit_inferaligner(
    target: Engine,
    anchor: Engine,
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    *,
    reader: Engine | None = None,
    whitening: Whitening = "fisher",
    across: Across = "auto",
    holdout: float = 0.25,
    seed: int = 0,
    progress: Progress | None = None,
) -> Artifact:
    """Fits the gate on the target and the steering vectors on the anchor (arXiv 2401.11206, section 3).

    Every layer in one pass per prompt; means as they stream in. A second gate reads an aligned model: where the target
    cannot tell harm, that one may (ours).

    Args:
        target: The model to guard.
        anchor: The safety-aligned model; of another family, its vectors cross by a ridge map between the two streams,
            fitted on the harmless prompts alone.
        harmful: Harmful prompts, in the style of the harmless ones; a text is one turn of the user.
        harmless: Harmless prompts, those of the target's domain among them.
        reader: The aligned model of the second gate, if it is not the anchor.
        whitening: `none`: the gate reads along the mean difference, as in the paper; `fisher`: whitened (ours).
        across: Whether vectors are mapped between the models; `auto` where they are of two families.
        holdout: Share of the prompts that measures only.
        seed: Of the split.
        progress: Told how far it is.

    Raises:
        UserError: Too few prompts, an option that does not exist, or models that cannot be combined.
    """
    check_options(whitening, across)
    split = _split(harmful, harmless, holdout, seed)
    mapped = _mapped(target, anchor, across)
    done, total = 0, (2 if reader is None else 3) * split.size

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    reading = await _read(target, split, mapped, tick)
    source = await _read(anchor, split, mapped, tick)
    own, theirs = reading.directions, source.directions
    gate, second_gate = _gate(reading, whitening), _gate(source, whitening)
    along = _gate(source, "none")  # the vectors that steer
    held = await _held_out(target, split, tick, gate.scores, partial(cosine_scores, condition=own.unit))
    their_held = await _held_out(anchor, split, tick, second_gate.scores, along.scores)
    accuracy, apart, second_accuracy = (
        _accuracy(*one) for one in (held.scores[0], their_held.scores[1], their_held.scores[0])
    )
    if reader is not None:
        second_gate = _gate(await _read(reader, split, False, tick), whitening)
        second_accuracy = _accuracy(*(await _held_out(reader, split, tick, second_gate.scores)).scores[0])
    maps: list[RidgeMap] = []
    places = [matching_layer(layer, len(own.length), len(theirs.length)) for layer in range(len(own.length))]
    shift = Directions(theirs.unit[places], theirs.length[places])
    if mapped:
        xs, ys = torch.stack(source.kept, dim=1), torch.stack(reading.kept, dim=1)  # (L, n, H)
        maps = [ridge_map(xs[place], ys[layer]) for layer, place in enumerate(places)]
        units = torch.stack([found(theirs.unit[place]) for found, place in zip(maps, places, strict=True)])
        shift = Directions(units, own.length.clone())
    well = [
        layer
        for layer, place in enumerate(places)
        if min(accuracy[layer]["balanced"], apart[place]["balanced"]) >= _WELL
    ]
    layers = well or [max(range(len(accuracy)), key=lambda layer: accuracy[layer]["balanced"])]
    cast = _cast(*held.scores[1])
    sign = await _sign(target, shift, layers, split.held_harmful)
    shift = Directions(sign["sign"] * shift.unit, shift.length)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.nn.functional.normalize(torch.randn(shift.unit.shape, generator=generator), dim=-1)
    return Artifact(
        kind=KIND,
        models={
            "target": stamp(target.model),
            "anchor": stamp(anchor.model),
            "reader": stamp((reader or anchor).model),
        },
        data={
            "harmful": {"n": len(harmful), "digest": prompts_digest(harmful), "sketches": sketches(harmful)},
            "harmless": {"n": len(harmless), "digest": prompts_digest(harmless), "sketches": sketches(harmless)},
            "holdout": holdout,
            "seed": seed,
            "instruments": {"sign": OPENINGS},
        },
        settings={
            "gate_layers": [_best_layer(accuracy)],
            "reader_gate_layers": [_best_layer(second_accuracy)],
            "layers": layers,
            "positions": "prompt",
            "alpha": 0.5,
            "answer": "steer" if established(sign) else "refuse",
            "talk_answer": "refuse",
            "bias": 0.0,
            "reader_bias": 0.0,
            "both_bias": 0.0,
            "cast_layer": max(range(len(cast)), key=lambda layer: cast[layer][1]),
        },
        figures={
            "whitening": whitening,
            "gate": accuracy,
            "reader gate": second_accuracy,
            "cast f1": [round(f1, 4) for _, f1 in cast],
            "sign": sign,
            "mapped": [{"r2": round(found.r2, 4), "strength": found.strength} for found in maps],
            "cosine with the target's own direction": [
                round(float(a @ b), 4) for a, b in zip(shift.unit, own.unit, strict=True)
            ],
            "cosine of a random direction": [round(float(a @ b), 4) for a, b in zip(noise, own.unit, strict=True)],
            "largest cosine of a random direction through the map": _chance(maps, own.unit, generator),
            "cosine of its own direction on held-out prompts": [
                round(float(a @ b), 4) for a, b in zip(held.directions.unit, own.unit, strict=True)
            ],
        },
        tensors={
            **_gate_tensors("gate", gate),
            **_gate_tensors("reader_gate", second_gate),
            "shift.unit": shift.unit,
            "shift.length": shift.length,
            "own.unit": own.unit,
            "own.length": own.length,
            "random.unit": noise,
            "cast.threshold": torch.tensor([threshold for threshold, _ in cast]),
            "alphasteer.read": null_space_reader(reading.harmful, reading.harmless),
        },
    )


def check_options(whitening: str, across: str) -> None:
    """Whether these are options of the fit.

    Raises:
        UserError: One of them is not.
    """
    for name, value, known in (("whitening", whitening, get_args(Whitening)), ("across", across, get_args(Across))):
        if value not in known:
            raise UserError(f"{name} = {value!r} does not exist: choose {', '.join(known[:-1])} or {known[-1]}.")


def _split(harmful: Sequence[Messages | str], harmless: Sequence[Messages | str], holdout: float, seed: int) -> _Split:
    if not 0 < holdout <= 0.5:
        raise UserError(f"holdout = {holdout} must lie above 0 and up to 0.5: it is the share that measures only.")
    keyed = [{prompt_key(prompt): prompt for prompt in prompts} for prompts in (harmful, harmless)]
    if overlap := keyed[0].keys() & keyed[1].keys():
        raise UserError(
            f"{len(overlap)} prompts are both harmful and harmless, such as {min(overlap)!r}: mend the files."
        )
    parts: list[list[Messages | str]] = []
    for name, prompts in zip(("harmful", "harmless"), keyed, strict=True):
        unique = [prompts[key] for key in sorted(prompts)]
        if len(unique) < 8:
            raise UserError(f"There are {len(unique)} distinct {name} prompts: give at least 8, better 64 or more.")
        random.Random(seed).shuffle(unique)
        cut = max(2, round(len(unique) * holdout))
        parts += [unique[cut:], unique[:cut]]
    return _Split(parts[0], parts[2], parts[1], parts[3])


def _mapped(target: Engine, anchor: Engine, across: str) -> bool:
    alike = stamp(target.model), stamp(anchor.model)
    same = all(getattr(alike[0], name) == getattr(alike[1], name) for name in ("architecture", "layers", "hidden_size"))
    same = same and alike[0].tokenizer == alike[1].tokenizer
    if across == "never" and alike[0].hidden_size != alike[1].hidden_size:
        raise UserError(
            f"Vectors of {anchor.model.name} are {alike[1].hidden_size} wide and {target.model.name} is "
            f"{alike[0].hidden_size}: leave across at auto, so that they are mapped."
        )
    return across == "always" or (across == "auto" and not same)


async def _read(engine: Engine, split: _Split, keep: bool, tick: Callable[[], None]) -> _Reading:
    reading = _Reading(Moments(0), Moments(1), [])
    for moments, prompts in ((reading.harmful, split.harmful), (reading.harmless, split.harmless)):
        async for activations in prompt_activations(engine, prompts):
            _add(moments, activations, engine)
            # A map that had seen both classes would carry one's mean onto the other's, whatever the anchor knows.
            if keep and moments is reading.harmless:
                reading.kept.append(activations.float())
            tick()
    if (reading.directions.length <= 1e-5 * reading.harmless.mean.norm(dim=-1)).all():
        raise UserError(
            f"{engine.model.name} reads harmful and harmless prompts alike: check that its chat template shows them."
        )
    return reading


@dataclass(frozen=True, slots=True)
class _Held:
    """What the held-out prompts say.

    Attributes:
        directions: Theirs.
        scores: By each scorer in turn, those of the harmful prompts (n, L) and of the harmless ones (m, L).
    """

    directions: Directions
    scores: list[tuple[Tensor, Tensor]]


async def _held_out(
    engine: Engine, split: _Split, tick: Callable[[], None], *scorers: Callable[[Tensor], Tensor]
) -> _Held:
    """Scores the held-out prompts as they come, so that no activations pile up."""
    moments = Moments(0), Moments(1)
    scores: list[list[Tensor]] = []
    for own, prompts in zip(moments, (split.held_harmful, split.held_harmless), strict=True):
        rows: list[list[Tensor]] = [[] for _ in scorers]
        async for activations in prompt_activations(engine, prompts):
            _add(own, activations, engine)
            for kept, scorer in zip(rows, scorers, strict=True):
                kept.append(scorer(activations))
            tick()
        scores.append([torch.stack(kept) for kept in rows])
    return _Held(harm_directions(*moments), list(zip(*scores, strict=True)))


def _add(moments: Moments, activations: Tensor, engine: Engine) -> None:
    try:
        moments.add(activations)
    except ValueError:
        raise UserError(
            f"{engine.model.name} has activations that are not numbers: check its weights, or load it in bfloat16 or "
            "float32."
        ) from None


def _chance(maps: Sequence[RidgeMap], own: Tensor, generator: torch.Generator) -> list[float]:
    """Per layer, how near random directions of the anchor come to the target's own once they are mapped: a map keeps
    what varies, so that even they do.
    """
    return [
        round(float((found(torch.randn(_DRAWS, len(found.matrix), generator=generator)) @ unit).abs().max()), 4)
        for found, unit in zip(maps, own, strict=False)
    ]


def _gate(reading: _Reading, whitening: Whitening) -> Gate:
    """The gate on one model's activations."""
    unit = reading.directions.unit if whitening == "none" else fisher_directions(reading.harmful, reading.harmless)
    return Gate.fit(unit, reading.harmful.mean, reading.harmless.mean)


def _gate_tensors(name: str, gate: Gate) -> dict[str, Tensor]:
    return {f"{name}.direction": gate.direction, f"{name}.bias": gate.bias, f"{name}.scale": gate.scale}


def _best_layer(accuracy: Sequence[Mapping[str, Any]]) -> int:
    return max(range(len(accuracy)), key=lambda layer: (accuracy[layer]["balanced"], accuracy[layer]["margin"]))


def _accuracy(opened: Tensor, closed: Tensor) -> list[dict[str, Any]]:
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


def _cast(high: Tensor, low: Tensor) -> list[tuple[float, float]]:
    """CAST's threshold and F1 at every layer, by the cosines of harmful (n, L) and harmless prompts (m, L)."""
    return [best_threshold(high[:, layer], low[:, layer]) for layer in range(high.shape[1])]


async def _sign(
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
