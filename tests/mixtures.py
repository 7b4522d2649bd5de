"""AlignBeam's mixture as a guard of ours makes it, for what must equal it elsewhere."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from anchorlm.defenses.alignbeam import Guidance, MixedSequence, MixtureSettings
from anchorlm.engine import Engine, LocalEngine, runtime
from anchorlm.models import CausalModel
from anchorlm.records import Request


def loaded(folder: Path) -> LocalEngine:
    """A model in our own engine, in float32."""
    return LocalEngine(CausalModel.from_pretrained(folder, dtype="float32"))


class Ours:
    """The target runs here."""

    def __init__(self, target: LocalEngine, anchor: LocalEngine, settings: MixtureSettings) -> None:
        self.target = target
        self.anchor = anchor
        self.settings = settings
        self.guidance = Guidance(cast("Any", SimpleNamespace(target=target, anchor=anchor)), settings)

    def logits(self, messages: Any, tokens: list[int]) -> list[torch.Tensor]:
        """The log-probabilities before each of `tokens`, the response's."""
        return runtime().run(self._logits(Request(messages), tokens))

    async def _logits(self, request: Request, tokens: list[int]) -> list[torch.Tensor]:
        prompt = self.target.model.encode(request.messages)
        async with AsyncExitStack() as stack:
            row = await stack.enter_async_context(self.target.open(prompt, room=len(tokens)))
            anchor: Engine = self.anchor
            mixed: MixedSequence = await self.guidance.open(stack, row, anchor, request, self.settings, rows=1)
            found = []
            for token in tokens:
                found.append((await mixed.mixture()).f.log())
                mixed.append(token)
            return found
