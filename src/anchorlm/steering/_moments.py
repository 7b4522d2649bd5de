from __future__ import annotations

import random

import torch
from torch import Tensor

_FEWEST, _MOST, _VALUES = 256, 2048, 2**25
"""Rows that are kept for the spread within a class: as many as hold so many values in all, between two bounds, so
memory does not grow with the number of prompts."""


class Moments:
    """Mean of one class of activations, and a bounded sample of them, as they come.

    Args:
        seed: Of the sample (a reservoir: every row is kept with the same probability).
    """

    def __init__(self, seed: int = 0) -> None:
        self.count = 0
        self._mean = torch.empty(0, dtype=torch.float64)
        self._sample: list[Tensor] = []
        self._random = random.Random(seed)

    def add(self, activations: Tensor) -> None:
        """Takes in the activations (L, H) of one prompt."""
        value = activations.double().cpu()
        if not value.isfinite().all():
            raise ValueError("activations that are not numbers")
        self.count += 1
        if self.count == 1:
            self._mean = value.clone()
        else:
            self._mean += (value - self._mean) / self.count
        room = min(_MOST, max(_FEWEST, _VALUES // value.numel()))
        if len(self._sample) < room:
            self._sample.append(value.float())
        elif (place := self._random.randrange(self.count)) < room:
            self._sample[place] = value.float()

    @property
    def mean(self) -> Tensor:
        """(L, H), float32."""
        return self._mean.float()

    @property
    def sample(self) -> Tensor:
        """(L, n, H), float32."""
        return torch.stack(self._sample, dim=1)
