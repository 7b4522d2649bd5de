from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from anchorlm.defenses.inferaligner._across import RidgeMap, matching_layer, ridge_map
from anchorlm.defenses.inferaligner._activations import end_gate, prompt_gate, read_fitting, read_held_out
from anchorlm.defenses.inferaligner._measured import (
    accuracy,
    best_layers,
    cast_thresholds,
    fit_notes,
    form_figures,
    null_space_reader,
    set_figures,
    sign_of,
)
from anchorlm.engine import Engine, runtime
from anchorlm.judging import OPENINGS
from anchorlm.models import stamp
from anchorlm.records import Artifact, Messages, UserError, prompts_digest, sketches
from anchorlm.steering import (
    GIVEN,
    KIND,
    Directions,
    Gate,
    Pooling,
    PromptSets,
    Split,
    Whitening,
    cosine_scores,
    established,
    split_prompts,
    with_activations,
)
from anchorlm.team import EngineSettings, ModelLike, Started, start_engine

_DRAWS = 32
_WELL = 0.9
"""Balanced accuracy from which on a layer counts as one that separates the classes well."""

Across = Literal["auto", "always", "never"]
"""Whether vectors are mapped between the models. `auto`: where these are of two families."""

Told = Callable[[int, int], None]
"""Told how many of how many prompts have been read."""


def _untold(done: int, total: int) -> None:
    """Where no one is told."""


def fit_inferaligner(
    target: ModelLike,
    anchor: ModelLike,
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    *,
    sets: PromptSets | None = None,
    reader: ModelLike | None = None,
    whitening: Whitening = "fisher",
    across: Across = "auto",
    pooling: Pooling = "both",
    holdout: float = 0.25,
    seed: int = 0,
    engine: EngineSettings | None = None,
    progress: Told | None = None,
) -> Artifact:
    """Fits the gate on the target and the steering vectors on the anchor (arXiv 2401.11206, section 3).

    Every layer in one pass per prompt. Means as they stream in. A second gate reads an aligned model: where the target
    cannot tell harm, that one may (ours). Vectors of an anchor of another family cross by a ridge map between the two
    streams, which is fitted on the harmless prompts alone.

    Args:
        target: The model to guard: a Hub id or folder, its settings, a loaded `CausalModel`, or an engine.
        anchor: The safety-aligned model, in the same way.
        harmful: Harmful prompts. A text is one turn of the user.
        harmless: Harmless ones in the same style, the target's domain among them.
        sets: More prompts of both classes, look-alikes and tasks among them, each reported by itself
            (`shipped_prompts("train", "fit")`).
        reader: An aligned model whose activations the gate may read, too, if it is not the anchor.
        whitening: `none`: the gate reads along the mean difference, as in the paper. `fisher`: whitened (ours).
        across: Whether vectors are mapped between the models. `auto` where they are of two families.
        pooling: `end`: the gate reads a prompt's last token, as in the paper. `both`: also the mean over its own tokens
            (ours).
        holdout: Share of the prompts that measures only.
        seed: Of the split.
        engine: Limits of the engines that are started.
        progress: Told how many of how many prompts have been read.

    Returns:
        The artifact, not yet saved.

    Raises:
        UserError: Too few prompts, a model that cannot be loaded, or models that cannot be combined.
    """
    check_options(whitening, across, pooling)
    more = sets or PromptSets()
    split = split_prompts(harmful, harmless, more, holdout, seed)  # what is wrong is said before a weight is loaded
    limits = engine or EngineSettings()
    started: Started = []
    target, anchor = (
        with_activations(start_engine(model, limits, started), role)
        for model, role in ((target, "target"), (anchor, "anchor"))
    )
    second = None if reader is None else with_activations(start_engine(reader, limits, started), "reader")
    data = {
        "harmful": {"n": len(harmful), "digest": prompts_digest(harmful), "sketches": sketches(harmful)},
        "harmless": {"n": len(harmless), "digest": prompts_digest(harmless), "sketches": sketches(harmless)},
        **more.data,
        "holdout": holdout,
        "seed": seed,
        "instruments": {"sign": OPENINGS},
    }
    work = _fitted(target, anchor, second, split, data, whitening, across, pooling, progress or _untold)
    artifact = runtime().run(work)
    one, other = ([prompt for own in given.values() for prompt in own] for given in split.given)
    figures = {**artifact.figures, "form": form_figures(one, other)}
    return replace(artifact, figures={**figures, "notes": fit_notes(figures, artifact.settings)})


async def _fitted(
    target: Engine,
    anchor: Engine,
    reader: Engine | None,
    split: Split,
    data: Mapping[str, Any],
    whitening: Whitening,
    across: Across,
    pooling: Pooling,
    progress: Told,
) -> Artifact:
    """The artifact, without what is known of its prompts' form."""
    mapped = _mapped(target, anchor, across)
    done, total = 0, (2 if reader is None else 3) * split.size

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    reading = await read_fitting(target, split, pooling, mapped, tick)
    source = await read_fitting(anchor, split, pooling, mapped, tick)
    own, theirs = reading.directions, source.directions
    gate, second_gate = prompt_gate(reading, whitening), prompt_gate(source, whitening)
    along = end_gate(source, "none")  # the vectors that steer
    cosine = partial(cosine_scores, condition=own.unit)
    held = await read_held_out(target, split, pooling, tick, gate.scores, cosine)
    their_held = await read_held_out(anchor, split, pooling, tick, second_gate.scores, along.scores)
    measured, apart = accuracy(*held.scores[0]), accuracy(*their_held.scores[1])
    second = their_held.scores[0]
    if reader is not None:
        second_gate = prompt_gate(await read_fitting(reader, split, pooling, False, tick), whitening)
        second = (await read_held_out(reader, split, pooling, tick, second_gate.scores)).scores[0]
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
        if min(measured[layer]["balanced"], apart[place]["balanced"]) >= _WELL
    ]
    layers = well or [max(range(len(measured)), key=lambda layer: measured[layer]["balanced"])]
    cast = cast_thresholds(*held.scores[1])
    sign = await sign_of(target, shift, layers, split.held_harmful[GIVEN])
    gate_layers, second_layers = best_layers(*held.scores[0]), best_layers(*second)
    shift = Directions(sign["sign"] * shift.unit, shift.length)
    generator = torch.Generator().manual_seed(data["seed"])
    noise = torch.nn.functional.normalize(torch.randn(shift.unit.shape, generator=generator), dim=-1)
    return Artifact(
        kind=KIND,
        models={
            "target": stamp(target.model),
            "anchor": stamp(anchor.model),
            "reader": stamp((reader or anchor).model),
        },
        data=data,
        settings={
            "gate_layers": gate_layers,
            "reader_gate_layers": second_layers,
            "layers": layers,
            "positions": "prompt",
            "alpha": 0.5,
            "answer": "steer" if established(sign) else "refuse",
            "talk_answer": "refuse",
            "pooling": pooling,
            "bias": 0.0,
            "reader_bias": 0.0,
            "both_bias": 0.0,
            "cast_layer": max(range(len(cast)), key=lambda layer: cast[layer][1]),
        },
        figures={
            "whitening": whitening,
            "gate": measured,
            "reader gate": accuracy(*second),
            **set_figures(held.names, held.scores[0], gate_layers),
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


def check_options(whitening: str, across: str, pooling: str = "both") -> None:
    """Whether these are options of the fit.

    Raises:
        UserError: One of them is not.
    """
    options = ("whitening", whitening, Whitening), ("across", across, Across), ("pooling", pooling, Pooling)
    for name, value, known in ((name, value, get_args(kind)) for name, value, kind in options):
        if value not in known:
            raise UserError(f"{name} = {value!r} does not exist: choose {', '.join(known[:-1])} or {known[-1]}.")


def _mapped(target: Engine, anchor: Engine, across: str) -> bool:
    alike = stamp(target.model), stamp(anchor.model)
    same = all(getattr(alike[0], name) == getattr(alike[1], name) for name in ("architecture", "layers", "hidden_size"))
    same = same and alike[0].tokenizer == alike[1].tokenizer
    if across == "never" and alike[0].hidden_size != alike[1].hidden_size:
        raise UserError(
            f"Vectors of {anchor.model.name} are {alike[1].hidden_size} wide and {target.model.name} is "
            f"{alike[0].hidden_size}: leave across at auto, and they are mapped."
        )
    return across == "always" or (across == "auto" and not same)


def _chance(maps: Sequence[RidgeMap], own: Tensor, generator: torch.Generator) -> list[float]:
    """Per layer, how near random directions of the anchor come to the target's own once they are mapped: a map keeps
    what varies, so even they do.
    """
    return [
        round(float((found(torch.randn(_DRAWS, len(found.matrix), generator=generator)) @ unit).abs().max()), 4)
        for found, unit in zip(maps, own, strict=False)
    ]


def _gate_tensors(name: str, gate: Gate) -> dict[str, Tensor]:
    return {f"{name}.direction": gate.direction, f"{name}.bias": gate.bias, f"{name}.scale": gate.scale}
