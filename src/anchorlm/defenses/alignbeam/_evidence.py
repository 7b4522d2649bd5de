from __future__ import annotations

from asyncio import gather
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from anchorlm.records import Access, Artifact, DefenseError, Messages, Request, UserError
from anchorlm.steering import Readers

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.engine import Engine, TokenSequence
    from anchorlm.models import CausalModel
    from anchorlm.steering import GateReader, Reading


_SURE = 1e-3
"""No opening is taken for surer than this."""

_TOLD = 0.02
"""Tokens whose share lies nearer than this to a half tell nothing, and are not kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What an aligned model's first token tells about the prompt before it.

    A model that refuses opens otherwise than one that answers, in its own words and language. Which tokens those are is
    counted, not listed: the share of each token's mass that fell after harmful prompts.

    Attributes:
        tokens: The tokens that tell something (n,).
        shares: Of each the share of its mass that fell after harmful prompts, as many of them as harmless ones (n,).
    """

    tokens: Tensor
    shares: Tensor

    @classmethod
    def fit(cls, harmful: Tensor, harmless: Tensor, prompts: int) -> Self:
        """Counts, with one prompt's mass before each token on either side: a token that was hardly seen says nothing.

        Args:
            harmful: The mean of the distributions of the first token after harmful prompts (V,).
            harmless: The same after harmless ones (V,).
            prompts: How many of a class there were, of the smaller one.
        """
        before = 1 / max(prompts, 1)
        shares = (harmful + before) / (harmful + harmless + 2 * before)
        tokens = ((shares - 0.5).abs() > _TOLD).nonzero()[:, 0]
        return cls(tokens, shares[tokens])

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """As an artifact keeps it."""
        return cls(tensors["opening.tokens"], tensors["opening.shares"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """For an artifact."""
        return {"opening.tokens": self.tokens, "opening.shares": self.shares}

    def score(self, first: Tensor) -> float:
        """Log-odds that the prompt is harmful: of the mean share, by what the model would say first.

        Args:
            first: The distribution of the first token (V,).
        """
        import torch

        mass = first[self.tokens.to(first.device)].float().cpu()
        share = (mass @ self.shares + 0.5 * (1 - mass.sum())).clamp(_SURE, 1 - _SURE)
        return float(torch.logit(share))

    @property
    def most(self) -> float:
        """The highest score that there is, whatever the model says."""
        import torch

        share = max([0.5, *self.shares.tolist()])
        return float(torch.logit(torch.tensor(min(share, 1 - _SURE))))


EVIDENCE = "alignbeam"
"""The kind of artifact that `anchorlm fit alignbeam` writes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the evidence about a prompt comes to.

    Attributes:
        score: Log-odds that the prompt is harmful.
        threshold: At or below it the target answers alone.
        high: From there on harm is certain, and where the anchor guides all the same, it has its full weight.
        opening: What the anchor's first token tells. None where the anchor was not read, and the score is the highest
            that it could have led to.
        gate: What InferAligner's gate read. None where it is not a part of the evidence.
    """

    score: float
    threshold: float
    high: float
    opening: float | None
    gate: Reading | None

    @property
    def open(self) -> bool:
        """Whether the anchor guides at all."""
        return not self.score <= self.threshold

    @property
    def share(self) -> float:
        """Of the anchor's weight: 0 at the threshold, 1 from `high` on, linear between."""
        if not self.open:
            return 0.0
        if self.sure:
            return 1.0
        return (self.score - self.threshold) / (self.high - self.threshold)

    @property
    def sure(self) -> bool:
        """Whether harm is certain."""
        return self.open and not self.score < self.high  # also what is no number

    @property
    def data(self) -> Mapping[str, Any]:
        """For the trace."""
        return {
            "reader": "evidence",
            **({} if self.opening is None else {"opening": round(self.opening, 3)}),
            **({} if self.gate is None else {"gate": self.gate.data}),
            "score": round(self.score, 3),
            "threshold": round(self.threshold, 3),
            "high": round(self.high, 3),
            "share": round(self.share, 3),
            "open": self.open,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Tells how far a prompt is harmful, by everything that this target and this anchor say about it.

    Attributes:
        artifact: What was fitted.
        opening: Reads the anchor's first token.
        aligner: Reads InferAligner's gate, where that is a part of it.
        readers: Whose activations the gate reads.
    """

    artifact: Artifact
    opening: Opening
    aligner: GateReader | None
    readers: Readers

    @classmethod
    def load(cls, folder: str | Path, target: Engine, anchor: Engine, aligner: GateReader | None) -> Self:
        """Takes an artifact of `anchorlm fit alignbeam`, and the gate that it was fitted with.

        Raises:
            UserError: No such artifact, or one that was fitted with another target, anchor or gate.
        """
        from anchorlm.models import stamp

        found = Artifact.load(folder, EVIDENCE)
        found.require("target", stamp(target.model))
        found.require("anchor", stamp(anchor.model))
        wanted = found.settings["gate"]
        if wanted is not None and (aligner is None or aligner.artifact.id != wanted):
            raise UserError(
                f"The evidence in {str(folder)!r} was fitted with another gate: give the artifact of InferAligner that "
                "it was fitted with, or fit it again with `anchorlm fit alignbeam`."
            )
        return cls(found, Opening.of(found.tensors), aligner if wanted else None, found.settings["readers"])

    async def read(
        self, row: TokenSequence, target: Engine, anchor: Engine, request: Request, bias: float = 0.0
    ) -> Seen:
        """Reads gate and opening, neither guided nor steered.

        Where the gate says harmless, and nothing that the anchor might say would change that, the anchor is not read.
        What it would say first comes with the forward in which the gate reads it.

        Args:
            row: The target's sequence, nothing but the prompt read.
            target: Runs the target.
            anchor: Runs the anchor.
            request: What is asked.
            bias: Added to the score: the larger, the more prompts count as harmful.

        Raises:
            DefenseError: One of them says nothing that can be read.
        """
        known: dict[int, float] = {}

        def heard(look: int, logits: Tensor) -> None:
            known[look] = self.opening.score(_first(anchor, logits))

        gate = None
        if self.aligner is not None:
            gate = await self.aligner.read(request.plain, self.readers, target, anchor, row=row, heard=heard)
        if not known and self.artifact.settings["opening_weight"] >= 0:
            worst = self.combined(gate, self.opening.most, bias)
            if not worst.open:
                return replace(worst, opening=None)
        return self.combined(gate, await opening_score(self.opening, anchor, request.plain, known), bias)

    def combined(self, gate: Reading | None, opening: float, bias: float = 0.0) -> Seen:
        """Both in one, as it was fitted."""
        settings = self.artifact.settings
        score = settings["offset"] + bias + settings["opening_weight"] * opening
        if gate is not None:
            score += settings["gate_weight"] * (gate.score - gate.threshold)
        return Seen(score, settings["low"], settings["high"], opening, gate)


async def opening_score(
    opening: Opening, anchor: Engine, request: Messages | str, known: Mapping[int, float] | None = None
) -> float:
    """What the anchor's first token tells of a request: of everything that it is asked in it, the worst.

    It is asked everything that a gate reads (`looks`): what stands around it may hide what a text wants.

    Args:
        opening: Reads it.
        anchor: Runs the anchor.
        request: A conversation, or a raw text.
        known: Scores that were read already, by the index of what was read among the looks.

    Raises:
        DefenseError: The anchor says nothing usable.
    """
    from anchorlm.steering import as_texts, looks, says_nothing

    async def one(prompt: Messages) -> float:
        async with anchor.open(anchor.model.encode(prompt)) as sequence:
            try:
                return opening.score(_first(anchor, await sequence.logits()))
            except UserError as error:
                raise DefenseError(f"The anchor failed: {error}") from error

    known, shown = known or {}, as_texts(looks(request))
    rest = [
        look
        for index, look in enumerate(shown)
        if index not in known and not (index and says_nothing(anchor.model, look))
    ]
    scores = [*known.values(), *await gather(*(one(look.prompt) for look in rest))]
    return nan if any(map(isnan, scores)) else max(scores)


def _first(engine: Engine, logits: Tensor) -> Tensor:
    """The distribution (V,) of the first token. What a server did not name has no share in it, and tells nothing."""
    return logits.softmax(dim=-1) if Access.LOGITS in engine.access else logits.exp()


def readers_of(gate: Artifact, anchor: Engine) -> Readers:
    """Who reads a gate where no one says it: both models, where the anchor is its second reader, else the target.

    Args:
        gate: An artifact of InferAligner.
        anchor: Runs the anchor.
    """
    from anchorlm.models import stamp

    if Access.ACTIVATIONS not in anchor.access or "reader" not in gate.models:
        return "target"
    return "both" if gate.models["reader"].difference(stamp(anchor.model)) is None else "target"


def beside(model: CausalModel, name: str) -> Path | None:
    """The artifact that lies in a model's own folder, the last adapter's first. None if there is none.

    Args:
        model: Which model.
        name: Of the artifact's folder, such as `inferaligner`.
    """
    if model.origin is None:
        return None
    for folder in (*reversed(model.origin.adapters), model.origin.base):
        place = Path(folder) / name
        if (place / "artifact.json").is_file():
            return place
    return None
