"""Models whose weights have one byte each, or half of one, for CPUs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from anchorlm.models._int4 import Int4Linear
from anchorlm.models._int8 import Int8Linear
from anchorlm.records import UserError

Small = Literal["int8", "int4"]


def with_small_weights(model: PreTrainedModel, name: str, dtype: Small) -> PreTrainedModel:
    """The model with smaller weights in its decoder and its head. Embeddings stay as they are.

    With int4 the head has one byte each, as in most GGUF files, and so has a layer whose shape the kernels do not know.

    Args:
        model: Its layers are replaced.
        name: Of the model, for errors.
        dtype: Of the weights.

    Raises:
        UserError: It is not on a CPU, or this build of torch has no such kernels.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise UserError(
            f"{name} is on an accelerator, and dtype = '{dtype}' is for CPUs: choose bfloat16 there, or a quantization."
        )
    four = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    if "x86" not in torch.backends.quantized.supported_engines or not (four or dtype == "int8"):
        raise UserError(
            f"{name} was to be loaded with dtype = '{dtype}', but this build of torch has no kernels for it: "
            "choose bfloat16 or float32."
        )
    torch.backends.quantized.engine = "x86"
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in list(model.modules()):
            for child, layer in list(module.named_children()):
                if type(layer) is nn.Linear:
                    half = dtype == "int4" and layer is not head and Int4Linear.takes(layer)
                    setattr(module, child, Int4Linear(layer) if half else Int8Linear(layer))
    return model


def small_weights(model: nn.Module) -> Small | None:
    """What `with_small_weights` made of a model. None where it did nothing."""
    kinds = {type(module) for module in model.modules()} & {Int4Linear, Int8Linear}
    if not kinds:
        return None
    return "int4" if Int4Linear in kinds else "int8"
