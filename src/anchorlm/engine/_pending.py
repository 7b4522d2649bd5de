from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from anchorlm.engine._sampling import Sampler


@dataclass(slots=True, eq=False)
class PendingCall:
    """What a sequence waits for.

    Attributes:
        future: Gets the logits (V,), the activations, or None when a generation has ended.
        positions: Where activations are wanted, if they are.
        found: The activations (layers, H) so far, by position.
        sampler: Chooses the tokens, if the sequence goes on by itself.
        remaining: Tokens that may still be generated.
        emit: Is told every generated token, as soon as it cannot be taken back any more.
        emitted: How many of the sequence's tokens it need not be told any more.
        stopped: Whether the generation ended its turn.
        known: Logits (V,) after the last token: those that a generation starts with, or that activations came with.
    """

    future: asyncio.Future[Any]
    positions: tuple[int, ...] = ()
    found: dict[int, Tensor] = field(default_factory=dict)
    sampler: Sampler | None = None
    remaining: int = 0
    emit: Callable[[int], None] | None = None
    emitted: int = 0
    stopped: bool = False
    known: Tensor | None = None
