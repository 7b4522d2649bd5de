from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from anchorlm.engine import Steering, require_finite
from anchorlm.records import UserError

_POSITIONS = ("all", "prompt")


@dataclass(frozen=True, slots=True, eq=False)
class SteeringFile:
    """What is added after each block, as a file for servers.

    Attributes:
        shifts: (H,) by block, its strength in it.
        positions: Which positions are changed: those of the prompt, or all.
        digest: Of all of it.
    """

    shifts: Mapping[int, Tensor]
    positions: str
    digest: str

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Reads a file that `save_steering` has written.

        Raises:
            UserError: There is no such file, or it is another one.
        """
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load

        try:
            data = Path(file).read_bytes()
            with safe_open(file, "pt") as opened:
                positions = (opened.metadata() or {}).get("positions", "")
            shifts = {int(name): tensor for name, tensor in load(data).items()}
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{str(file)!r} is no steering ({error}): write it with save_steering.") from None
        if positions not in _POSITIONS or not shifts:
            raise UserError(f"{str(file)!r} is no steering: write it with save_steering.")
        require_finite(shifts)
        return cls(shifts, positions, hashlib.sha256(data).hexdigest())


def save_steering(steering: Steering, file: str | Path) -> None:
    """Writes a steering for a vLLM server.

    Args:
        steering: What a defense adds. Constant vectors only: what depends on the activations stays with our engine.
        file: A safetensors file.

    Raises:
        UserError: It adds more than constant vectors, or the file cannot be written.
    """
    from safetensors.torch import save_file

    if (found := steering.shifts) is None:
        raise UserError("A vLLM server adds constant vectors only: take a steering of InferAligner or CAA.")
    shifts = {block: (steering.strength * shift).float().contiguous().cpu() for block, shift in found.items()}
    require_finite(shifts)
    try:
        save_file({str(block): shift for block, shift in shifts.items()}, file,
                  metadata={"positions": str(steering.positions)})  # fmt: skip
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be written: {error.strerror or error}.") from None


def salted(salt: str | None, digest: str, until: int | None) -> str:
    """The cache salt of a steered request: keys and values that were computed in one state serve no other.

    Args:
        salt: The client's own.
        digest: Of what it is steered by.
        until: The first position that is left alone; None: there is none.
    """
    text: Any = json.dumps([salt, digest, until])
    return hashlib.sha256(text.encode()).hexdigest()
