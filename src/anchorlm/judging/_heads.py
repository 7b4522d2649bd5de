from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from anchorlm.judging._traits import BUCKETS, Grams

_LARGEST = 30.0
"""Logits beyond are cut off: there is no probability that a float could tell from 0 or 1."""


@dataclass(frozen=True, slots=True)
class Head:
    """A logistic head on traits: a block of hashed runs of words for each text, and a few numbers.

    Attributes:
        blocks: For each block, the inverse document frequency of each place and its weight there.
        center: Subtracted from the numbers,
        scale: which are then multiplied by this,
        weight: and by this.
        bias: Of the logit.
        slope: By which Platt's calibration multiplies the logit.
        shift: What it adds.
        band: Probabilities between which the head cannot tell.
    """

    blocks: tuple[tuple[Any, Any], ...]
    center: Any
    scale: Any
    weight: Any
    bias: float
    slope: float = 1.0
    shift: float = 0.0
    band: tuple[float, float] = (0.5, 0.5)

    def logit(self, grams: Sequence[Grams], dense: Sequence[float]) -> float:
        """The uncalibrated logit of an answer.

        Args:
            grams: One for each block.
            dense: The numbers.
        """
        found = self.bias + float((np.asarray(dense) - self.center) * self.scale @ self.weight)
        for (idf, weight), own in zip(self.blocks, grams, strict=True):
            places = list(own)
            values = np.fromiter(own.values(), float, len(own)) * idf[places]
            length = math.sqrt(float(values @ values))
            found += float(values @ weight[places]) / length if length else 0.0
        return found

    def probability(self, logit: float) -> float:
        """The calibrated probability of a logit."""
        return sigmoid(self.slope * logit + self.shift)

    def told(self, probability: float) -> bool | None:
        """What a probability says. None within the band."""
        return None if self.band[0] < probability < self.band[1] else probability >= 0.5

    def arrays(self) -> dict[str, Any]:
        """All of it, as arrays by name."""
        blocks = {f"{part}{at}": one[n] for at, one in enumerate(self.blocks) for n, part in enumerate(("idf", "run"))}
        rest = {"center": self.center, "scale": self.scale, "weight": self.weight}
        numbers = np.array([self.bias, self.slope, self.shift, *self.band])
        return {name: np.asarray(one, np.float16) for name, one in blocks.items()} | rest | {"numbers": numbers}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Self:
        """The head whose `arrays` these are."""
        wide = {name: np.asarray(one, float) for name, one in arrays.items()}
        blocks = tuple(
            (wide[f"idf{at}"], wide[f"run{at}"]) for at in range(sum(name.startswith("idf") for name in wide))
        )
        if any(len(one) != BUCKETS for block in blocks for one in block):
            raise ValueError("the head was fitted for other places")
        bias, slope, shift, low, high = wide["numbers"].tolist()
        return cls(blocks, wide["center"], wide["scale"], wide["weight"], bias, slope, shift, (low, high))


@cache
def head(name: str) -> Head:
    """A head that comes with the package: refusal, request, or harm."""
    with np.load(Path(__file__).parent / "heads" / f"{name}.npz") as arrays:
        return Head.of(dict(arrays))


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without an overflow."""
    return 1 / (1 + math.exp(-max(-_LARGEST, min(_LARGEST, logit))))
