from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from anchorlm.defenses._base import Defense, DefenseSettings, Speech, ends, room_for, stream_target
from anchorlm.defenses._thinking import Thinking
from anchorlm.records import (
    Access,
    Decision,
    DefenseError,
    Event,
    Finished,
    FormatSupport,
    Request,
    TokenScore,
    TooLongError,
    Usage,
    UserError,
)
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.engine import TokenSequence


class SafeDecodingSettings(DefenseSettings):
    """Defaults of Xu et al. (arXiv 2402.08983), section 4."""

    strength: float = Field(default=3.0, ge=0, description="a: how far to go from the target towards the anchor.")
    mixed_tokens: int = Field(default=2, ge=0, description="m: how many tokens are steered.")
    common: int = Field(default=5, ge=1, description="c: how many likely tokens both models must share.")


def safe_decoding_step(p: Tensor, expert: Tensor, *, common: int, strength: float) -> tuple[Tensor, Tensor]:
    """One step of SafeDecoding (arXiv 2402.08983, equations 1 to 3).

    Args:
        p: The target's distribution (V,).
        expert: The aligned model's, over the same vocabulary (V,).
        common: c: the smallest k is taken for which the two top-k sets share c tokens.
        strength: a in `P = p + a (p_expert - p)`.

    Returns:
        The tokens of the sample space (at least c), and their probabilities, renormalized.
    """
    import torch

    ranks = torch.maximum(_ranks(p), _ranks(expert))  # a token is in both top-k sets if its worse rank is below k
    least = ranks.kthvalue(min(common, len(p))).values
    tokens = (ranks <= least).nonzero()[:, 0]
    mixed = (p + strength * (expert - p))[tokens].clamp_min(0)
    total = mixed.sum()
    return tokens, mixed / total if total > 0 else torch.full_like(mixed, 1 / len(mixed))


def _ranks(p: Tensor) -> Tensor:
    import torch

    order = p.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=p.device)
    return ranks


class SafeDecoding(Defense):
    """Steers the first tokens towards an aligned model of the same vocabulary."""

    name: ClassVar[str] = "safe_decoding"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    needs: ClassVar[Needs] = Needs(target=Access.LOGITS, anchor=Access.LOGITS)
    settings_type: ClassVar[type[DefenseSettings]] = SafeDecodingSettings

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        if self.anchor.model.vocabulary.bytes != self.target.model.vocabulary.bytes:
            raise UserError(
                f"safe_decoding needs one vocabulary, but {self.anchor.model.name} and {self.target.model.name} have "
                "two: choose an anchor of the target's family, or the defense alignbeam."
            )

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Steers m tokens greedily, then lets the target go on."""
        import torch

        from anchorlm.search import scored
        from anchorlm.tokens import token_text

        settings: SafeDecodingSettings = self.settings_for(request)
        generation = request.generation
        thinking = Thinking(self.target, request)
        room = room_for(self.target, len(thinking.prompt), generation)
        count = min(settings.mixed_tokens, room)
        # An expert that sees nothing reads `[image]` in an image's place.
        blind = self.anchor.model.processor is None and not isinstance(request.messages, str)
        asked = self.anchor.model.encode(request.prompt_text if blind else request.prompt, closed=True)
        steps: list[dict[str, Any]] = []
        async with (
            self.target.open(thinking.prompt, room=generation.max_new_tokens + thinking.room) as row,
            self.anchor_for(request).open(asked, room=count) as expert,
        ):
            limit = self.anchor.model.context_length
            if expert.prompt_length + count > limit:  # said before the first token, which could not be taken back
                raise TooLongError(
                    f"The prompt has {expert.prompt_length} tokens, but {self.anchor.model.name} reads {limit} with "
                    f"the {count} that it steers: shorten the prompt, or choose an anchor with a longer context."
                )
            async for piece in thinking.begin(row, settings.refusal):
                yield piece
            if thinking.failed is not None:
                return
            start, stops = row.prompt_length, ends(row, generation)
            room = room_for(self.target, start, generation)
            count = min(count, room)
            speech, ended = Speech(row, self.target.model.vocabulary), False
            for _ in range(count):
                logits = await gather(row.logits(), _expert_logits(expert))
                own, other = row.formed(logits[0], generation)[: self._size], logits[1][: self._size]
                if generation.response_format is not None:  # both models choose among what may be written
                    other = other.masked_fill(own == -torch.inf, -torch.inf)
                p, aligned = own.softmax(dim=-1), other.softmax(dim=-1)
                tokens, mixed = safe_decoding_step(p, aligned, common=settings.common, strength=settings.strength)
                best = int(mixed.argmax())
                token = int(tokens[best])
                named = token_text(self.target.model.vocabulary, token)
                steps.append({"token": named, "probability": round(float(mixed[best]), 4), "sample_space": len(tokens)})
                if ended := token in stops:
                    break
                score: list[TokenScore] = []
                if generation.logprobs is not None:  # what is outside the sample space cannot be chosen
                    score = scored(torch.zeros_like(p).scatter(0, tokens, mixed).log(), token, generation)
                row.append([token], score)
                expert.append([token])
                if ended := row.end_turn():
                    break
                for said in speech.due():
                    yield said
            expert.close()
            yield Decision("mix", {"steps": steps})
            left = room - len(steps)
            steered = len(row.ids) - start
            if ended or left <= 0:
                for said in speech.rest():
                    yield said
                yield Finished("stop" if ended else "length", Usage(len(thinking.prompt), steered, steered))
                return
            rest = generation.model_copy(update={"max_new_tokens": left})
            async for spoken in stream_target(row, self.target, rest, speech, prompt_tokens=len(thinking.prompt)):
                yield spoken

    @property
    def _size(self) -> int:
        """One family's models may differ in how far their embedding rows are padded."""
        return self.target.model.vocabulary.size


async def _expert_logits(expert: TokenSequence) -> Tensor:
    try:
        return await expert.logits()
    except UserError as error:  # an expert that says nothing usable leaves the target without its defense
        raise DefenseError(f"The anchor failed: {error}") from error
