from __future__ import annotations

import math
from asyncio import gather
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anchorlm.defenses.alignbeam._guide import Guide
from anchorlm.defenses.alignbeam._settings import MixAt
from anchorlm.engine import TokenSequence, token_scores, unnamed
from anchorlm.records import DefenseError, GenerationSettings
from anchorlm.tokens import ByteVocabulary, token_text


def mix(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) p + alpha q` (AlignBeam, arXiv 2606.12342, step 2).

    Args:
        p: The target's distribution (..., V).
        q: The anchor's, over the same vocabulary (..., V).
        alpha: Weight of the anchor, 0 to 1.
    """
    return p.lerp(q, alpha)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The distribution of one step and what it was mixed from.

    Attributes:
        f: The mixed distribution (V,).
        p: The target's (V,).
        q: The anchor's, translated (V,); None where the target stood alone.
        weight: The anchor's weight: alpha, or 0 where the target stood alone.
        remark: What was unusual about `q`; None as a rule.
        unnamed: The mass that neither side named, where one of them is on a server that names the likeliest only: by at
            most this much the mixture differs, in total variation, from that of the whole distributions.
    """

    f: Tensor
    p: Tensor
    q: Tensor | None
    weight: float
    remark: str | None = None
    unnamed: float = 0.0

    def top(self, count: int) -> list[tuple[int, float]]:
        """The likeliest tokens, best first, each with its log-probability.

        Raises:
            DefenseError: The mixture is no distribution: nothing of what the anchor says can be written by the target.
        """
        values, ids = self.f.topk(min(count, len(self.f)))
        best = list(zip(ids.tolist(), values.log().tolist(), strict=True))
        if math.isnan(best[0][1]):  # NaN sorts first
            raise DefenseError(
                "The anchor's next token cannot be written in the target's vocabulary: use the projection first-token "
                "or lookahead, which lose nothing."
            )
        return best

    def summary(self, vocabulary: ByteVocabulary, top: int) -> dict[str, Any]:
        """For the trace: the weight, the likeliest tokens of target, anchor and mixture, and the remark."""
        parts = {"target": self.p, "anchor": self.q, "mixture": self.f}
        tops = {name: None if part is None else _top(part, vocabulary, top) for name, part in parts.items()}
        told = {"unnamed": round(self.unnamed, 6)} if self.unnamed else {}
        return {"weight": self.weight, **tops, **told} | ({} if self.remark is None else {"remark": self.remark})


def _top(distribution: Tensor, vocabulary: ByteVocabulary, count: int) -> list[tuple[str, float]]:
    values, ids = distribution.topk(min(count, len(distribution)))
    return [
        (token_text(vocabulary, token), round(value, 4))
        for token, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]


class MixedSequence:
    """A target's response under an anchor's guidance.

    Attributes:
        target: The target's sequence.
        guide: The anchor's view; None where there is no guidance (alpha = 0).
        steps: A summary of each step, if asked for.
        generation: How tokens are chosen. In a response format each model's distribution is that of what may be
            written: an anchor that would rather refuse in prose keeps its weight.

    Args:
        target: The target's sequence.
        guide: The anchor's view, or None.
        vocabulary: The target's.
        alpha: Weight of the anchor.
        mix_at: Where tokens are mixed.
        trace_top: Tokens per distribution in each step's summary; 0: no summaries.
        generation: See above. Its `logprobs` likeliest tokens are noted with each one; None: nothing is.
    """

    def __init__(
        self,
        target: TokenSequence,
        guide: Guide | None,
        vocabulary: ByteVocabulary,
        *,
        alpha: float,
        mix_at: MixAt = "every",
        trace_top: int = 0,
        generation: GenerationSettings,
    ) -> None:
        self.target = target
        self.guide = guide
        self.steps: list[dict[str, Any]] = []
        self._vocabulary = vocabulary
        self._alpha = alpha
        self._mix_at = mix_at
        self._trace_top = trace_top
        self.generation = generation
        self._forced: set[int] = set()
        self._last: Mixture | None = None

    def fork(self) -> MixedSequence:
        """A second response that goes on from here; what was read is not read again."""
        other = MixedSequence(
            self.target.fork(),
            self.guide.fork() if self.guide else None,
            self._vocabulary,
            alpha=self._alpha,
            mix_at=self._mix_at,
            trace_top=self._trace_top,
            generation=self.generation,
        )
        other._forced = set(self._forced)
        other.steps = list(self.steps)
        other._last = self._last
        return other

    @property
    def response(self) -> list[int]:
        """The response's tokens so far."""
        return self.target.ids[self.target.prompt_length :]

    @property
    def guided(self) -> int:
        """Tokens of the response that were a choice: what a response format forces is none of either model."""
        return len(self.response) - sum(place < len(self.target.ids) for place in self._forced)

    async def lead(self, room: int) -> None:
        """Writes what the response format forces, up to the first choice or `room` tokens of the response."""
        while len(self.response) < room and self.target.forced(self.generation):
            self.append((await self.mixture()).top(1)[0][0])

    async def mixture(self) -> Mixture:
        """The distribution of the next token: both models read at the same time."""
        tokens = self.response
        response = self._vocabulary.decode(tokens)
        guide, place = self.guide, len(self.target.ids)
        self._forced = {each for each in self._forced if each < place}
        if forced := self.target.forced(self.generation):
            self._forced.add(place)
        if guide is None or forced or (self._mix_at == "boundaries" and not guide.at_boundary(response)):
            p = self.target.formed(await self.target.logits(), self.generation).softmax(dim=-1)
            step = Mixture(p, p, None, 0.0, unnamed=unnamed(self.target))
        else:
            logits, q = await gather(self.target.logits(), guide.distribution(response, tokens))
            p = self.target.formed(logits, self.generation).softmax(dim=-1)
            q = self._formed(q.to(p.device), p)
            rest = (1 - self._alpha) * unnamed(self.target) + self._alpha * guide.unnamed
            step = Mixture(mix(p, q, self._alpha), p, q, self._alpha, guide.remark, rest)
        if self._trace_top:
            self.steps.append(step.summary(self._vocabulary, self._trace_top))
        self._last = step
        return step

    def _formed(self, q: Tensor, p: Tensor) -> Tensor:
        """The anchor's distribution of what may be written; the target's where it leaves no mass to any of that."""
        if self.generation.response_format is None:
            return q
        allowed = q.where(self.target.formed(torch.zeros_like(q), self.generation) == 0, torch.zeros_like(q))
        total = allowed.sum()
        return p if total == 0 else allowed / total

    def append(self, token: int) -> None:
        """Chooses the next token, from the last mixture."""
        wanted = self.generation.logprobs
        if wanted is None or self._last is None:
            self.target.append([token])
        else:
            self.target.append([token], token_scores(self._last.f.log()[None], [token], wanted))

    def release_guide(self) -> None:
        """From here on the target goes alone: the anchor's row is free."""
        if self.guide is not None:
            self.guide.close()
            self.guide = None
