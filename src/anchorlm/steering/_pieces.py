from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")

_CLOSED = re.compile(r"[.!?:;。！？][\"')\]]*$")
_BEGUN = 5
"""Words up to which the unfinished end of a raw text may be the beginning of its answer.

On development prompts gates opened on such ends alone in up to one of eight harmless texts, and found no harm in them
that they did not find in the whole."""

_NOISE = re.compile(r"[\\\[\]{}]|\*\*|--|\.\.+|::|(?:[!?]\s*){2,}|[;,:]\)|[.!?](?=[A-Za-z])")
"""Signs that prose does not have, but the noise behind a request that an attack has optimized (GCG, arXiv 2307.15043).

Of 50 published strings, development ones, a real gate opened on 66 % as they are, and on 84 % with the words before the
first such sign. Of 346 harmless prompts of seven sets none more was gated (`python -m benchmarks.real_gate`)."""

_ASKED = re.compile(r"\s*+\S++\s++\S++\s++\S")
"""The three words that a request has at least."""

_OVERHEAD = 64
"""Characters of text that what a template writes around a piece costs about as much as."""

_SPARE = 2000
"""Characters that pieces may cost beyond the length of the request."""


def pieces(texts: Sequence[str]) -> list[list[str]]:
    """What a gate reads of each text next to the whole, because a sentence that follows hides what stands before it.

    Of a text that is one sentence: nothing. Of short texts: every line, every sentence and every two that follow each
    other. A sentence alone, because a harmless one next to it hides it. Two, because a request is often told in two.
    Before noise, also the words in front of it, which the noise would hide.

    All the pieces together cost at most about as much as the texts themselves and 2,000 characters: longer texts are
    read in every two sentences, or in blocks of two, four, eight that do not overlap. Shorter texts are served first,
    so that a long turn does not take from a short one.
    """
    left = sum(map(len, texts)) + _SPARE
    found: list[list[str]] = [[] for _ in texts]
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        heads = [head for head in _before_noise(texts[place]) if _cost([head]) <= left]
        found[place] = list(dict.fromkeys([*_cut(texts[place], left - _cost(heads)), *heads]))
        left -= _cost(found[place])
    return found


def _before_noise(text: str) -> list[str]:
    """What stands before the first sign of noise that follows a few words."""
    asked = _ASKED.match(text)
    sign = _NOISE.search(text, asked.end()) if asked else None
    return [text[: sign.start()].strip()] if sign else []


def raw_pieces(text: str) -> list[str]:
    """The pieces of a raw text, without the answer that it may have begun: the few words of an unfinished end.

    Those words stay in the whole text, and in the piece that has the sentence before them, too.
    """
    [found] = pieces([text])
    *before, end = _sentences(text) or [""]
    if not before or end in before or _CLOSED.search(end) or len(end.split()) > _BEGUN:
        return found
    return [piece for piece in found if piece != end]


def _sentences(text: str) -> list[str]:
    return [part for line in text.splitlines() for part in map(str.strip, _SENTENCE_ENDS.split(line)) if part]


def _cut(text: str, left: int) -> list[str]:
    """The finest pieces of a text that cost no more than `left` characters."""
    sentences = _sentences(text)
    count, length = len(sentences), sum(map(len, sentences))
    if count < 2:  # without the space around it
        return sentences if sentences != [text] and _cost(sentences) <= left else []
    if 2 * length <= left:
        pairs = [" ".join(pair) for pair in pairwise(sentences) if count > 2]
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        for found in ([*(lines if lines != [text] else []), *sentences, *pairs], pairs or sentences):
            if _cost(distinct := list(dict.fromkeys(found))) <= left:
                return distinct
    size = 2
    while size < count and length + count + _OVERHEAD * -(-count // size) > left:
        size *= 2
    if size >= count:
        return []
    return list(dict.fromkeys(" ".join(sentences[at : at + size]) for at in range(0, count, size)))


def _cost(found: Iterable[str]) -> int:
    return sum(len(piece) + _OVERHEAD for piece in found)
