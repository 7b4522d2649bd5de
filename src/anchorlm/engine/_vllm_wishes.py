from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

OWN = "guard of anchorlm"
"""Under which a guard says it in the extra arguments of its own vLLM. No other vLLM listens to it."""

GUARD = "anchorlm_guard"
"""In the additional configuration of a vLLM that a guard has started, and in which no one else asks anything."""

ROOM = 8
"""States that a guard can steer by at once. They come first; those of a server's files follow."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one request wants of the activations of a model in vLLM.

    Attributes:
        state: By which it is steered; 0: by nothing.
        strength: Factor of what is added.
        until: The first position that is left alone; None: there is none.
        capture: Under which name the activations at the end of the prompt are kept; None: they are not.
        mean_from: From which position on their mean is kept, too; None: it is not.
    """

    state: int = 0
    strength: float = 1.0
    until: int | None = None
    capture: str | None = None
    mean_from: int | None = None

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Self | None:
        """Those of a guard's request; None where it is none."""
        return cls(**extra[OWN]) if OWN in extra else None

    @property
    def extra(self) -> dict[str, Any]:
        """As extra arguments."""
        return {OWN: asdict(self)}
