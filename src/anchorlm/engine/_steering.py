from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlm.engine._choices import Positions
from anchorlm.records import UserError


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What is added to the residual stream x (..., H) after one block, before a strength: `shift + (x @ down) @ up`.

    Attributes:
        shift: A constant vector (H,): activation addition.
        down: (H, r): what of the stream is read. A refusal direction, say.
        up: (r, H): what is added for it. Minus the same direction removes it from the stream.
    """

    shift: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.down is None) != (self.up is None) or (self.shift is None and self.down is None):
            raise ValueError("An edit has a shift, or both factors of a matrix, or all of these.")

    def __call__(self, stream: Tensor) -> Tensor:
        """The change of a stream (..., H) at strength 1."""
        change = torch.zeros_like(stream)
        if self.shift is not None:
            change = change + self.shift.to(stream)
        if self.down is not None and self.up is not None:
            change = change + (stream @ self.down.to(stream)) @ self.up.to(stream)
        return change


Change = Callable[[Tensor], Tensor]
"""What is added, before a strength, to the residual stream (B, T, H) after a block: an `Edit`, or any function of it.
Rows are aligned to the right."""


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """How one sequence is steered. Rows that share `edits` (the object) are steered in one operation.

    Attributes:
        edits: Block -> what is added to its output.
        strength: Factor of every edit.
        positions: Which positions are changed: those of the prompt, or all.
    """

    edits: Mapping[int, Change]
    strength: float = 1.0
    positions: Positions = "all"

    @property
    def shifts(self) -> dict[int, Tensor] | None:
        """The constant vectors (H,) by block, before the strength. None where anything else is added."""
        found = {}
        for block, edit in self.edits.items():
            if not isinstance(edit, Edit) or edit.shift is None or edit.down is not None:
                return None
            found[block] = edit.shift
        return found

    def until(self, prompt_length: int) -> float:
        """The first position that is left alone."""
        return prompt_length if self.positions == "prompt" else float("inf")


def require_finite(shifts: Mapping[int, Tensor]) -> None:
    """Whether vectors can be added: what is no number would spread to other requests through a server's cache.

    Raises:
        UserError: They cannot.
    """
    if not all(bool(shift.isfinite().all()) for shift in shifts.values()):
        raise UserError("A steering has values that are not finite numbers: fit it again, or lower its strength.")
