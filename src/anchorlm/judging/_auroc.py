from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def auroc(values: Sequence[float] | Tensor, positive: Sequence[bool] | Tensor) -> float | None:
    """How often a positive's value is above a negative's, ties counting half. None where a class is empty."""
    value = torch.as_tensor(values, dtype=torch.float64)
    yes = torch.as_tensor(positive, dtype=torch.bool)
    high, low = value[yes], value[~yes]
    if not len(high) or not len(low):
        return None
    return float(((high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()).mean())
