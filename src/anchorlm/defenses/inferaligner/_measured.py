from __future__ import annotations

import re
from asyncio import gather
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log1p
from random import Random
from typing import Any

import torch
from torch import Tensor

from anchorlm.defenses.inferaligner._gates import layer_sets, tied, wide_middle
from anchorlm.engine import Edit, Engine, Steering
from anchorlm.judging import opens_refusing
from anchorlm.records import GenerationSettings, Messages, as_messages, turn_text, wilson
from anchorlm.steering import Directions, Moments, logistic, look_alikes_told, separation, set_rates

_PROBES, _PROBE_TOKENS = 16, 16


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


def cast_thresholds(high: Tensor, low: Tensor) -> list[tuple[float, float]]:
    """CAST's threshold and F1 at every layer, by the cosines of harmful (n, L) and harmless prompts (m, L)."""
    return [best_threshold(high[:, layer], low[:, layer]) for layer in range(high.shape[1])]


async def sign_of(
    engine: Engine, shift: Directions, layers: Sequence[int], prompts: Sequence[Messages | str]
) -> dict[str, Any]:
    """Which way along the vectors refusals lie: measured, because accounts of the paper disagree.

    An answer counts as refused if it opens as a refusal; that is not how reports grade, so the instrument that
    chose here does not grade there. Where no prompt is refused either way nothing was measured; harm then lies where
    the anchor's harmful prompts do.
    """
    settings = GenerationSettings(max_new_tokens=_PROBE_TOKENS)
    probes = prompts[:_PROBES]

    async def refuses(prompt: Messages | str, edits: Mapping[int, Edit]) -> bool:
        ids = engine.model.encode(as_messages(prompt), closed=True)  # a thought would take up the few tokens
        async with engine.open(ids, room=_PROBE_TOKENS) as row:
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


def null_space_reader(harmful: Moments, harmless: Moments, share: float = 0.6, ridge: float = 10.0) -> Tensor:
    """What AlphaSteer reads of a stream: w_l = P D^T for a constant refusal vector (arXiv 2506.07022, section 4).

    P projects onto the `share` of directions in which harmless activations have the least energy, or onto all in which
    they have none. D solves
    `min |D P X_harmful - R|^2 + ridge |D P|^2` with every column of R the refusal vector r; then `D P = r w^T`, so
    the H x H matrix of the paper is a vector w with `w . x = 0` on harmless activations and about 1 on harmful ones.

    Args:
        harmful: Moments of harmful activations (L, H).
        harmless: The same of harmless ones.
        share: Share of the directions that counts as the null space at least.
        ridge: Weight of the penalty, per prompt's mean square.

    Returns:
        (L, H), float32.
    """
    readers = []
    for bad, good in zip(harmful.sample.double(), harmless.sample.double(), strict=True):  # (n, H) each
        energy, vectors = torch.linalg.eigh(good.T @ good / len(good))  # ascending
        # Directions without any energy are no more null than one another: all of them belong to the space.
        limit = torch.maximum(energy[max(1, round(share * len(energy))) - 1], 1e-9 * energy[-1])
        basis = vectors[:, energy <= limit]
        inside = bad @ basis  # (n, r)
        # Where harmful prompts have next to nothing there either, nothing is read: no noise is blown up.
        strength = ridge * torch.maximum(inside.square().mean(), 1e-9 * bad.square().mean()).clamp_min(1e-30)
        penalty = strength * torch.eye(basis.shape[1], dtype=inside.dtype)
        weights = torch.linalg.solve(inside.T @ inside + penalty, inside.sum(dim=0))
        readers.append((basis @ weights).float())
    return torch.stack(readers)


def best_threshold(positive: Tensor, negative: Tensor) -> tuple[float, float]:
    """The threshold with the best F1, by trying every midpoint between two scores (CAST's grid search).

    Args:
        positive: Scores (n,) that should be above it.
        negative: Scores (m,) that should not.

    Returns:
        Threshold and F1.
    """
    values = torch.tensor(sorted({*positive.tolist(), *negative.tolist()}))
    middles = torch.cat([values[:1] - 1e-6, (values[1:] + values[:-1]) / 2])
    hits = (positive[None] > middles[:, None]).sum(dim=1)
    wrong = (negative[None] > middles[:, None]).sum(dim=1)
    f1 = 2 * hits / (hits + wrong + len(positive))
    best = int(f1.argmax())
    return float(middles[best]), float(f1[best])


_FORM, _MAP, _FIRST = 0.85, 0.1, 0.1
"""AUROC from which on the form tells the classes, share of variance below which a map explains nothing, and share of
the layers that count as the first."""

_FOLDS, _WORDS, _PENALTY = 5, 24, 0.01


def form_figures(harmful: Sequence[Messages | str], harmless: Sequence[Messages | str]) -> dict[str, Any] | None:
    """How well the classes are told apart by nothing but their form: the AUROC of a small logistic regression on
    length, question mark and first word, cross-validated.

    Args:
        harmful: Harmful prompts.
        harmless: Harmless ones.
    """
    texts = [_text(prompt) for prompts in (harmful, harmless) for prompt in prompts]
    labels = torch.tensor([1.0] * len(harmful) + [0.0] * len(harmless))
    order = list(range(len(texts)))
    Random(0).shuffle(order)
    scores = torch.zeros(len(texts), dtype=torch.float64)
    for fold in range(_FOLDS):
        held = order[fold::_FOLDS]
        kept = [place for place in order if place not in set(held)]
        rows = _features([texts[place] for place in kept], texts)
        weights, offset = logistic(rows[kept], labels[kept], _PENALTY)
        scores[held] = rows[held] @ weights + offset
    return separation(scores[labels == 1], scores[labels == 0])


def _features(known: Sequence[str], texts: Sequence[str]) -> Tensor:
    """(n, d): logarithm of the number of words, question mark, which of the usual first words of the known texts."""
    usual = [word for word, _ in Counter(map(_first, known)).most_common(_WORDS)]
    return torch.tensor(
        [
            [log1p(len(text.split())), float("?" in text), *(float(_first(text) == word) for word in usual)]
            for text in texts
        ],
        dtype=torch.float64,
    )


def _first(text: str) -> str:
    found = re.search(r"[^\W_]+", text)
    return found[0].lower() if found else ""


def _text(prompt: Messages | str) -> str:
    return prompt if isinstance(prompt, str) else turn_text(prompt[-1])


def first_layers(layers: Sequence[int], depth: int) -> bool:
    """Whether a gate reads the first tenth of the layers, where the form of a prompt is told and not its sense."""
    return min(layers) < _FIRST * depth and max(layers) < depth / 4


def fit_notes(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What should be known of a fit, in sentences with the remedy.

    Args:
        figures: Of the fit, its `form` among them.
        settings: Of the fit.
    """
    notes = []
    if (form := figures["form"]) and form["low"] >= _FORM:
        notes.append(
            f"length, question mark and first word alone tell the classes apart (AUROC {form['auroc']:.2f}), so "
            "the gate may read the form: write both in the same style, or add look-alikes (--look-alikes)."
        )
    notes += layer_notes(settings["gate_layers"], len(figures["gate"]))
    r2 = [one["r2"] for one in figures["mapped"]]
    if r2 and max(r2[layer] for layer in settings["layers"]) < _MAP:
        notes.append(
            "the map between the two models explains next to nothing of held-out activations at the steered layers "
            f"(at most {max(0.0, max(r2[layer] for layer in settings['layers'])):.0%}): take an anchor of the target's "
            'own family, or the fixed refusal (answer = "refuse").'
        )
    return notes


def layer_notes(layers: Sequence[int], depth: int) -> list[str]:
    """What should be known of the layers that a gate reads."""
    if not first_layers(layers, depth):
        return []
    return [
        f"the gate reads layers {list(layers)} of {depth}, among the first tenth, where a model knows the form of a "
        "prompt and not what is asked for: give look-alikes (--look-alikes) and tasks (--tasks)."
    ]
