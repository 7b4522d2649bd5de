from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchorlm.records import DefenseError, UserError


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one request in one step of a server, which reads the tokens of all requests in one row.

    Attributes:
        start: Its first token there.
        end: One behind its last token.
        state: By which it is steered; 0: by nothing.
        steered: How many of its tokens are, from the first one on.
    """

    start: int
    end: int
    state: int = 0
    steered: int = 0


class SteeredBlocks:
    """Adds to the output of every block of a server's model what each token's request is steered by.

    Everything that changes lies in buffers, and the hooks are there before the model is compiled: so they are part of
    what is compiled, and a later step changes numbers only. A block gives `(hidden, residual)`, and the activation is
    the sum of the two.

    Args:
        blocks: Of the model.
        width: Of the activations.
        tokens: Most tokens of a step.
        requests: Most requests of a step.
        states: What is added by each state, by block.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        *,
        width: int,
        tokens: int,
        requests: int,
        states: Sequence[Mapping[int, Tensor]],
    ) -> None:
        weight = next(blocks.parameters())
        for state in states:
            if any(not 0 <= layer < len(blocks) or len(vector) != width for layer, vector in state.items()):
                raise UserError(
                    f"A steering is for another model: this one has {len(blocks)} blocks of width {width}: fit it."
                )
        self._blocks = blocks
        self._rows = torch.zeros(tokens, dtype=torch.int64, device=weight.device)
        self._ends = torch.zeros(requests, dtype=torch.int64, device=weight.device)
        self._fired = 0
        for layer, block in enumerate(blocks):
            table = torch.zeros(1 + len(states), width)
            for index, state in enumerate(states):
                if layer in state:
                    table[1 + index] = state[layer].float()
            buffers = {
                "rows": self._rows,
                "ends": self._ends,
                "table": table.to(weight),
                "seen": torch.zeros(requests, width).to(weight),
                "fired": torch.zeros(1, dtype=torch.int64, device=weight.device),
            }
            for name, buffer in buffers.items():
                block.register_buffer(f"anchorlm_{name}", buffer, persistent=False)
            block.register_forward_hook(_add)

    def lay_out(self, spans: Sequence[Span]) -> None:
        """Says which tokens of the next step belong to which request."""
        rows = torch.zeros(len(self._rows), dtype=torch.int64)
        ends = torch.zeros(len(self._ends), dtype=torch.int64)
        for index, span in enumerate(spans):
            rows[span.start : span.start + span.steered] = span.state
            ends[index] = span.end - 1
        self._rows.copy_(rows)
        self._ends.copy_(ends)
        self._fired = int(self._count().sum())

    def check(self) -> None:
        """Whether every block has been steered in the step that was laid out.

        Raises:
            DefenseError: A hook was left out; what the step gave must not be used.
        """
        fired = int(self._count().sum()) - self._fired
        if fired != len(self._blocks):
            raise DefenseError(
                f"Only {fired} of {len(self._blocks)} blocks of the server's model could be steered: empty vLLM's "
                "compile cache, or start it with --enforce-eager."
            )

    def activations(self, request: int) -> Tensor:
        """(L, H), the activations at the last token that a request of the step has read, steered ones."""
        seen = [self._buffer(block, "seen")[request] for block in self._blocks]
        return torch.stack(seen).float().cpu()

    def _count(self) -> Tensor:
        return torch.stack([self._buffer(block, "fired") for block in self._blocks])

    @staticmethod
    def _buffer(block: nn.Module, name: str) -> Tensor:
        found: Tensor = getattr(block, f"anchorlm_{name}")
        return found


def _add(module: Any, inputs: Any, output: Any) -> Any:
    hidden, residual = output
    hidden = hidden + module.anchorlm_table[module.anchorlm_rows[: hidden.shape[0]]]
    module.anchorlm_seen.copy_((hidden + residual)[module.anchorlm_ends])
    module.anchorlm_fired.add_(1)
    return hidden, residual
