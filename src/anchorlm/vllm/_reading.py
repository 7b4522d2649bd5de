from __future__ import annotations

import torch
from torch import Tensor

from anchorlm.engine import Wishes


class Reading:
    """What has been read of one request, which a server may read in pieces, and again if it had to make room.

    Args:
        wishes: What is to be read of it.
    """

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._found: dict[int, Tensor] = {}
        self._total = torch.zeros(())
        self._counted: int | None = None

    def add(self, read: int, end: int, seen: Tensor, sums: Tensor) -> None:
        """Takes what one step gave.

        Args:
            read: How many tokens were read before it.
            end: How many are now.
            seen: (L, P, H), the activations at the places between the two.
            sums: (L, P + 1, H), the sums up to each place from the one before, and of what follows; if there are any.
        """
        places, begin = self._wishes.between(read, end), self._wishes.mean_from
        if begin is None:
            self._found |= dict(zip(places, seen.unbind(1), strict=True))
            return
        if read <= begin:
            self._total, self._counted = torch.zeros(()), read
        if self._counted != read:  # a part was taken from the cache, so there is no mean any more
            self._counted = None
            return
        parts = sums.unbind(1) if end > begin else ()
        for number, part in enumerate(parts):
            self._total = self._total + part
            if number < len(places):
                place = places[number]
                self._found[place] = torch.cat([seen[:, number], self._total / (place + 1 - begin)], dim=-1)
        self._counted = end

    @property
    def whole(self) -> Tensor | None:
        """(L, P, H) of all places, or (L, P, 2 H) with the means. None while some are wanting."""
        if len(self._found) < len(self._wishes.places):
            return None
        return torch.stack([self._found[place] for place in self._wishes.places], dim=1)
