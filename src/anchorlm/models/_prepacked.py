from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SMALLEST = 1 << 24
"""Weights from which on it is done. The embedded models stay as they are, and so do their figures."""
_ROWS = 64
"""For so many rows the order of the weights is chosen. It serves any number."""
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a sum may differ, as a share of the largest one."""

SIBLINGS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Layers of one module that read the same input, one after the other: they are read as one."""


class _Kept(local):
    """What one thread has read last."""

    given: Tensor | None = None
    found: dict[int, Tensor] = {}  # noqa: RUF012  (replaced, never filled)


class _Stack:
    """The weights of layers that read the same input, in the order in which the CPU's kernels read them.

    In bfloat16 that is oneDNN's own. In float32 each input's weights lie together: that is faster for one row and about
    as fast for sixteen. There oneDNN's order would be slower for one (`benchmarks.speed`).
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._opaque = weight.dtype == torch.bfloat16
        self._weight: Tensor = (
            torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if self._opaque else weight.t().contiguous()
        )
        given = [layer.bias for layer in layers]
        self.bias = None if given[0] is None else torch.cat([bias.detach() for bias in given])
        self._here = _Kept()

    def __call__(self, place: int, given: Tensor) -> Tensor:
        """What one of the layers makes of it. The others' are kept until they have been asked for."""
        kept = self._here
        if kept.given is not given or place not in kept.found:
            whole = self._product(given)
            if len(self.sizes) == 1:
                return whole
            kept.given, kept.found = given, dict(enumerate(whole.split(self.sizes, dim=-1)))
        found = kept.found.pop(place)
        if not kept.found:
            kept.given = None
        return found

    def _product(self, given: Tensor) -> Tensor:
        if not self._opaque:
            return nn.functional.linear(given, self._weight.t(), self.bias)
        whole: Tensor = torch.ops.mkldnn._linear_pointwise(given, self._weight, self.bias, "none", [], "")
        return whole

    def dense(self, place: int) -> Tensor:
        """The weight of one of the layers as it was."""
        end = list(accumulate(self.sizes))[place]
        whole = self._weight.to_dense() if self._opaque else self._weight.t()
        return whole[end - self.sizes[place] : end]


class PrepackedLinear(nn.Module):
    """A linear layer on a CPU whose weights lie as its kernels read them, perhaps together with those of its siblings.

    Otherwise torch puts them in order for each product. No weight is changed.

    Args:
        plain: What it stands for.
        stack: Its weights.
        place: Which of the stack's they are.
        tied: The weights are also the embeddings', which keep a copy of their own.
    """

    def __init__(self, plain: nn.Linear, stack: _Stack, place: int = 0, *, tied: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight = torch.empty(plain.weight.shape, dtype=plain.weight.dtype, device="meta")  # tells the shape
        self.tied = tied
        self._stack, self._place = stack, place

    def forward(self, given: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return self._stack(self._place, given)

    @property
    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Weight and bias as they were, by name."""
        yield "weight", self._stack.dense(self._place)
        if self._stack.bias is not None:
            yield "bias", self._stack.bias.split(self._stack.sizes)[self._place]


def prepack(model: PreTrainedModel, smallest: int = SMALLEST) -> PreTrainedModel:
    """The same model, faster on a CPU: see `PrepackedLinear`. A model that gains nothing stays as it is.

    It can be run, but no longer be trained or saved, so it is for models that a guard has loaded for itself.

    Args:
        model: Its layers are replaced.
        smallest: Number of weights from which on it is done.
    """
    if not _gains(model, smallest):
        return model
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        for module in list(model.modules()):
            children = {name: each for name, each in module.named_children() if _fits(each)}
            for names in SIBLINGS:
                layers = [children[name] for name in names if name in children]
                alike = len({(each.in_features, each.weight.dtype, each.bias is None) for each in layers}) == 1
                if len(layers) == len(names) and alike and (stack := _stacked(layers)) is not None:
                    for place, name in enumerate(names):
                        setattr(module, name, PrepackedLinear(children.pop(name), stack, place))
            for name, layer in children.items():
                if (stack := _stacked([layer])) is not None:
                    setattr(module, name, PrepackedLinear(layer, stack, tied=layer.weight is embeddings))
    return model


def weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, also those that `prepack` has put in order."""
    yield from module.named_parameters()
    for name, each in module.named_modules():
        if isinstance(each, PrepackedLinear) and not each.tied:
            yield from ((f"{name}.{part}", tensor) for part, tensor in each.parts)


def _gains(model: PreTrainedModel, smallest: int) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return False
    return int(sum(each.weight.numel() for each in model.modules() if _fits(each))) >= smallest


def _fits(layer: Any) -> bool:
    """Whether it is a plain layer in a number format that is read faster."""
    return type(layer) is nn.Linear and layer.weight.dtype in _ALIKE and not layer._forward_hooks


def _stacked(layers: Sequence[nn.Linear]) -> _Stack | None:
    """Their weights in order. None where this CPU or this build of torch makes something else of them."""
    try:
        stack = _Stack(layers)
        probe = torch.randn(2, layers[0].in_features, generator=torch.Generator().manual_seed(0))
        probe = probe.to(layers[0].weight.dtype)
        for place, layer in enumerate(layers):
            want, got = layer(probe).float(), stack(place, probe).float()
            if not (got - want).abs().max() <= _ALIKE[layer.weight.dtype] * want.abs().max():
                return None
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return stack
