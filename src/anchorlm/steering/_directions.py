from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anchorlm.steering._moments import Moments

Whitening = Literal["none", "fisher"]


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Where harm lies in the residual stream, layer by layer (arXiv 2401.11206, section 3).

    Attributes:
        unit: (L, H) unit vectors from harmless to harmful.
        length: (L,) distance of the class means: the natural length of a shift.
    """

    unit: Tensor
    length: Tensor


def harm_directions(harmful: Moments, harmless: Moments) -> Directions:
    """`v_l`: mean over harmful minus mean over harmless activations, normalized. The paper's extraction."""
    difference = harmful.mean - harmless.mean
    length = difference.norm(dim=-1)
    return Directions(difference / length.clamp_min(1e-12)[:, None], length)


def fisher_directions(harmful: Moments, harmless: Moments, shrinkage: float = 0.1) -> Tensor:
    """Unit vectors (L, H) that separate the classes best where both spread alike (Fisher's discriminant; ours).

    `w = (C + lambda I)^-1 v` with C the spread within the classes and lambda a share of its mean variance. Of fewer
    sampled prompts than dimensions it is solved in their span (Woodbury), so a hidden size of thousands costs no
    H x H matrix.

    Args:
        harmful: Moments of the one class.
        harmless: Moments of the other.
        shrinkage: lambda over the mean variance. The larger, the nearer to the mean difference.
    """
    centered = [moments.sample - moments.mean[:, None] for moments in (harmful, harmless)]
    rows = torch.cat(centered, dim=1).double()  # (L, n, H)
    n, hidden = rows.shape[1:]
    difference = (harmful.mean - harmless.mean).double()
    weight = shrinkage * rows.square().sum(dim=(1, 2)) / (n * hidden) + 1e-12  # (L,)
    if n > hidden:
        spread = rows.transpose(1, 2) @ rows / n + weight[:, None, None] * torch.eye(hidden, dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(spread, difference[:, :, None])
        return torch.nn.functional.normalize(solved[:, :, 0], dim=-1).float()
    inner = rows @ rows.transpose(1, 2) / n + weight[:, None, None] * torch.eye(n, dtype=torch.float64)
    along = torch.linalg.solve(inner, rows @ difference[:, :, None] / n)
    direction = difference - (rows.transpose(1, 2) @ along)[:, :, 0]
    return torch.nn.functional.normalize(direction, dim=-1).float()
