from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anchorlm.records import GenerationSettings, TokenScore

_COLDEST = 1e-30
"""Temperature below which logits would be divided into infinity, and what is drawn would be no token in particular."""

_HEAD = 1024
"""Likeliest tokens that are put in order where no top_k says how many: mostly one of them is drawn."""


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
        return not self.settings.do_sample and not self.penalized and self.settings.response_format is None

    @property
    def penalized(self) -> bool:
        """Whether tokens that were seen before are to become less likely, or more."""
        own = self.settings
        return own.repetition_penalty != 1.0 or own.presence_penalty != 0.0 or own.frequency_penalty != 0.0


def choose(
    logits: Tensor,
    samplers: Sequence[Sampler],
    histories: Sequence[Sequence[int]],
    starts: Sequence[int] | None = None,
) -> list[int]:
    """The next token of each row, in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p.

    The other two penalties come behind the first one, as in vLLM. They count the answer's tokens alone. Of equally
    likely tokens at the edge of the `top_k`, just `top_k` are kept.

    Args:
        logits: (n, V), float32, finite where it is largest.
        samplers: One for each row.
        histories: Tokens so far, prompt included, one list for each row (for the penalties).
        starts: Where the answer begins in each of them; None: there is no prompt.
    """
    logits = _shaped(logits, samplers, histories, starts or [0] * len(samplers))
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    sampled = [index for index, sampler in enumerate(samplers) if sampler.settings.do_sample]
    if sampled:
        drawn = _draw(logits[sampled], [samplers[index] for index in sampled])
        for index, token in zip(sampled, drawn, strict=True):
            tokens[index] = token
    return tokens


def _shaped(
    logits: Tensor, samplers: Sequence[Sampler], histories: Sequence[Sequence[int]], starts: Sequence[int]
) -> Tensor:
    """Penalties and temperature."""
    logits = logits.clone()
    for row, (sampler, history, start) in enumerate(zip(samplers, histories, starts, strict=True)):
        if sampler.penalized:
            _penalize(logits[row], sampler.settings, history, start)
    scale = [max(sampler.settings.temperature, _COLDEST) if sampler.settings.do_sample else 1.0 for sampler in samplers]
    return logits / torch.tensor(scale, device=logits.device)[:, None]


def _penalize(logits: Tensor, settings: GenerationSettings, history: Sequence[int], start: int) -> None:
    """Changes the logits (V,) of tokens that were seen before."""
    if (penalty := settings.repetition_penalty) != 1.0 and history:
        seen = torch.tensor(sorted(set(history)), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
    if settings.presence_penalty == 0.0 and settings.frequency_penalty == 0.0:
        return
    if counts := Counter(history[start:]):
        said = torch.tensor(list(counts), device=logits.device)
        often = torch.tensor(list(counts.values()), device=logits.device, dtype=logits.dtype)
        logits[said] -= settings.presence_penalty + settings.frequency_penalty * often


def _draw(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Inverse-CDF sampling over the head of the distribution: one uniform number a row, whatever the batch.

    In descending order top-k, top-p and min-p each keep a head of the distribution, so the number is scaled to the
    head's mass and looked up in the cumulative sum. Only the head is put in order: a vocabulary may be large.
    """
    size = logits.shape[-1]
    uniform = torch.tensor([s.random.random() for s in samplers], device=logits.device, dtype=logits.dtype)
    usual = _HEAD if size > 4 * _HEAD else size
    widths = [min(sampler.settings.top_k or usual, size) for sampler in samplers]
    tokens = [-1] * len(samplers)
    for width in sorted(set(widths)):
        rows = [index for index, own in enumerate(widths) if own == width]
        for index, token in zip(rows, _looked_up(logits, uniform, samplers, rows, width), strict=True):
            tokens[index] = token
    if missed := [index for index, token in enumerate(tokens) if token < 0]:
        for index, token in zip(missed, _looked_up(logits, uniform, samplers, missed, size), strict=True):
            tokens[index] = token
    return tokens


def _looked_up(logits: Tensor, uniform: Tensor, samplers: Sequence[Sampler], rows: list[int], width: int) -> list[int]:
    """What some rows draw, by their `width` likeliest tokens; -1 where these are too few to tell."""
    device = logits.device
    some, uniform = logits[rows], uniform[rows][:, None]
    values, order = _head(some, width)
    whole = torch.tensor([samplers[row].settings.top_k is None for row in rows], device=device)[:, None]
    # Without top_k the rest of the vocabulary has its share too.
    total = torch.where(whole, some.logsumexp(dim=-1, keepdim=True), values.logsumexp(dim=-1, keepdim=True))
    cumulative = (values - total).exp().cumsum(dim=-1)
    reached = cumulative[:, -1:]
    top_p = torch.tensor([samplers[row].settings.top_p for row in rows], device=device)[:, None]
    within = reached if width == logits.shape[-1] else torch.where(whole, torch.ones_like(reached), reached)
    # top_p applies to what top_k left, and keeps the token that crosses the bound.
    kept = ((cumulative < top_p * within).sum(dim=-1, keepdim=True) + 1).clamp(max=width)
    # min_p compares with the likeliest token, so that what top_k and top_p left does not matter to it.
    min_p = torch.tensor([samplers[row].settings.min_p for row in rows], device=device)[:, None]
    likely = (values >= values[:, :1] + min_p.log()).sum(dim=-1, keepdim=True)
    kept = torch.minimum(kept, likely)
    known = (top_p * within <= reached) | (likely < width)
    mass = torch.where(known, cumulative.gather(-1, kept - 1), within)
    place = torch.searchsorted(cumulative, uniform * mass, right=True)
    found = order.gather(-1, torch.minimum(place, kept - 1))
    told = known | ((top_p >= 1) & (min_p == 0) & (uniform < reached))
    drawn: list[int] = torch.where(told, found, torch.full_like(found, -1))[:, 0].tolist()
    return drawn


def _head(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` likeliest tokens of each row and their logits, in descending order; of equal ones the first first.

    What `topk` gives of equal ones is any of them, and would depend on how it is computed.
    """
    size = logits.shape[-1]
    if width * 2 > size:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, :width], order[:, :width]
    values, order = logits.topk(width + 1, dim=-1)
    if bool((values[:, width - 1] == values[:, width]).any()):
        edge = values[:, width - 1 : width]
        above, equal = logits > edge, logits == edge
        room = width - above.sum(dim=-1, keepdim=True)
        order = (above | (equal & (equal.cumsum(dim=-1) <= room))).nonzero()[:, 1].view(-1, width)
    else:
        order = order[:, :width].sort(dim=-1).values
    values, places = logits.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, order.gather(-1, places)
