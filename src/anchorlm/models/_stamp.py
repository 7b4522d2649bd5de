from __future__ import annotations

import hashlib
import json
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from anchorlm.models._causal import CausalModel
from anchorlm.models._endpoint_model import EndpointModel
from anchorlm.models._int4 import Int4Linear
from anchorlm.models._int8 import Int8Linear
from anchorlm.models._prepacked import weights
from anchorlm.models._small import small_weights
from anchorlm.records import ModelStamp, UserError

_VOLATILE = ("_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Fields of a configuration that change no output, or are known otherwise."""


def stamp(model: CausalModel | EndpointModel) -> ModelStamp:
    """What the model is known by: its shape, its vocabulary, its chat template, and the files that it was loaded from.

    For a model without files two values of each of its weights stand. Of a `CausalModel.outline` they are not read.
    The files are read once a process.

    Raises:
        UserError: The model is behind an endpoint, where its weights cannot be looked at.
    """
    if isinstance(model, EndpointModel):
        raise UserError(
            f"Whether {model.name} is the model of an artifact cannot be known: its weights are behind an endpoint. "
            "Leave the artifact out, or load the model here."
        )
    return _stamp(model, "" if model.origin is None else model.origin.digest)


def _stamp(model: CausalModel, files: str) -> ModelStamp:
    parameters = sorted(weights(model.model), key=itemgetter(0))
    sample: list[float] = []
    for _, parameter in parameters:
        if parameter.device.type != "meta":
            flat = parameter.detach().flatten()
            sample += flat[[len(flat) // 3, 2 * len(flat) // 3]].float().tolist()
    packed = getattr(model.model.config, "quantization_config", None) is not None or bool(small_weights(model.model))
    config = model.text_config
    return ModelStamp(
        name=model.name,
        architecture=str(config.model_type),
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        tokenizer=model.vocabulary.digest,
        template=_digest([model.chat_template, model.options] if model.options else model.chat_template),
        shapes="" if packed else _digest([(name, list(each.shape)) for name, each in parameters]),
        dtype=str(model.model.dtype).removeprefix("torch."),
        sample=tuple(sample),
        files=files,
        revision=getattr(model.model.config, "_commit_hash", None),
    )


def identity(model: CausalModel | EndpointModel) -> dict[str, Any]:
    """Everything that its outputs depend on, as plain JSON data: with every weight and the configuration.

    Unlike a stamp it is not to be recognized in another number format. It reads all weights once.
    """
    if isinstance(model, EndpointModel):
        return model.identity
    known = _stamp(model, "").identity
    del known["sample"]
    found = known | {"weights": contents(model.model)}
    if model.device.type != "meta" or model.origin is None:
        return found
    return found | {"files": model.origin.digest or [model.origin.base, model.origin.revision]}  # its weights: in vLLM


def contents(module: nn.Module) -> str:
    """A short digest of all weights of a model of transformers, and of its configuration."""
    config: Any = module.config
    settings = {name: value for name, value in config.to_diff_dict().items() if name not in _VOLATILE}
    sums = [
        (name, _checksum(each.detach()))
        for name, each in sorted(weights(module), key=itemgetter(0))
        if not each.is_meta
    ]
    small = [(name, each.parts) for name, each in module.named_modules() if isinstance(each, Int4Linear | Int8Linear)]
    sums += [(name, _checksum(part)) for name, parts in small for part in parts]
    return _digest([settings, sums])


def _checksum(weight: Tensor) -> int:
    """The bits of a tensor added up, each row with a factor of its own, modulo 2^64."""
    if not weight.numel():
        return 0
    rows = weight.reshape(len(weight) if weight.dim() > 1 else 1, -1).contiguous().view(torch.uint8)
    if rows.shape[1] % 8 == 0:
        rows = rows.view(torch.int64)  # many times as fast as byte by byte
    factors = torch.arange(1, 2 * len(rows), 2, dtype=torch.int64, device=rows.device)
    return int((rows.sum(dim=1, dtype=torch.int64) * factors).sum())


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
