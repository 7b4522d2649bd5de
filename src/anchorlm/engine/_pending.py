from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from anchorlm.engine._sampling import Sampler


@dataclass(slots=True, eq=False)
class PendingCall:
    """What a sequence waits for.

    Attributes:
        future: Gets the logits (V,), the activations, or None when a generation has ended.
        positions: Where activations are wanted, if they are.
        mean_from: Where the mean over the positions up to each of these begins, if it is wanted, too.
        found: The activations (layers, H) so far, by position.
        sums: By position the sum (layers, H) so far of those since the wanted position before it.
        sampler: Chooses the tokens, if the sequence goes on by itself.
        remaining: Tokens that may still be generated.
        emit: Is told every generated token, as soon as it cannot be taken back any more.
        emitted: How many of the sequence's tokens it need not be told any more.
        stopped: Whether the generation ended its turn.
        known: Logits (V,) after the last token: those that a generation starts with, or that activations came with.
    """

    future: asyncio.Future[Any]
    positions: tuple[int, ...] = ()
    mean_from: int | None = None
    found: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    sampler: Sampler | None = None
    remaining: int = 0
    emit: Callable[[int], None] | None = None
    emitted: int = 0
    stopped: bool = False
    known: Tensor | None = None

    @property
    def first(self) -> float:
        """The first position whose activations are wanted. Infinity where none are."""
        return min(self.positions, default=inf) if self.mean_from is None else self.mean_from

    @property
    def spans(self) -> list[tuple[int, int]]:
        """What is added up: from the first to the last position of each, which is a wanted one."""
        if self.mean_from is None:
            return []
        wanted = sorted(set(self.positions))
        return list(zip([self.mean_from, *(place + 1 for place in wanted)], wanted, strict=False))

    @property
    def complete(self) -> bool:
        """Whether all activations that are wanted have been found."""
        return len(self.found) == len(set(self.positions))

    @property
    def activations(self) -> Tensor:
        """What was asked for: (layers, positions, H), or (layers, positions, 2 H) with the means."""
        ends = torch.stack([self.found[position] for position in self.positions], dim=1)
        if self.mean_from is None:
            return ends
        means, total = {}, torch.zeros_like(ends[:, 0])
        for _, last in self.spans:
            total = total + self.sums[last]
            means[last] = total / (last + 1 - self.mean_from)
        return torch.cat([ends, torch.stack([means[position] for position in self.positions], dim=1)], dim=-1)
