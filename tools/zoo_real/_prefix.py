"""Batches of rows that begin alike: the system prompt and the instruction are computed once for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from tools.zoo_real._packed import Row, beginning


def answers_loss(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens.

    Args:
        model: Of transformers, a decoder of texts with or without adapters in its layers.
        rows: At least one.
    """
    return functional.cross_entropy(*_answers(model, rows))


def written(model: Any, rows: Sequence[Row]) -> list[bool]:
    """Whether greedy decoding writes each row's answer, token by token: that is so where each is the likeliest."""
    with torch.inference_mode():
        logits, targets = _answers(model, rows)
    right = torch.split((logits.argmax(-1) == targets), [len(row.answer) for row in rows])
    return [bool(each.all()) for each in right]


def _answers(model: Any, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits for the answers' tokens, and these, row after row.

    What all rows begin with goes through the model once, and its keys and values serve them all: with gradients, so
    that the result is what row by row gives. The head reads no other place.
    """
    shared = beginning(rows) if len(rows) > 1 else 0
    decoder, past = model.get_decoder(), None
    if shared:
        first = decoder(input_ids=torch.tensor([rows[0].prompt[:shared]]), use_cache=True)
        past = _repeated(first.past_key_values, len(rows))
    own = [(row.prompt + row.answer)[shared:] for row in rows]
    width = max(map(len, own))
    ids = torch.tensor([each + [0] * (width - len(each)) for each in own])
    mask = torch.tensor([[1] * (shared + len(each)) + [0] * (width - len(each)) for each in own])
    states = decoder(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=past is not None)
    starts = [len(row.prompt) - shared - 1 for row in rows]
    at = torch.zeros(ids.shape, dtype=torch.bool)
    for index, (start, row) in enumerate(zip(starts, rows, strict=True)):
        at[index, start : start + len(row.answer)] = True
    logits = model.get_output_embeddings()(states.last_hidden_state[at]).float()
    return logits, torch.tensor([token for row in rows for token in row.answer])


def _repeated(past: Any, times: int) -> Any:
    """The cache of one row for as many."""
    wide = DynamicCache()
    for index, layer in enumerate(past.layers):
        wide.update(layer.keys.expand(times, -1, -1, -1), layer.values.expand(times, -1, -1, -1), index)
    return wide
