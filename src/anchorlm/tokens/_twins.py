"""Two vocabularies that are one but for a few tokens: what one model writes, the other reads as it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from anchorlm.tokens._vocabulary import ByteVocabulary


class Twins:
    """Says where the tokens of a target are an anchor's own.

    Args:
        anchor: The anchor's vocabulary.
        target: The target's.
        shared: (A,) bool, the tokens of both.
    """

    def __init__(self, anchor: ByteVocabulary, target: ByteVocabulary, shared: Tensor) -> None:
        self._anchor = anchor
        self._target = target
        both = shared.tolist()
        self._back = {target.strings[token]: i for token, i in anchor.strings.items() if both[i]}
        self._only_anchor = [data for data, known in zip(anchor.bytes, both, strict=True) if data and not known]
        self._only_target = [
            data for j, data in enumerate(target.bytes) if data and j not in self._back and j not in target.added
        ]

    @property
    def exact(self) -> bool:
        """Whether the target joins no two tokens which the anchor leaves apart, added tokens aside."""
        return not self._only_target

    def read(self, tokens: Sequence[int]) -> list[int]:
        """The target's tokens in the anchor's, one by one: itself, or the pieces of one that only the target has."""
        ids: list[int] = []
        for token in tokens:
            own = self._back.get(token)
            ids += self._anchor.encode(self._target.token_bytes(token)) if own is None else [own]
        return ids

    def undisturbed(self, response: bytes) -> bool:
        """Whether no token that one of them lacks stands in the response, or may be under way at its end."""
        if self._loose is None:
            return True
        under_way = any(
            response[-count:] in self._prefixes for count in range(1, min(self._longest, len(response)) + 1)
        )
        return not under_way and self._loose.search(response) is None

    @cached_property
    def _loose(self) -> re.Pattern[bytes] | None:
        found = [*self._only_anchor, *self._only_target]
        return re.compile(b"|".join(map(re.escape, found))) if found else None

    @cached_property
    def _prefixes(self) -> frozenset[bytes]:
        return frozenset(
            data[:count] for data in (*self._only_anchor, *self._only_target) for count in range(1, len(data))
        )

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._prefixes), default=0)
