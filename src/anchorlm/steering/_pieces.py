from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")

_OVERHEAD = 64
"""Characters of text that what a template writes around a piece costs about as much as."""

_SPARE = 2000
"""Characters that pieces may cost beyond the length of the request."""


def pieces(texts: Sequence[str]) -> list[list[str]]:
    """What a gate reads of each text beside the whole, because a sentence that follows hides what stands before it.

    Of a text that is one sentence: nothing. Of short texts: every line, every sentence and every two that follow each other.
    A sentence alone, because a harmless one next to it hides it; two, because a request is often told in two. All the
    pieces together cost at most about as much as the texts themselves and 2,000 characters: longer texts are read in
    every two sentences, or in blocks of two, four, eight that do not overlap. Shorter texts are served first, so that a
    long turn does not take from a short one.
    """
    left = sum(map(len, texts)) + _SPARE
    found: list[list[str]] = [[] for _ in texts]
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        for found[place] in _cuts(texts[place]):
            cost = sum(len(piece) + _OVERHEAD for piece in found[place])
            if cost <= left:
                left -= cost
                break
    return found


def _cuts(text: str) -> Iterator[list[str]]:
    """Ways to cut a text, the dearest first, the last of which costs nothing."""
    sentences = [part for part in map(str.strip, _SENTENCE_ENDS.split(text)) if part]
    if len(sentences) > 1:
        pairs = [" ".join(pair) for pair in pairwise(sentences) if len(sentences) > 2]
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        yield _distinct([*(lines if len(lines) > 1 else []), *sentences, *pairs])
        yield _distinct(pairs or sentences)
        size = 2
        while size < len(sentences):
            yield _distinct([" ".join(sentences[at : at + size]) for at in range(0, len(sentences), size)])
            size *= 2
    elif sentences != [text]:
        yield sentences  # without the space around it
    yield []


def _distinct(found: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(found))
