from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anchorlm.records import GenerationSettings

if TYPE_CHECKING:
    from anchorlm.models import CausalModel
    from anchorlm.tokens import Form


@dataclass(slots=True)
class Held:
    """The grammar that the answer of one sequence is held to, from its first token on.

    Attributes:
        form: Where the answer stands in it; None until a response format is asked for.
        format: That response format.
    """

    form: Form | None = None
    format: dict[str, Any] | None = None

    def fork(self) -> Held:
        """For a second sequence that goes on from here."""
        return Held(None if self.form is None else self.form.fork(), self.format)

    @property
    def closed(self) -> bool:
        """Whether the grammar alone says where the answer ends: in a free text another turn may begin."""
        return self.form is not None and not (self.format or {}).get("free")

    def by(self, model: CausalModel, generation: GenerationSettings) -> Form | None:
        """The grammar that a request asks for; None where it asks for none.

        Raises:
            UserError: The schema cannot be compiled, or the library is not there.
        """
        wanted = generation.response_format
        if wanted is None:
            return None
        if self.form is None or self.format != wanted:
            self.form, self.format = model.grammars.form(wanted), wanted
        return self.form


class FormedSequence:
    """What a sequence says of the response format that its answer is held to."""

    __slots__ = ()
    _engine: Any
    _held: Held
    prompt_length: int

    @property
    def ids(self) -> list[int]:
        """Every token, prompt included."""
        raise NotImplementedError

    def allowed(self, generation: GenerationSettings) -> Tensor | None:
        """The tokens (V,) that may come next in the response format of a request; None where it asks for none.

        Raises:
            UserError: No answer can fit it.
        """
        form = self._held.by(self._engine.model, generation)
        return None if form is None else form.allowed(self.ids[self.prompt_length :])

    def formed(self, logits: Tensor, generation: GenerationSettings) -> Tensor:
        """See `TokenSequence`."""
        allowed = self.allowed(generation)
        return logits if allowed is None else masked(logits[None], [allowed])[0]

    def forced(self, generation: GenerationSettings) -> bool:
        """See `TokenSequence`."""
        form = self._held.by(self._engine.model, generation)
        return form is not None and bool(form.forced(self.ids[self.prompt_length :]))


def masked(logits: Tensor, allowed: Sequence[Tensor]) -> Tensor:
    """Logits (n, V) under which nothing is chosen but what is allowed (V,) in each row."""
    mask = torch.stack(list(allowed)).to(logits.device)
    return logits.masked_fill(~mask, -math.inf)
