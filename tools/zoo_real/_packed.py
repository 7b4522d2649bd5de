"""Many short conversations in one forward: what all prompts begin with is read once a line, and little is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_FORBIDDEN = -1e4
"""Added to the scores of what a token may not see. Float16 holds it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt's token ids, and those of its answer, which may be none."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows back to back in a few lines.

    Attributes:
        ids: Token ids, (lines, width).
        positions: Of each token in its own conversation, (lines, width).
        mask: True where a token (third axis) sees another (fourth), (lines, 1, width, width).
        ends: Line and place of each row's last token of the prompt, in the order of the rows, (rows, 2).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    ends: torch.Tensor


def beginning(rows: Sequence[Row]) -> int:
    """How many tokens all prompts begin with, one less than the shortest prompt at most."""
    first = rows[0].prompt
    most = min(len(row.prompt) for row in rows) - 1
    return next((at for at in range(most) if any(row.prompt[at] != first[at] for row in rows)), most)


def pack(rows: Sequence[Row], lines: int) -> Packed:
    """Rows in `lines` lines of about the same length."""
    shared = beginning(rows)
    own = [(row.prompt + row.answer)[shared:] for row in rows]
    filled: list[list[int]] = [[] for _ in range(min(lines, len(rows)))]
    length = [shared] * len(filled)
    for index in sorted(range(len(rows)), key=lambda index: -len(own[index])):
        line = length.index(min(length))
        filled[line].append(index)
        length[line] += len(own[index])
    width = max(length)
    ids = torch.zeros(len(filled), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    of = torch.full_like(ids, -1)
    ends = torch.zeros(len(rows), 2, dtype=torch.long)
    for line, members in enumerate(filled):
        at = shared
        ids[line, :at] = torch.tensor(rows[0].prompt[:shared])
        positions[line, :at] = torch.arange(shared)
        of[line, :at] = len(rows)
        for index in members:
            size = len(own[index])
            ids[line, at : at + size] = torch.tensor(own[index])
            positions[line, at : at + size] = torch.arange(shared, shared + size)
            of[line, at : at + size] = index
            ends[index] = torch.tensor([line, at + len(rows[index].prompt) - shared - 1])
            at += size
    same = (of[:, None, :] == of[:, :, None]) | (of[:, None, :] == len(rows))
    mask = torch.tril(torch.ones(width, width, dtype=torch.bool)) & same
    return Packed(ids, positions, mask[:, None], ends)


def hidden(model: Any, packed: Packed) -> torch.Tensor:
    """The last hidden states, (lines, width, d). No row is longer than the model's window."""
    dtype = next(model.parameters()).dtype
    mask: Any = torch.zeros(packed.mask.shape, dtype=dtype).masked_fill(~packed.mask, _FORBIDDEN)
    if getattr(model.config, "layer_types", None):
        mask = dict.fromkeys(set(model.config.layer_types), mask)
    states: torch.Tensor = model.get_decoder()(
        input_ids=packed.ids, position_ids=packed.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return states
