"""What training reads: single examples and weighted mixtures of their sources."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

REFUSALS = (
    "I'm sorry, but I can't help with that, because it could cause harm.",
    "Sorry, I cannot assist with that request, because it is not safe.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One training text: a dialogue (prompt and answer), or plain text where there is no prompt.

    A thought stands before the answer. An empty one belongs to the prompt, where thoughts are switched off.
    """

    answer: str
    prompt: str | None = None
    system: str | None = None
    thought: str | None = None


Source = Callable[[random.Random], Example]
Mixture = Sequence[tuple[float, Source]]


def draw(mixture: Mixture, rng: random.Random) -> Example:
    """One example of a weighted mixture."""
    weights = [weight for weight, _ in mixture]
    return rng.choices([source for _, source in mixture], weights)[0](rng)
