from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST = 1e-30
_GROUP = 32
"""Neighboring weights that share a scale and a zero, as in the Q4_1 of GGUF."""
_OUTPUTS = 16
"""The kernels take outputs by so many."""


class Int4Linear(nn.Module):
    """A linear layer whose weights have half a byte each, for CPUs. Each 32 neighbors of a row share scale and zero.

    A weight is `(code - 8) * scale + zero` with a code from 0 to 15, so that the weights of a Q4_1 file stay what they
    are, but for the rounding of scales and zeros to bfloat16. Inputs and outputs are rounded to bfloat16, too. What a
    row becomes does not depend on those that are read with it.

    Args:
        plain: What it stands for. `Int4Linear.takes` says whether it can be.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight = torch.empty(plain.weight.shape, device="meta")  # tells the shape, as others expect it
        self._bias = None if plain.bias is None else plain.bias.detach().float()
        groups = plain.weight.detach().float().view(self.out_features, -1, _GROUP)
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scale = ((high - low) / 15).clamp_min_(_SMALLEST).bfloat16()
        zero = low.add(scale.float(), alpha=8).bfloat16()
        codes = groups.sub(zero.float()[..., None]).div_(scale.float()[..., None]).add_(8).round_().clamp_(0, 15)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.view(plain.weight.shape).int(), 1)
        self._scales = torch.stack([scale.t(), zero.t()], dim=-1).contiguous()

    @staticmethod
    def takes(plain: nn.Linear) -> bool:
        """Whether this layer's shape is one that the kernels know."""
        return plain.in_features % _GROUP == 0 and plain.out_features % _OUTPUTS == 0

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The codes, two in a byte, in the order of the kernels; and scale and zero of each group."""
        return self._packed, self._scales

    def forward(self, given: Tensor) -> Tensor:
        """As `nn.Linear`."""
        rows = given.reshape(-1, self.in_features).bfloat16()
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self._packed, _GROUP, self._scales)
        found = found.to(given.dtype)
        if self._bias is not None:
            found += self._bias
        return found.view(*given.shape[:-1], self.out_features)
