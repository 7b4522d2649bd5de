from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, DefenseSettings, Speech, ends, room_for
from anchorlm.defenses._thinking import Thinking
from anchorlm.records import Access, Event, Finished, FormatSupport, Request, Usage
from anchorlm.team import Needs

if TYPE_CHECKING:
    from torch import Tensor


class ARGSSettings(DefenseSettings):
    """Defaults of Khanov et al. (arXiv 2402.01694), and of the Lagrangian variant in InferenceGuard's table."""

    k: int = Field(default=10, ge=1, le=256, description="How many tokens are tried at each step.")
    w: float = Field(default=1.5, ge=0, description="Weight of the reward, next to the raw logit.")
    weight: float = Field(
        default=5.0, ge=0, description="lambda: how much a unit of cost takes from the reward. 0 is ARGS as published."
    )


def args_step(logits: Tensor, k: int, rewards: Tensor, w: float) -> int:
    """The place among the k likeliest tokens of the one with the highest `logit + w * reward` (ARGS, equation 2).

    Args:
        logits: Raw logits (V,).
        k: How many are tried.
        rewards: Of the text with each of them at the end, likeliest first (k,).
        w: Weight of the reward.
    """
    return int((logits.topk(k).values + w * rewards.to(logits.device, logits.dtype)).argmax())


class ARGS(Defense):
    """Reward-guided decoding, token by token and greedy: each of the k likeliest tokens is scored as a text's last."""

    name: ClassVar[str] = "args"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    needs: ClassVar[Needs] = Needs(target=Access.LOGITS, cost=True, reward=True)
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "tokens"
    settings_type: ClassVar[type[DefenseSettings]] = ARGSSettings

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Scores k texts for each token."""
        from anchorlm.search import scored

        settings: ARGSSettings = self.settings_for(request)
        model = self.target.model
        thinking = Thinking(self.target, request)
        room = room_for(self.target, len(thinking.prompt), request.generation)
        ended = False
        async with self.target.open(thinking.prompt, room=room + thinking.room) as row:
            async for thought in thinking.begin(row, settings.refusal):
                yield thought
            if thinking.failed is not None:
                return
            request, start = thinking.request, row.prompt_length
            room = room_for(self.target, start, request.generation)
            speech = Speech(row, model.vocabulary)
            for _ in range(room):
                written = row.ids[start:]
                logits = row.formed(await row.logits(), request.generation)
                k = min(settings.k, int(logits.isfinite().sum()))
                tokens = logits.topk(k).indices.tolist()
                rewards = await self._rewards(request, settings, written, tokens)
                token = tokens[args_step(logits, k, rewards, settings.w)]
                if ended := token in ends(row, request.generation):
                    break
                row.append([token], scored(logits, token, request.generation))
                if ended := row.end_turn():
                    break
                for piece in speech.due():
                    yield piece
            for piece in speech.rest():
                yield piece
            written = row.ids[start:]
        yield Finished("stop" if ended else "length", Usage(len(thinking.prompt), len(written), len(written)))

    async def _rewards(self, request: Request, settings: ARGSSettings, written: list[int], tokens: list[int]) -> Tensor:
        """The reward less the weighted cost of the text with each token at its end (k,)."""
        import torch

        stops = self.target.model.stop_ids
        texts = [
            self.target.model.vocabulary.decode([*written, *([] if token in stops else [token])]).decode(
                "utf-8", errors="replace"
            )
            for token in tokens
        ]
        rewards = torch.tensor(await self.scores("reward", request, texts))
        if settings.weight == 0:
            return rewards
        return rewards - settings.weight * torch.tensor(await self.scores("cost", request, texts))
