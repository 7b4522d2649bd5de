from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from anchorlm.engine import Sampler, TokenSequence, choose, stepwise, token_scores
from anchorlm.records import GenerationSettings, TokenScore


@dataclass(frozen=True, slots=True)
class Diversity:
    """What failed blocks have in common is made less likely: `strength` times the share of them that had the token at
    the same step is taken from its logit (InferenceGuard, arXiv 2502.01208).

    Attributes:
        blocks: The tokens of each failed block.
        strength: In nats.
    """

    blocks: Sequence[Sequence[int]]
    strength: float

    def penalty(self, step: int, like: Tensor) -> Tensor:
        """What to take from the logits (V,) at a step of the block."""
        tokens = [block[step] for block in self.blocks if len(block) > step]
        seen = torch.tensor(tokens, dtype=torch.long, device=like.device)
        return torch.bincount(seen, minlength=len(like)).to(like.dtype) * (self.strength / len(self.blocks))


class Proposal(Protocol):
    """What writes a response block by block: the target, or the target under an anchor's guidance."""

    @property
    def row(self) -> TokenSequence:
        """The target's sequence."""
        ...

    @property
    def response(self) -> list[int]:
        """The response's tokens so far."""
        ...

    def fork(self) -> Self:
        """A second response that goes on from here."""
        ...

    def crop(self, length: int) -> None:
        """Forgets the response's tokens from `length` on."""
        ...

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """Writes up to `max_new_tokens` more; whether the turn was ended."""
        ...

    def close(self) -> None:
        """Gives the rows back."""
        ...


class TargetProposal:
    """The target by itself.

    Args:
        row: Its sequence.
        stops: The tokens that end its turn.
    """

    def __init__(self, row: TokenSequence, stops: frozenset[int]) -> None:
        self.row = row
        self._stops = stops

    @property
    def response(self) -> list[int]:
        """See `Proposal`."""
        return self.row.ids[self.row.prompt_length :]

    def fork(self) -> TargetProposal:
        """See `Proposal`."""
        return TargetProposal(self.row.fork(), self._stops)

    def crop(self, length: int) -> None:
        """See `Proposal`."""
        self.row.crop(self.row.prompt_length + length)

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`; without a penalty the engine goes on by itself, and on another server always: there, what
        failed is sampled again with another seed.
        """
        if diversity is None or not stepwise(self.row):
            return (await self.row.generate(generation)).finish_reason == "stop"
        sampler = Sampler(generation)
        for step in range(generation.max_new_tokens):
            logits = await self.row.logits()
            logits = logits - diversity.penalty(step, logits)
            if take(self.row, logits, sampler, self._stops, generation):
                return True
        return False

    def close(self) -> None:
        """See `Proposal`."""
        self.row.close()


def scored(logits: Tensor, token: int, generation: GenerationSettings) -> list[TokenScore]:
    """How likely a token was under logits (V,), where that is to be known."""
    return [] if generation.logprobs is None else token_scores(logits[None], [token], generation.logprobs)


def take(
    row: TokenSequence, logits: Tensor, sampler: Sampler, stops: frozenset[int], generation: GenerationSettings
) -> bool:
    """Adds the next token from logits (V,) to a row; whether it ended the turn."""
    logits = row.formed(logits, generation)
    [token] = choose(logits[None], [sampler], [row.ids], [row.prompt_length])
    if token in stops:
        return True
    row.append([token], scored(logits, token, generation))
    return row.end_turn()
