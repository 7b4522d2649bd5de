from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Critic:
    """What will become of an unfinished response: a small network on the last hidden state and the budget left.

    The latent state of InferenceGuard (arXiv 2502.01208): one hidden layer and two heads, the probability that the
    response ends within budget, and its final reward.

    Attributes:
        mean: Of the inputs (H + 1,), taken off before anything else.
        scale: By which they are divided (H + 1,).
        weight: Hidden layer (M, H + 1).
        bias: Of the hidden layer (M,).
        heads: (2, M).
        heads_bias: (2,).
        reward: Mean and deviation of the rewards that it learned from (2,).
        threshold: Probability from which on a response may go on.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    heads: Tensor
    heads_bias: Tensor
    reward: Tensor
    threshold: float

    def __call__(self, hidden: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Safety and reward of unfinished responses.

        Args:
            hidden: The residual stream after the last block at the last token (B, H).
            left: z, the budget left (B,).

        Returns:
            The probabilities of ending within budget (B,), and the rewards expected (B,).
        """
        return self.read(self.logits(self.standardized(hidden.cpu(), left.cpu())))

    def standardized(self, hidden: Tensor, left: Tensor) -> Tensor:
        """The inputs (B, H + 1) of both heads, of states (B, H) and budgets left (B,) where the weights are."""
        return (torch.cat([hidden.float(), left.float()[:, None]], dim=1) - self.mean) / self.scale

    def logits(self, inputs: Tensor) -> Tensor:
        """Both heads (B, 2) on standardized inputs (B, H + 1)."""
        return torch.nn.functional.gelu(inputs @ self.weight.T + self.bias) @ self.heads.T + self.heads_bias

    def slope(self, inputs: Tensor, weight: float = 0.0) -> Tensor:
        """The gradient of `value + weight * log P(within budget)` in the inputs (B, H + 1), by the chain rule.

        The value is the second head's output: the reward, standardized.
        """
        inner = inputs @ self.weight.T + self.bias
        below = torch.special.ndtr(inner)  # GELU is a * Phi(a), so its slope is Phi(a) + a * phi(a)
        slope = below + inner * torch.exp(-inner.square() / 2) / (2 * torch.pi) ** 0.5
        safety, value = self.heads
        outer = value + weight * (1 - ((inner * below) @ safety + self.heads_bias[0]).sigmoid())[:, None] * safety
        gradient: Tensor = (outer * slope) @ self.weight
        return gradient

    def read(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and reward of both heads' outputs (B, 2)."""
        return logits[:, 0].sigmoid(), logits[:, 1] * self.reward[1] + self.reward[0]

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the threshold, by name, for an artifact."""
        names = ("mean", "scale", "weight", "bias", "heads", "heads_bias", "reward")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> Critic:
        """The same on a device."""
        if self.mean.device == device:
            return self
        return Critic.of({name: tensor.to(device) for name, tensor in self.tensors().items()}, self.threshold)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], threshold: float) -> Critic:
        """The critic of an artifact's tensors."""
        return cls(**tensors, threshold=threshold)
