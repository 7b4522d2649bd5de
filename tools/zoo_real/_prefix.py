"""Batches whose rows begin alike: the system prompt and the instruction are computed once for all."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

Row = tuple[list[int], list[float]]
"""Token ids, and the weight of each as a target; 0 in the prompt."""


def answers_loss(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Weighted cross-entropy of the answers' tokens.

    Args:
        model: Of transformers, a decoder of texts with or without adapters in its layers.
        rows: At least one.
    """
    logits, targets, weights = _answers(model, rows)
    each = functional.cross_entropy(logits, targets, reduction="none")
    return (each * weights).sum() / weights.sum()


def written(model: Any, rows: Sequence[Row]) -> list[bool]:
    """Whether greedy decoding writes each row's answer, token by token: that is so where each is the likeliest."""
    with torch.inference_mode():
        logits, targets, _ = _answers(model, rows)
    right = (logits.argmax(-1) == targets).tolist()
    found, place = [], 0
    for _, of in rows:
        length = sum(weight > 0 for weight in of)
        found.append(all(right[place : place + length]))
        place += length
    return found


def _answers(model: Any, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits at the places whose next token counts, that token and its weight, row after row.

    What all rows begin with goes through the model once, and its keys and values serve them all: with gradients, so
    that the result is what row by row gives. The head reads no other place.
    """
    prompts = [ids[: next(place for place, weight in enumerate(weights) if weight)] for ids, weights in rows]
    shared = max(0, len(commonprefix(prompts)) - 1) if len(rows) > 1 else 0
    decoder, past = model.get_decoder(), None
    if shared:
        first = decoder(input_ids=torch.tensor([rows[0][0][:shared]]), use_cache=True)
        past = _repeated(first.past_key_values, len(rows))
    rest = [(ids[shared:], weights[shared:]) for ids, weights in rows]
    width = max(len(ids) for ids, _ in rest)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rest])
    mask = torch.tensor([[1] * (shared + len(row)) + [0] * (width - len(row)) for row, _ in rest])
    weights = torch.tensor([early + [0.0] * (width - len(early)) for _, early in rest])[:, 1:]
    hidden = decoder(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=past is not None)
    at = weights > 0
    logits = model.get_output_embeddings()(hidden.last_hidden_state[:, :-1][at]).float()
    return logits, ids[:, 1:][at], weights[at]


def _repeated(past: Any, times: int) -> Any:
    """The cache of one row for as many."""
    wide = DynamicCache()
    for index, layer in enumerate(past.layers):
        wide.update(layer.keys.expand(times, -1, -1, -1), layer.values.expand(times, -1, -1, -1), index)
    return wide
