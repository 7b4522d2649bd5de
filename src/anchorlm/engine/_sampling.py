from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anchorlm.records import GenerationSettings, TokenScore

_COLDEST = 1e-30
"""Temperature below which logits would be divided into infinity, and what is drawn would be no token in particular."""


def token_scores(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenScore]:
    """How likely tokens are.

    Args:
        logits: (n, V), or log-probabilities.
        tokens: One for each row.
        top: How many of the likeliest are named next to it.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    best = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenScore(token, value, each) for token, value, each in zip(tokens, own, best, strict=True)]


@dataclass(slots=True)
class Sampler:
    """Chooses tokens for one sequence; its random numbers are its own, so neighbours do not matter."""

    settings: GenerationSettings
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.settings.seed)

    @property
    def plain(self) -> bool:
        """Whether the most likely token is taken as it is."""
        return not self.settings.do_sample and self.settings.repetition_penalty == 1.0


def choose(logits: Tensor, samplers: Sequence[Sampler], histories: Sequence[Sequence[int]]) -> list[int]:
    """The next token of each row, in the order of transformers: repetition penalty, temperature, top-k, top-p.

    Of equally likely tokens at the edge of the `top_k`, just `top_k` are kept.

    Args:
        logits: (n, V), float32, finite where it is largest.
        samplers: One for each row.
        histories: Tokens so far, prompt included, one list for each row (for the repetition penalty).
    """
    logits = _shaped(logits, samplers, histories)
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    sampled = [index for index, sampler in enumerate(samplers) if sampler.settings.do_sample]
    if sampled:
        drawn = _draw(logits[sampled], [samplers[index] for index in sampled])
        for index, token in zip(sampled, drawn, strict=True):
            tokens[index] = token
    return tokens


def _shaped(logits: Tensor, samplers: Sequence[Sampler], histories: Sequence[Sequence[int]]) -> Tensor:
    """Repetition penalty and temperature."""
    logits = logits.clone()
    for row, (sampler, history) in enumerate(zip(samplers, histories, strict=True)):
        penalty = sampler.settings.repetition_penalty
        if penalty != 1.0:
            seen = torch.tensor(sorted(set(history)), device=logits.device)
            values = logits[row, seen]
            logits[row, seen] = torch.where(values < 0, values * penalty, values / penalty)
    scale = [max(sampler.settings.temperature, _COLDEST) if sampler.settings.do_sample else 1.0 for sampler in samplers]
    return logits / torch.tensor(scale, device=logits.device)[:, None]


def _draw(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Inverse-CDF sampling over the sorted distribution: one uniform number a row, whatever the batch.

    In descending order both top-k and top-p keep a head of the distribution, so the number is scaled to the
    head's mass and looked up in the cumulative sum.
    """
    device = logits.device
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    size = logits.shape[-1]
    top_k = torch.tensor([min(s.settings.top_k or size, size) for s in samplers], device=device)
    within_k = cumulative.gather(-1, top_k[:, None] - 1)
    top_p = torch.tensor([s.settings.top_p for s in samplers], device=device)[:, None]
    # top_p applies to what top_k left, and keeps the token that crosses the bound.
    kept = torch.minimum((cumulative < top_p * within_k).sum(dim=-1) + 1, top_k)
    mass = cumulative.gather(-1, kept[:, None] - 1)
    uniform = torch.tensor([s.random.random() for s in samplers], device=device, dtype=logits.dtype)[:, None]
    place = torch.searchsorted(cumulative, uniform * mass, right=True)
    place = torch.minimum(place, kept[:, None] - 1)
    return [int(token) for token in order.gather(-1, place)[:, 0].tolist()]
