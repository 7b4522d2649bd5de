from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log1p
from random import Random
from typing import Any

import torch
from torch import Tensor

from anchorlm.records import Messages, turn_text
from anchorlm.steering import logistic, separation

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
            f"length, question mark and first word alone tell the classes apart (AUROC {form['auroc']:.2f}), so that "
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
