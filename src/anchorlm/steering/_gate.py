from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlm.records import DefenseError


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Tells from a model's activations whether a prompt is harmful (arXiv 2401.11206, section 3; the SRV).

    Scores are in units of half the distance between the class means, so 1 is a typical harmful prompt, -1 a
    typical harmless one, and 0 the paper's threshold, on any layer of any model.

    Attributes:
        direction: (L, H) unit vectors s_l. Of two gates in one (`joined`) those of both, (L, 2 H).
        bias: (L,) b_l: minus the mean projection of balanced training prompts.
        scale: (L,) half the distance between the class means' projections.
    """

    direction: Tensor
    bias: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, direction: Tensor, harmful: Tensor, harmless: Tensor) -> Gate:
        """Places the threshold in the middle between the class means.

        Args:
            direction: (L, H).
            harmful: (L, H) mean activations of harmful prompts.
            harmless: (L, H) the same of harmless ones.
        """
        high, low = ((mean * direction).sum(dim=-1) for mean in (harmful, harmless))
        return cls(direction, -(high + low) / 2, ((high - low) / 2).clamp_min(1e-12))

    @classmethod
    def joined(cls, end: Gate, throughout: Gate) -> Gate:
        """One gate whose score is the mean of two: at the prompt's last token, and of the mean over its tokens (ours).

        Args:
            end: Reads the last token.
            throughout: Reads the mean.
        """
        both = end, throughout
        direction = torch.cat([gate.direction / gate.scale[:, None] for gate in both], dim=-1) / 2
        bias = sum((gate.bias / gate.scale for gate in both), torch.zeros_like(end.bias)) / 2
        return cls(direction, bias, torch.ones_like(bias))

    def scores(self, activations: Tensor) -> Tensor:
        """The score of each layer (L,) for activations (L, H) at the last token of the prompt, or (L, 2 H) with their
        mean over the prompt.

        Raises:
            DefenseError: The activations are not numbers.
        """
        projection = (activations.float().cpu() * self.direction).sum(dim=-1)
        return _numbers((projection + self.bias) / self.scale)


def cosine_scores(activations: Tensor, condition: Tensor) -> Tensor:
    """Cosine (L,) of activations (L, H) and their projection on a condition vector (CAST, arXiv 2409.05907, eq. 3).

    Args:
        activations: (L, H) at one position.
        condition: (L, H) unit vectors.

    Raises:
        DefenseError: The activations are not numbers.
    """
    projected = torch.tanh((activations * condition).sum(dim=-1, keepdim=True) * condition)
    return _numbers(torch.nn.functional.cosine_similarity(activations, projected, dim=-1))


def _numbers(scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise DefenseError("The activations are not numbers, so the gate cannot tell harm from none.")
    return scores
