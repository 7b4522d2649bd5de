from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_LEAST = 1e-12  # keeps a layer that says the same of every prompt from dividing by zero


@dataclass(frozen=True, slots=True, eq=False)
class RidgeMap:
    """A linear map between two residual streams, fitted on paired prompts (ours; no paper has this).

    Attributes:
        matrix: (H_anchor, H_target): a direction d of the anchor becomes `d @ matrix`. No bias, because only directions
            cross.
        strength: Ridge strength over the mean variance of the anchor's activations, chosen by held-out R^2.
        r2: Share of the target's held-out variance that the map explains.
    """

    matrix: Tensor
    strength: float
    r2: float

    def __call__(self, direction: Tensor) -> Tensor:
        """The unit vector (H_target,) of a direction (H_anchor,)."""
        return torch.nn.functional.normalize(direction.to(self.matrix) @ self.matrix, dim=-1).float()


def ridge_map(
    anchor: Tensor, target: Tensor, strengths: Sequence[float] = STRENGTHS, holdout: float = 0.25
) -> RidgeMap:
    """Fits `target - mean = (anchor - mean) W` with a ridge penalty. The strength by R^2 on the last prompts.

    Args:
        anchor: (n, H_anchor) activations of one layer.
        target: (n, H_target) of one layer, the same prompts in the same order.
        strengths: Penalties to try, over the mean variance of the anchor's activations.
        holdout: Share of the prompts that chooses among them.
    """
    n = len(anchor)
    cut = n - max(1, round(n * holdout))
    x, y = anchor.double(), target.double()

    def solve(rows: int, strength: float) -> Tensor:
        a, b = x[:rows] - x[:rows].mean(dim=0), y[:rows] - y[:rows].mean(dim=0)
        penalty = max(strength * float(a.square().mean()) * rows, _LEAST)
        if rows < a.shape[1]:  # fewer prompts than dimensions: solve in the span of the prompts
            inner = a @ a.T + penalty * torch.eye(rows, dtype=a.dtype)
            dual: Tensor = torch.linalg.solve(inner, b)
            return a.T @ dual
        matrix: Tensor = torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
        return matrix

    def r2(matrix: Tensor) -> float:
        center = y[:cut].mean(dim=0)
        guess = (x[cut:] - x[:cut].mean(dim=0)) @ matrix + center
        return float(1 - (y[cut:] - guess).square().sum() / (y[cut:] - center).square().sum().clamp_min(_LEAST))

    best, strength = max((r2(solve(cut, strength)), strength) for strength in strengths)
    return RidgeMap(solve(n, strength), strength, best)


def matching_layer(layer: int, layers: int, other_layers: int) -> int:
    """The block of a model of `other_layers` blocks at the relative depth of block `layer` of `layers`."""
    return min(other_layers - 1, max(0, round((layer + 1) / layers * other_layers) - 1))
