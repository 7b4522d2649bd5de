"""The loss of a batch whose rows begin alike: the system prompt and the instruction are computed once for all."""

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

    What all rows begin with goes through the model once, and its keys and values serve them all: with gradients, so
    that the result is what row by row gives. The head reads the positions alone whose next token counts.

    Args:
        model: Of transformers, a decoder of texts with or without adapters in its layers.
        rows: At least one.
    """
    shared = len(commonprefix([[*ids[: _first(weights)]] for ids, weights in rows])) - 1
    shared = max(0, shared if len(rows) > 1 else 0)
    decoder, past = model.get_decoder(), None
    if shared:
        head = torch.tensor([rows[0][0][:shared]])
        past = decoder(input_ids=head, use_cache=True).past_key_values
        past = _repeated(past, len(rows))
    rest = [(ids[shared:], weights[shared:]) for ids, weights in rows]
    width = max(len(ids) for ids, _ in rest)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rest])
    mask = torch.tensor([[1] * (shared + len(row)) + [0] * (width - len(row)) for row, _ in rest])
    weights = torch.tensor([early + [0.0] * (width - len(early)) for _, early in rest])
    hidden = decoder(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=past is not None)
    at = weights[:, 1:] > 0
    logits = model.get_output_embeddings()(hidden.last_hidden_state[:, :-1][at]).float()
    each = functional.cross_entropy(logits, ids[:, 1:][at], reduction="none")
    weight = weights[:, 1:][at]
    return (each * weight).sum() / weight.sum()


def _first(weights: Sequence[float]) -> int:
    """The place of the first token that counts."""
    return next(place for place, weight in enumerate(weights) if weight)


def _repeated(past: Any, times: int) -> Any:
    """The cache of one row for as many."""
    wide = DynamicCache()
    for index, layer in enumerate(past.layers):
        wide.update(layer.keys.expand(times, -1, -1, -1), layer.values.expand(times, -1, -1, -1), index)
    return wide
