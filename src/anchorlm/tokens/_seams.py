"""Which neighbors a vocabulary can join in one token: everywhere else its tokens end, whatever stands around."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

Pairs = frozenset[tuple[str, str | None]]

_LOOSE_BYTES = "".join(map(chr, range(0xDC80, 0xDD00)))
"""How Python decodes bytes that are no whole character (surrogateescape)."""


def character_pairs(tokens: Iterable[bytes]) -> Pairs:
    """The pairs of characters that stand next to each other in a token. (c, None) for each c that something follows.

    Half a character counts by its bytes, each a character of its own.
    """
    texts = {data.decode(errors="surrogateescape") for data in tokens if len(data) > 1}
    pairs = set(chain.from_iterable(map(pairwise, texts)))
    return frozenset(pairs) | {(first, None) for first, _ in pairs}


def byte_pairs(tokens: Sequence[bytes]) -> Tensor:
    """(256, 256) bool: whether the one byte is followed by the other in a token."""
    sizes = torch.tensor([len(data) for data in tokens])
    flat = torch.frombuffer(bytearray(b"".join(tokens) or b"\0"), dtype=torch.uint8).long()
    inside = torch.ones(len(flat), dtype=torch.bool)
    inside[sizes.cumsum(0)[sizes > 0] - 1] = False  # the last byte of a token is followed by another token's
    first, second = flat[:-1][inside[:-1]], flat[1:][inside[:-1]]
    joined = torch.zeros(256, 256, dtype=torch.bool)
    joined[first, second] = True
    return joined


def last_seam(piece: bytes, pairs: Pairs, *, end: bool) -> int:
    """The last position in `piece` between two characters that no token joins.

    Args:
        piece: Bytes. A character that is not yet whole stays with what follows.
        pairs: What `character_pairs` gave.
        end: Whether the end of `piece` counts where nothing can follow its last character in a token.
    """
    text = piece.decode(errors="surrogateescape").rstrip(_LOOSE_BYTES)
    position = len(text.encode(errors="surrogateescape"))
    follower = None
    for character in reversed(text):
        if (follower is not None or end) and not _joined(character, follower, pairs):
            return position
        position -= len(character.encode(errors="surrogateescape"))
        follower = character
    return 0


def _joined(one: str, other: str | None, pairs: Pairs) -> bool:
    firsts = {one, _loose(one, -1)}
    seconds = {other, None if other is None else _loose(other, 0)}
    return any((first, second) in pairs for first in firsts for second in seconds)


def _loose(character: str, place: int) -> str:
    """A character's first or last byte as it stands in a token that cuts the character in two."""
    data = character.encode(errors="surrogateescape")
    return character if len(data) == 1 else bytes([data[place]]).decode(errors="surrogateescape")
