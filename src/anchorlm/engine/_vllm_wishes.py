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

PLACES = 64
"""Positions that are read in one step of a server at most."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one request wants of the activations of a model in vLLM.

    Attributes:
        state: By which it is steered; 0: by nothing.
        strength: Factor of what is added.
        until: The first position that is left alone; None: there is none.
        capture: Under which name what is read is kept; None: nothing is.
        places: The positions of the prompt at which they are kept, in ascending order.
        mean_from: Where the mean up to each of these begins, if it is kept, too.
        logits: Whether those of the first new token are kept, and no activations.
    """

    state: int = 0
    strength: float = 1.0
    until: int | None = None
    capture: str | None = None
    places: tuple[int, ...] = ()
    mean_from: int | None = None
    logits: bool = False

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Self | None:
        """Those of a guard's request; None where it is none."""
        if OWN not in extra:
            return None
        told = dict(extra[OWN])
        return cls(places=tuple(told.pop("places")), **told)

    def between(self, read: int, end: int) -> list[int]:
        """The positions among some of the prompt's tokens whose activations are kept."""
        return [place for place in self.places if read <= place < end]

    @property
    def rows(self) -> int:
        """The most that it takes of `PLACES` in one step: the mean of what follows a place needs one, too."""
        return len(self.places) + (self.mean_from is not None)

    @property
    def extra(self) -> dict[str, Any]:
        """As extra arguments."""
        return {OWN: asdict(self)}
