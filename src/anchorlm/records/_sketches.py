from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from anchorlm.records._requests import Messages, as_messages, turn_text

_PRIME = (1 << 61) - 1
_RNG = random.Random(0)
_HASHES = tuple((_RNG.randrange(1, _PRIME), _RNG.randrange(_PRIME)) for _ in range(32))
_DIGITS = 4
"""Hexadecimal digits kept of each hash: two that differ agree in them once in 65,536 times (Li and König 2010)."""


_ASKS = 4
"""Words that a turn has at least if it asks something by itself: "please go on" does not."""


def asked(prompt: Messages | str) -> str:
    """What a conversation asks: its last user turn that asks something by itself, else its last turn."""
    turns = as_messages(prompt)
    said = (turn_text(turn) for turn in reversed(turns) if turn["role"] == "user")
    return next((text for text in said if len(plain(text).split()) >= _ASKS), turn_text(turns[-1]))


def shingles(text: str) -> frozenset[str]:
    """By which texts are compared: word triples of `plain`. Of few words, as where none are written apart, triples of
    characters.
    """
    words = plain(text).split()
    units = words if len(words) >= _ASKS else list(" ".join(words))
    between = " " if units is words else ""
    return frozenset(between.join(units[at : at + 3]) for at in range(len(units) - 2))


def plain(text: str) -> str:
    """A text up to case, spaces and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def sketch(text: str) -> str:
    """What a text is recognized by without being kept: a digest of `plain`, and a MinHash of its `shingles` (Broder
    1997) with 32 hashes, from which `likeness` is estimated within 0.08 (one standard error at 0.7).
    """
    digest = hashlib.sha256(plain(text).encode()).hexdigest()[:16]
    keys = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=7).digest(), "big") for one in shingles(text)]
    least = (min((a * key + b) % _PRIME for key in keys) % 16**_DIGITS for a, b in _HASHES) if keys else ()
    return digest + "".join(f"{one:0{_DIGITS}x}" for one in least)


def sketches(prompts: Iterable[Messages | str]) -> list[str]:
    """Of what each prompt asks, for an artifact that was fitted on them. Equal ones once."""
    return sorted({sketch(asked(prompt)) for prompt in prompts})


def likeness(first: str, second: str) -> float:
    """How alike the texts of two sketches are: 1 where they are equal, else the share of their word triples that both
    have (Jaccard), estimated.
    """
    if first[:16] == second[:16]:
        return 1.0
    return len(set(_pieces(first)) & set(_pieces(second))) / len(_HASHES)


class Sketches:
    """Many sketches, in which the one most like another is found without a look at each.

    Args:
        known: The sketches.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._digests: set[str] = set()
        self._places: dict[tuple[int, str], list[int]] = defaultdict(list)
        for number, one in enumerate(known):
            self._digests.add(one[:16])
            for piece in _pieces(one):
                self._places[piece].append(number)

    def most_like(self, sketch: str) -> float:
        """The largest `likeness` of any of them. 0 where there are none."""
        if sketch[:16] in self._digests:
            return 1.0
        shared = Counter(number for piece in _pieces(sketch) for number in self._places.get(piece, ()))
        return max(shared.values(), default=0) / len(_HASHES)


def _pieces(sketch: str) -> list[tuple[int, str]]:
    return [(at, sketch[at : at + _DIGITS]) for at in range(16, len(sketch), _DIGITS)]
