from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlm.engine._slots import SlotCache, SlotPlan, additive_mask
from anchorlm.engine._steering import Steering

_AHEAD = 64
"""Positions beyond the longest row for which the masks of single steps are made in advance."""


@dataclass(slots=True, eq=False)
class SlotRow:
    """One sequence: `tokens` as wanted, the first `computed` of them in its slot (-1: it has none).

    Attributes:
        slot: Where its keys and values are.
        tokens: Prompt and response.
        computed: How many of them the model has read.
        embeddings: (n, H) what the decoder reads in place of the first n tokens' own embeddings: images, say.
        steering: What is added to its activations, if anything is.
        steered_until: The first position to which nothing is added.
    """

    slot: int
    tokens: list[int]
    computed: int = 0
    embeddings: Tensor | None = None
    steering: Steering | None = None
    steered_until: float = 0

    @property
    def pending(self) -> int:
        """Tokens that the model has not read yet."""
        return len(self.tokens) - self.computed


@dataclass(slots=True)
class Batch:
    """What one forward reads.

    Attributes:
        plan: Where it reads and writes the slots.
        tokens: (n, T). Queries are right-aligned, so every row's last token stands in the last column.
        positions: (n, T).
        masks: Per kind of attention, (n, 1, T, L).
    """

    plan: SlotPlan
    tokens: Tensor
    positions: Tensor
    masks: dict[str, Tensor]


class Batcher:
    """Lays out rows for a forward, and remembers the last single step: mostly the next one only moves on by one."""

    def __init__(
        self, cache: SlotCache, windows: Mapping[str, int | None], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._cache = cache
        self._windows = windows
        self._dtype = dtype
        self._device = device
        self._plan: SlotPlan | None = None
        self._next: tuple[list[int], list[int], int] | None = None  # slots, positions and version that it goes on with
        self._positions = torch.empty(0)
        self._masks: dict[str, Tensor] = {}

    def step(self, rows: Sequence[SlotRow]) -> Batch:
        """One token for each row."""
        slots, starts = [row.slot for row in rows], [row.computed for row in rows]
        tokens = torch.tensor([[row.tokens[row.computed]] for row in rows], device=self._device)
        plan = self._plan
        if plan is not None and self._next == (slots, starts, self._cache.version):
            plan.advance()
        else:
            where, indices = self._where(slots)
            plan = self._plan = SlotPlan(where, max(starts) + 1, indices, torch.tensor(starts, device=self._device))
            self._positions = plan.token_position[:, None]  # moves on with the plan
            self._masks = {}
        self._next = (slots, [start + 1 for start in starts], self._cache.version)
        masks = {kind: self._step_mask(kind, window, plan) for kind, window in self._windows.items()}
        return Batch(plan, tokens, self._positions, masks)

    def _step_mask(self, kind: str, window: int | None, plan: SlotPlan) -> Tensor:
        if window is not None and plan.length > window:
            return additive_mask(self._positions, plan.length, window, self._dtype)
        mask = self._masks.get(kind)
        if mask is None or mask.shape[-1] < plan.length:
            mask = self._masks[kind] = additive_mask(self._positions, plan.length + _AHEAD, None, self._dtype)
        else:
            mask.view(len(mask), -1).scatter_(1, self._positions, 0.0)  # each row sees one position more
        return mask.narrow(3, 0, plan.length)

    def read(self, rows: Sequence[SlotRow], counts: Sequence[int]) -> Batch:
        """The next `counts[i]` tokens of each row."""
        self._plan = None
        width, device = max(counts), self._device
        ends = [row.computed + count for row, count in zip(rows, counts, strict=True)]
        padded = [
            [0] * (width - count) + row.tokens[row.computed : end]
            for row, count, end in zip(rows, counts, ends, strict=True)
        ]
        tokens = torch.tensor(padded, device=device)
        columns = torch.arange(width, device=device)
        positions = columns + torch.tensor(ends, device=device)[:, None] - width
        real = columns >= width - torch.tensor(counts, device=device)[:, None]
        # A padding query looks at position 0 and is never read; it writes nothing.
        positions = positions.masked_fill(~real, 0)
        row, column = real.nonzero(as_tuple=True)
        where, indices = self._where([row.slot for row in rows])
        queries = None if min(counts) == width else (row, column)
        plan = SlotPlan(where, max(ends), indices[row], positions[row, column], queries)
        masks = {
            kind: additive_mask(positions, plan.length, window, self._dtype) for kind, window in self._windows.items()
        }
        return Batch(plan, tokens, positions, masks)

    def _where(self, slots: list[int]) -> tuple[slice | Tensor, Tensor]:
        indices = torch.tensor(slots, device=self._device)
        contiguous = slots == list(range(slots[0], slots[0] + len(slots)))
        return slice(slots[0], slots[0] + len(slots)) if contiguous else indices, indices
