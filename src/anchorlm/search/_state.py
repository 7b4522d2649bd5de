from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, arange, as_tensor, float64


def spend(left: float, costs: Tensor, gamma: float = 1.0) -> float:
    """The budget left after some tokens (InferenceGuard, arXiv 2502.01208): `z <- g^-m (z - sum_{k<m} g^k C_k)`.

    Token by token this is `z <- (z - C) / g`. A block of any length gives the same as its tokens one by one.

    Args:
        left: z, the budget left, as seen from the first of the tokens.
        costs: What each token costs (m,). Costs below 0 count as 0, so harmless words earn nothing that harm could
            be paid from later.
        gamma: Discount per token, above 0 and at most 1. Below 1, what is said late weighs less: the sum of the costs
            may then reach `d / gamma ** T` for a budget of d.
    """
    costs = as_tensor(costs, dtype=float64).clamp_min(0)
    powers = gamma ** arange(len(costs), dtype=float64)
    return (left - float((powers * costs).sum())) / gamma ** len(costs)


_ROUNDING = 1e-9
"""What differences of floating point may take from a budget that is met exactly."""


@dataclass(frozen=True, slots=True)
class SafetyState:
    """What a beam has left to spend, by a cost model that reads whole texts.

    A text's tokens are charged for what they add to the worst that has been read so far: with `gamma = 1` a text is
    within its budget just where none of its read prefixes costs more than the budget, and a text that was over it stays
    over it whatever follows.

    Attributes:
        left: z. Below 0, the budget is spent.
        worst: The highest cost of a prefix that was read, at least 0.
    """

    left: float
    worst: float = 0.0

    @property
    def within(self) -> bool:
        """Whether the budget holds so far."""
        return self.left >= -_ROUNDING

    def after(self, tokens: int, cost: float, gamma: float = 1.0) -> SafetyState:
        """The state `tokens` later, where the whole text so far costs `cost`. The last token is charged for it."""
        worst = self.worst if cost <= self.worst else cost  # what is not a number stays so, and is over every budget
        charged = [0.0] * (max(tokens, 1) - 1) + [worst - self.worst]
        left = spend(self.left, as_tensor(charged, dtype=float64), gamma) if tokens else self.left - charged[-1]
        return SafetyState(left, worst)
