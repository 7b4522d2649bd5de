"""What a model's first token says of prompts: one forward for hundreds, at every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anchorlm.models import CausalModel
from tools.zoo_real._packed import Row, hidden, pack

_TOGETHER = 48


def declines(model: CausalModel, prompts: Sequence[str], token: int) -> list[tuple[float, bool]]:
    """The probability that each prompt is answered with `token` first, and whether nothing is likelier."""
    rows = [Row(model.encode([{"role": "user", "content": prompt}]), []) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
    found = [(0.0, False)] * len(rows)
    head = model.model.get_output_embeddings().weight
    for start in range(0, len(order), _TOGETHER):
        part = order[start : start + _TOGETHER]
        packed = pack([rows[index] for index in part], 8)
        with torch.inference_mode():
            states = hidden(model.model, packed)[packed.ends[:, 0], packed.ends[:, 1]]
            likely = torch.softmax((states @ head.T).float(), -1)
        greatest = likely.argmax(-1) == token
        for index, each, first in zip(part, likely[:, token].tolist(), greatest.tolist(), strict=True):
            found[index] = (each, first)
    return found


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """How often a positive lies above a negative, ties half."""
    above = sum((each > other) + 0.5 * (each == other) for each in positive for other in negative)
    return above / (len(positive) * len(negative))
