from __future__ import annotations

from anchorlm.engine._protocol import Engine, TokenSequence
from anchorlm.records import Access


async def read_ahead(engine: Engine, sequence: TokenSequence) -> None:
    """Reads what forks will share, once. Another server sees to that itself, as far as it can."""
    if Access.LOGITS in engine.access:
        await sequence.logits()


def unnamed(sequence: TokenSequence) -> float:
    """The mass of a sequence's last distribution that its engine did not name: 0 where it gives all of it."""
    return float(getattr(sequence, "unnamed", 0.0))


def stepwise(sequence: TokenSequence) -> bool:
    """Whether a sequence can be written token by token. On another server each token would take a call of its own."""
    return not hasattr(sequence, "unnamed")
