from __future__ import annotations

import torch
from torch import Tensor

from anchorlm.steering._moments import Moments


def null_space_reader(harmful: Moments, harmless: Moments, share: float = 0.6, ridge: float = 10.0) -> Tensor:
    """What AlphaSteer reads of a stream: w_l = P D^T for a constant refusal vector (arXiv 2506.07022, section 4).

    P projects onto the `share` of directions in which harmless activations have the least energy, or onto all in which
    they have none. D solves
    `min |D P X_harmful - R|^2 + ridge |D P|^2` with every column of R the refusal vector r; then `D P = r w^T`, so that
    the H x H matrix of the paper is a vector w with `w . x = 0` on harmless activations and about 1 on harmful ones.

    Args:
        harmful: Moments of harmful activations (L, H).
        harmless: The same of harmless ones.
        share: Share of the directions that counts as the null space at least.
        ridge: Weight of the penalty, per prompt's mean square.

    Returns:
        (L, H), float32.
    """
    readers = []
    for bad, good in zip(harmful.sample.double(), harmless.sample.double(), strict=True):  # (n, H) each
        energy, vectors = torch.linalg.eigh(good.T @ good / len(good))  # ascending
        # Directions without any energy are no more null than one another: all of them belong to the space.
        limit = torch.maximum(energy[max(1, round(share * len(energy))) - 1], 1e-9 * energy[-1])
        basis = vectors[:, energy <= limit]
        inside = bad @ basis  # (n, r)
        # Where harmful prompts have next to nothing there either, nothing is read: no noise is blown up.
        strength = ridge * torch.maximum(inside.square().mean(), 1e-9 * bad.square().mean()).clamp_min(1e-30)
        penalty = strength * torch.eye(basis.shape[1], dtype=inside.dtype)
        weights = torch.linalg.solve(inside.T @ inside + penalty, inside.sum(dim=0))
        readers.append((basis @ weights).float())
    return torch.stack(readers)


def best_threshold(positive: Tensor, negative: Tensor) -> tuple[float, float]:
    """The threshold with the best F1, by trying every midpoint between two scores (CAST's grid search).

    Args:
        positive: Scores (n,) that should be above it.
        negative: Scores (m,) that should not.

    Returns:
        Threshold and F1.
    """
    values = torch.tensor(sorted({*positive.tolist(), *negative.tolist()}))
    middles = torch.cat([values[:1] - 1e-6, (values[1:] + values[:-1]) / 2])
    hits = (positive[None] > middles[:, None]).sum(dim=1)
    wrong = (negative[None] > middles[:, None]).sum(dim=1)
    f1 = 2 * hits / (hits + wrong + len(positive))
    best = int(f1.argmax())
    return float(middles[best]), float(f1[best])
