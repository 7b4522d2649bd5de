from __future__ import annotations

import hashlib
import json

from anchorlm.models._causal import CausalModel
from anchorlm.records import ModelStamp


def stamp(model: CausalModel) -> ModelStamp:
    """What the model is known by: its shape, its vocabulary, its chat template and two values of each of its weights.

    Of a `CausalModel.outline` everything but the values.
    """
    parameters = sorted(model.model.named_parameters())
    sample: list[float] = []
    for _, parameter in parameters:
        if parameter.device.type != "meta":
            flat = parameter.detach().flatten()
            sample += flat[[len(flat) // 3, 2 * len(flat) // 3]].float().tolist()
    packed = getattr(model.model.config, "quantization_config", None) is not None
    config = model.text_config
    return ModelStamp(
        name=model.name,
        architecture=str(config.model_type),
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        tokenizer=model.vocabulary.digest,
        template=_digest(model.chat_template),
        shapes="" if packed else _digest([(name, list(each.shape)) for name, each in parameters]),
        dtype=str(model.model.dtype).removeprefix("torch."),
        sample=tuple(sample),
        revision=getattr(model.model.config, "_commit_hash", None),
    )


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
