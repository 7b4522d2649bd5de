from __future__ import annotations

import torch
from torch import Tensor

_STEPS, _CLOSE = 50, 1e-8


def logistic(rows: Tensor, harmful: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Logistic regression with an L2 penalty, by Newton's method in the span of the rows.

    Minimizes the mean log-loss plus `penalty / 2 |w|^2`. The offset is not penalized. Columns are taken as they are.

    Args:
        rows: (n, d).
        harmful: (n,) the labels, 1 or 0.
        penalty: Weight of the penalty, above 0.

    Returns:
        Weights (d,) and offset, float64.
    """
    rows, labels = rows.double(), harmful.double()
    n, width = rows.shape
    center = rows.mean(dim=0)
    features, basis = rows - center, rows.new_empty(0)
    if n < width:  # the solution lies in the span of the rows: n unknowns, not one a dimension
        left, values, right = torch.linalg.svd(features, full_matrices=False)
        features, basis = left * values, right
    features = torch.cat([features, features.new_ones(n, 1)], dim=1)
    strength = torch.full((features.shape[1],), penalty, dtype=torch.float64)
    strength[-1] = 0
    weights = features.new_zeros(features.shape[1])
    share = labels.mean().clamp(1e-3, 1 - 1e-3)
    weights[-1] = torch.logit(share)
    loss = _loss(features, labels, weights, strength)
    for _ in range(_STEPS):
        likely = torch.sigmoid(features @ weights)
        slope = features.T @ (likely - labels) / n + strength * weights
        bend = features.T @ (features * (likely * (1 - likely))[:, None]) / n + torch.diag(strength + 1e-12)
        step = torch.linalg.solve(bend, slope)
        for _ in range(30):  # a full step overshoots where the classes lie far apart
            tried = weights - step
            if (found := _loss(features, labels, tried, strength)) <= loss:
                break
            step = step / 2
        weights, loss = tried, found
        if float(step.abs().max()) < _CLOSE:
            break
    direction = weights[:-1] @ basis if len(basis) else weights[:-1]
    return direction, weights[-1] - center @ direction


def _loss(features: Tensor, labels: Tensor, weights: Tensor, strength: Tensor) -> Tensor:
    scores = features @ weights
    log_loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
    return log_loss + (strength * weights.square()).sum() / 2
