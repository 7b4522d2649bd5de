from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from anchorlm.engine import TokenSequence
from anchorlm.models import CausalModel
from anchorlm.records import Access, GenerationSettings


@dataclass(frozen=True)
class ServedTarget:
    """The server's model in the place of a target: its tokenizer and template are here, its weights are not."""

    model: CausalModel
    access: Access = Access.LOGITS


@dataclass(eq=False)
class ServerRow:
    """One request of a server in the place of a target's sequence: the server reads, and this gives it on.

    Attributes:
        model: The target.
        prompt: Token ids of the prompt.
        response: Token ids that the server has written.
        read: The server's logits (V,) for the next token.
    """

    model: CausalModel
    prompt: list[int]
    response: Sequence[int] = ()
    read: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def ids(self) -> list[int]:
        """See `TokenSequence`."""
        return [*self.prompt, *self.response]

    @property
    def prompt_length(self) -> int:
        """See `TokenSequence`."""
        return len(self.prompt)

    async def logits(self) -> Tensor:
        """What the server has read, without tokens that are none."""
        logits = self.read.float()
        if not self.model.silent_ids:
            return logits
        return logits.index_fill(-1, torch.tensor(self.model.silent_ids, device=logits.device), -torch.inf)

    def formed(self, logits: Tensor, generation: GenerationSettings) -> Tensor:
        """See `TokenSequence`: a grammar is the server's own matter."""
        return logits

    def forced(self, generation: GenerationSettings) -> bool:
        """See `TokenSequence`."""
        return False

    @property
    def sequence(self) -> TokenSequence:
        """As a sequence. A mixture asks for no more than there is here."""
        return cast("TokenSequence", cast("Any", self))
