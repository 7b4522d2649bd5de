from __future__ import annotations

import torch

from anchorlm.models._causal import CausalModel
from anchorlm.records import ModelStamp

_PARAMETERS, _VALUES = 64, 4


def stamp(model: CausalModel) -> ModelStamp:
    """What the model is known by: its shape, its vocabulary and a few hundred of its weights."""
    parameters = [p for _, p in sorted(model.model.named_parameters(remove_duplicate=True), key=lambda entry: entry[0])]
    step = max(1, len(parameters) // _PARAMETERS)
    sample: list[float] = []
    for parameter in parameters[::step]:
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(_VALUES, len(flat))).long()
        sample += flat[places.to(flat.device)].float().tolist()
    config = model.text_config
    return ModelStamp(
        name=model.name,
        architecture=str(config.model_type),
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        tokenizer=model.vocabulary.digest,
        dtype=str(model.model.dtype).removeprefix("torch."),
        sample=tuple(sample),
    )
