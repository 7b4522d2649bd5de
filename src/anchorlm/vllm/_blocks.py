from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from anchorlm.engine import Wishes, require_finite
from anchorlm.records import DefenseError, UserError


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one request in one step of a server, which reads the tokens of all requests in one row.

    Attributes:
        start: Its first token there.
        end: One behind its last token.
        state: By which it is steered; 0: by nothing.
        steered: How many of its tokens are, from the first one on.
        strength: Factor of what is added.
        places: Those of its tokens whose activations are read.
        summed: From which of its tokens on activations are summed; None: from none.
    """

    start: int
    end: int
    state: int = 0
    steered: int = 0
    strength: float = 1.0
    places: tuple[int, ...] = ()
    summed: int | None = None

    @classmethod
    def of(cls, wishes: Wishes, start: int, count: int, read: int) -> Self:
        """Of a request's next tokens.

        Args:
            wishes: The request's.
            start: Where the tokens begin in the step.
            count: How many there are.
            read: How many of the request were read before.
        """
        until, begin = wishes.until, wishes.mean_from
        steered = (count if until is None else max(0, min(count, until - read))) if wishes.state else 0
        last = wishes.places[-1] if wishes.places else -1
        summed = None if begin is None or begin >= read + count or read > last else max(0, begin - read)
        places = tuple(place - read for place in wishes.between(read, read + count))
        return cls(start, start + count, wishes.state, steered, wishes.strength, places, summed)

    @property
    def rows(self) -> int:
        """How many rows it takes of those that are read."""
        return len(self.places) + (self.summed is not None)


class SteeredBlocks:
    """Adds to the output of every block of a server's model what each token's request is steered by, and reads it.

    Everything that changes lies in buffers, and the hooks are there before the model is compiled: so they are part of
    what is compiled, and a later step changes numbers only. A block gives `(hidden, residual)`, and the activation is
    the sum of the two.

    Args:
        blocks: Of the model.
        width: Of the activations.
        dtype: Of the activations, which may not be that of the weights.
        tokens: Most tokens of a step.
        places: Most rows that are read in a step.
        states: How many there may be to be steered by.
    """

    def __init__(
        self, blocks: nn.ModuleList, *, width: int, dtype: torch.dtype, tokens: int, places: int, states: int
    ) -> None:
        device = next(blocks.parameters()).device  # of quantized blocks only this is the stream's, too
        self._blocks = blocks
        self._width = width
        self._states = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._strengths = torch.zeros(tokens, 1, dtype=dtype, device=device)
        self._places = torch.zeros(places, dtype=torch.int64, device=device)
        # The last row of the sums takes what no one asks for.
        self._sums = torch.full((tokens,), places, dtype=torch.int64, device=device)
        self._rows: dict[int, int] = {}
        self._spans: Sequence[Span] = ()
        for block in blocks:
            buffers = {
                "states": self._states,
                "strengths": self._strengths,
                "places": self._places,
                "sums": self._sums,
                "table": torch.zeros(1 + states, width, dtype=dtype, device=device),
                "seen": torch.zeros(places, width, dtype=dtype, device=device),
                "summed": torch.zeros(places + 1, width, device=device),
                "fired": torch.zeros(1, dtype=torch.int64, device=device),
            }
            for name, buffer in buffers.items():
                block.register_buffer(f"anchorlm_{name}", buffer, persistent=False)
            block.register_forward_hook(_add)
        self._fired = self._count()

    def put(self, state: int, shifts: Mapping[int, Tensor]) -> None:
        """Makes a state of what is added by block (H,), in place of what it was.

        Raises:
            UserError: It is for another model, or no number.
        """
        if any(not 0 <= layer < len(self._blocks) or len(vector) != self._width for layer, vector in shifts.items()):
            raise UserError(
                f"A steering is for another model: this one has {len(self._blocks)} blocks of width {self._width}: fit "
                "it."
            )
        require_finite(shifts)
        for layer, block in enumerate(self._blocks):
            row = self._buffer(block, "table")[state]
            row.copy_(shifts[layer]) if layer in shifts else row.zero_()

    def lay_out(self, spans: Sequence[Span]) -> None:
        """Says which tokens of the next step belong to which request. Those that find no room are not read."""
        states = torch.zeros(len(self._states), dtype=torch.int64)
        strengths = torch.zeros(len(self._strengths), 1)
        places = torch.zeros(len(self._places), dtype=torch.int64)
        sums = torch.full((len(self._sums),), len(self._places), dtype=torch.int64)
        self._rows, self._spans, free = {}, spans, 0
        for index, span in enumerate(spans):
            states[span.start : span.start + span.steered] = span.state
            strengths[span.start : span.start + span.steered] = span.strength
            if not span.rows or free + span.rows > len(places):
                continue
            self._rows[index] = free
            ends = torch.tensor(span.places, dtype=torch.int64)
            places[free : free + len(ends)] = span.start + ends
            if span.summed is not None:  # each up to the next place that is read, and the rest
                tokens = torch.arange(span.summed, span.end - span.start)
                sums[span.start + span.summed : span.end] = free + torch.searchsorted(ends, tokens)
            free += span.rows
        self._states.copy_(states)
        self._strengths.copy_(strengths)
        self._places.copy_(places)
        self._sums.copy_(sums)
        self._fired = self._count()

    def check(self, logits: Tensor | None = None) -> None:
        """Whether every block has been steered in the step that was laid out, and what it gave are numbers.

        Args:
            logits: What it gave.

        Raises:
            DefenseError: A hook was left out, or the cache may have taken what is no number: what the step gave must
                not be used, and later steps neither.
        """
        strange = torch.zeros((), device=self._fired.device) if logits is None else logits.isnan().sum()
        # The one time that a step waits for the device.
        fired, nans = torch.stack([(self._count() - self._fired).sum(), strange]).tolist()
        if nans:
            raise DefenseError(
                "The model gave logits that are not numbers, which vLLM's cache would spread to other answers: start "
                "it again, with weaker steering or a wider dtype."
            )
        if fired != len(self._blocks):
            raise DefenseError(
                f"Only {int(fired)} of {len(self._blocks)} blocks of the server's model could be steered: empty vLLM's "
                "compile cache, or start it with --enforce-eager (enforce_eager = true in options)."
            )

    def read(self, request: int) -> tuple[Tensor, Tensor] | None:
        """What was read of a request in the step. None if there was no room for it.

        Returns:
            Its activations (L, P, H) at its places, steered ones. And the sums (L, P + 1, H) over its tokens since the
            place before, the last one over what follows its last place, where it has sums; else (L, 0, H).
        """
        if (first := self._rows.get(request)) is None:
            return None
        span = self._spans[request]
        places, end = first + len(span.places), first + span.rows
        seen = torch.stack([self._buffer(block, "seen")[first:places] for block in self._blocks])
        summed = torch.stack(
            [self._buffer(block, "summed")[first : end if span.summed is not None else first] for block in self._blocks]
        )
        return seen.float().cpu(), summed.cpu()

    def _count(self) -> Tensor:
        return torch.stack([self._buffer(block, "fired") for block in self._blocks])

    @staticmethod
    def _buffer(block: nn.Module, name: str) -> Tensor:
        found: Tensor = getattr(block, f"anchorlm_{name}")
        return found


def _add(module: Any, inputs: Any, output: Any) -> Any:
    hidden, residual = output
    count = hidden.shape[0]
    hidden = hidden + module.anchorlm_strengths[:count] * module.anchorlm_table[module.anchorlm_states[:count]]
    activations = hidden + residual
    module.anchorlm_seen.copy_(activations[module.anchorlm_places])
    module.anchorlm_summed.zero_().index_add_(0, module.anchorlm_sums[:count], activations.float())
    module.anchorlm_fired.add_(1)
    return hidden, residual
