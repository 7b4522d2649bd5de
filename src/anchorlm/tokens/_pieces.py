from __future__ import annotations

import builtins
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

CHAT = 1 << 200
"""The id after which a conversation's answer begins."""
RAW = CHAT + 1
"""The id after which a raw text goes on."""
_SIZE = 4
"""Bytes of a piece: what a token of English text has on average. The server alone knows how many tokens there are."""
_LARGEST = 24
"""Bytes of a piece at most: the id of a larger one would be among the two that begin an answer."""


def piece_id(piece: bytes) -> int:
    """The id of some bytes. It holds them itself, and so no table grows with what was said."""
    return int.from_bytes(b"\x01" + piece, "big")


def piece_bytes(index: int) -> bytes:
    """The bytes of an id. None for the two that begin an answer."""
    if index >= CHAT or index <= 0:
        return b""
    return index.to_bytes((index.bit_length() + 7) // 8, "big")[1:]


def in_pieces(data: bytes, count: int | None = None) -> list[int]:
    """Some bytes as ids: `count` of them, or one for every few bytes. A piece may be empty.

    A server says `count`, and may say anything. So there are at most one more than the bytes, and enough for all bytes.
    """
    if count is None:
        return [piece_id(data[at : at + _SIZE]) for at in range(0, len(data), _SIZE)]
    count = min(max(count, -(-len(data) // _LARGEST)), len(data) + 1)
    ends = [len(data) * index // count for index in range(count + 1)]
    return [piece_id(data[start:end]) for start, end in itertools.pairwise(ends)]


def prompt_ids(prompt: str | Mapping[str, Any]) -> list[int]:
    """A raw prompt, or the part of a request that holds a conversation, as ids.

    What two prompts share at the start their ids share, too.
    """
    if isinstance(prompt, str):
        return [*in_pieces(prompt.encode("utf-8", "surrogatepass")), RAW]
    text = json.dumps(dict(prompt), ensure_ascii=False)
    return [*in_pieces(text.encode("utf-8", "surrogatepass")), CHAT]


def prompt_of(ids: Sequence[int]) -> tuple[str | dict[str, Any], list[int]]:
    """What `prompt_ids` was made of, and the ids that came after it.

    Raises:
        ValueError: There is no whole prompt.
    """
    place = next((at for at, index in enumerate(ids) if index >= CHAT), None)
    if place is None:
        raise ValueError("ids without the place where an answer begins")
    text = b"".join(map(piece_bytes, ids[:place])).decode("utf-8", "surrogatepass")
    return (text if ids[place] == RAW else json.loads(text)), list(ids[place + 1 :])


class PieceVocabulary:
    """Stands for the vocabulary of a model whose tokenizer is not known: every piece of text is an id of its own."""

    size = 0
    longest = 64
    stop_id = None
    stop: frozenset[int] = frozenset()
    special: frozenset[int] = frozenset()

    def token_bytes(self, index: int) -> builtins.bytes:
        """The bytes of one id."""
        return piece_bytes(index)

    def decode(self, ids: Iterable[int]) -> builtins.bytes:
        """The bytes of a response."""
        return b"".join(map(piece_bytes, ids))

    def encode(self, data: builtins.bytes) -> list[int]:
        """Ids for some bytes."""
        return in_pieces(data)

    @cached_property
    def digest(self) -> str:
        """Names the vocabulary."""
        return hashlib.sha256(b"pieces").hexdigest()
