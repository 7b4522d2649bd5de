from __future__ import annotations

from anchorlm.models._causal import CausalModel
from anchorlm.records import ModelStamp


def stamp(model: CausalModel) -> ModelStamp:
    """What the model is known by: its shape, its vocabulary and two values of each of its weights."""
    sample: list[float] = []
    for _, parameter in sorted(model.model.named_parameters()):
        flat = parameter.detach().flatten()
        sample += flat[[len(flat) // 3, 2 * len(flat) // 3]].float().tolist()
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
