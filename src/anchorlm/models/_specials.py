from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def control_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What a tokenizer reads as control tokens wherever it stands in a text, longest first.

    These are all added tokens that are marked special, not only those with a role: a chat format's turn markers often
    have none.
    """
    marked = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(marked | {str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True))


def without_specials(text: str, specials: tuple[str, ...]) -> str:
    """`text` without any of the strings `specials`, also not as what is left after taking one out.

    One pass, whose cost does not depend on how many there are. A text that nests control tokens a thousand times, or
    writes the end of one a million times, must not hold up everyone else.
    """
    known, tails, size, last = _ends(specials)
    if last.isdisjoint(text):
        return text
    kept: list[str] = []
    for char in text:
        kept.append(char)
        if char not in last:
            continue
        for length in tails.get("".join(kept[-size:]), ()):
            if "".join(kept[-length:]) in known:
                del kept[-length:]
                break
    return "".join(kept)


@lru_cache(maxsize=64)
def _ends(specials: tuple[str, ...]) -> tuple[frozenset[str], dict[str, list[int]], int, frozenset[str]]:
    """Some strings, the lengths of those that end alike by that end, how long these ends are, and last characters."""
    known = frozenset(filter(None, specials))
    size = min(map(len, known), default=1)
    tails: dict[str, list[int]] = {}
    for length in sorted({len(one) for one in known}, reverse=True):
        for tail in {one[-size:] for one in known if len(one) == length}:
            tails.setdefault(tail, []).append(length)
    return known, tails, size, frozenset(one[-1] for one in known)
