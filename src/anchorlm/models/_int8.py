from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 1e-30


class Int8Linear(nn.Module):
    """A linear layer whose weights have one byte each, for CPUs, with a scale for each output.

    A row of the input is read as two bytes a number, the finer one as a row of its own: language models have numbers
    in them beside which one byte would leave little of the others. The weights are the same for both, and reading these
    is what takes time. A row's scale is its own, and sums of integers are exact, so that what a row becomes does not
    depend on those that are read with it.

    Args:
        plain: What it stands for.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        # Where products are added in pairs of 16 bits, more than seven bits would overflow.
        self._steps = 127 if torch.cpu._is_vnni_supported() else 63
        self.weight = torch.empty(plain.weight.shape, device="meta")  # tells the shape, as others expect it
        self._bias = None if plain.bias is None else plain.bias.detach().float()
        weight = plain.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(_SMALLEST).double() / 127
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer forms of the same are slower or fail on some shapes
            zero = torch.zeros(len(weight), dtype=torch.long)
            packed = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        self._packed: Any = torch.ops.quantized.linear_prepack(packed, None)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The weights, one byte each, and the scale of each output."""
        packed: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0]
        return packed.int_repr(), packed.q_per_channel_scales()

    def forward(self, given: Tensor) -> Tensor:
        """As `nn.Linear`."""
        rows, steps = given.reshape(-1, self.in_features), self._steps
        unit = rows.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST).div_(steps)
        scaled = rows / unit
        coarse = scaled.round()
        both = torch.cat([coarse, scaled.sub_(coarse).mul_(2 * steps)])
        found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            both, 1.0, steps + 1, self._packed
        )
        found = found[: len(rows)].add(found[len(rows) :], alpha=0.5 / steps).mul_(unit)
        if self._bias is not None:
            found += self._bias
        return found.view(*given.shape[:-1], self.out_features)
