from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from anchorlm.engine import Sampler, TokenSequence, choose, token_scores
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


class Alone:
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

    def fork(self) -> Alone:
        """See `Proposal`."""
        return Alone(self.row.fork(), self._stops)

    def crop(self, length: int) -> None:
        """See `Proposal`."""
        self.row.crop(self.row.prompt_length + length)

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`; without a penalty the engine goes on by itself."""
        if diversity is None or not stepwise(self.row):
            return (await self.row.generate(generation)).finish_reason == "stop"
        sampler = Sampler(generation)
        for step in range(generation.max_new_tokens):
            logits = await self.row.logits()
            logits = logits - diversity.penalty(step, logits)
            token = draw(logits, sampler, self.row.ids)
            if token in self._stops:
                return True
            self.row.append([token], scored(logits, token, generation))
            if self.row.end_turn():
                return True
        return False

    def close(self) -> None:
        """See `Proposal`."""
        self.row.close()


def stepwise(row: TokenSequence) -> bool:
    """Whether a row can be written token by token. On another server each token would take a call: there, what failed
    is sampled again with another seed and without a penalty.
    """
    return not hasattr(row, "unnamed")


def scored(logits: Tensor, token: int, generation: GenerationSettings) -> list[TokenScore]:
    """How likely a token was under logits (V,), where that is to be known."""
    return [] if generation.logprobs is None else token_scores(logits[None], [token], generation.logprobs)


def draw(logits: Tensor, sampler: Sampler, history: Sequence[int]) -> int:
    """The next token from logits (V,), as the engine would choose it."""
    return choose(logits[None], [sampler], [history])[0]
