from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_SURE = 1e-3
"""No opening is taken for surer than this."""

_TOLD = 0.02
"""Tokens whose share lies nearer than this to a half tell nothing, and are not kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What an aligned model's first token tells about the prompt before it.

    A model that refuses opens otherwise than one that answers, in its own words and language. Which tokens those are is
    counted, not listed: the share of each token's mass that fell after harmful prompts.

    Attributes:
        tokens: The tokens that tell something (n,).
        shares: Of each the share of its mass that fell after harmful prompts, as many of them as harmless ones (n,).
    """

    tokens: Tensor
    shares: Tensor

    @classmethod
    def fit(cls, harmful: Tensor, harmless: Tensor, prompts: int) -> Self:
        """Counts, with one prompt's mass before each token on either side: a token that was hardly seen says nothing.

        Args:
            harmful: The mean of the distributions of the first token after harmful prompts (V,).
            harmless: The same after harmless ones (V,).
            prompts: How many of a class there were, of the smaller one.
        """
        before = 1 / max(prompts, 1)
        shares = (harmful + before) / (harmful + harmless + 2 * before)
        tokens = ((shares - 0.5).abs() > _TOLD).nonzero()[:, 0]
        return cls(tokens, shares[tokens])

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """As an artifact keeps it."""
        return cls(tensors["opening.tokens"], tensors["opening.shares"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """For an artifact."""
        return {"opening.tokens": self.tokens, "opening.shares": self.shares}

    def score(self, first: Tensor) -> float:
        """Log-odds that the prompt is harmful: of the mean share, by what the model would say first.

        Args:
            first: The distribution of the first token (V,).
        """
        mass = first[self.tokens.to(first.device)].float().cpu()
        share = (mass @ self.shares + 0.5 * (1 - mass.sum())).clamp(_SURE, 1 - _SURE)
        return float(torch.logit(share))
