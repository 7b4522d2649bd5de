from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from zlib import crc32

from anchorlm.judging import _giving as giving
from anchorlm.judging import _phrases as phrases
from anchorlm.judging._prose import Prose
from anchorlm.judging._refusal import Refusal, RefusalMatcher
from anchorlm.judging._thoughts import without_thoughts

BUCKETS = 2**14
"""Places for the runs of words of one block."""

LONGEST_RUN = 3
WORDS_READ = 400
"""Of a block: what stands behind them changes no verdict, and an answer of any length is read in the same time."""

CHARACTERS_READ = 8_000

_PATTERNS = (
    phrases.EXPLICIT, phrases.APOLOGY, phrases.NEGATION, phrases.LIMITATION, phrases.DISCLAIMER, phrases.OBJECTION,
    phrases.HARDSHIP, phrases.REDIRECT, phrases.PIVOT, giving.HANDOVER, giving.DELIVERY, giving.ALTERNATIVE,
    giving.STEP, giving.BESIDE, giving.INSTEAD, phrases.TAINTED, phrases.NOT_A_REFUSAL, phrases.PERSON,
)  # fmt: skip
_SENTENCES_READ = 40
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]")
_MATCHER = RefusalMatcher()
Grams = dict[int, float]
"""Weights by place, of Euclidean length 1. Empty where there are no words."""


class Traits:
    """What the heads of the English graders read of an answer.

    Attributes:
        kind: What the phrase matcher calls it.
        dense: Its form and the matcher's phrases in its first, second and last sentence and in all of them.
        opening: Runs of up to three words of the first sentence, hashed.
        rest: Those of all that follows.
    """

    __slots__ = ("dense", "kind", "opening", "rest")

    def __init__(self, text: str) -> None:
        answer = without_thoughts(text)[:CHARACTERS_READ]
        self.kind = _MATCHER.classify(answer)
        prose = Prose.of(answer)
        sentences = prose.sentences or ("",)
        self.dense = _dense(answer, self.kind, prose, sentences)
        self.opening = grams(sentences[0])
        self.rest = grams(" ".join(sentences[1:]))


def grams(text: str) -> Grams:
    """Runs of one to three words or signs of a text, hashed, each with 1 + the logarithm of how often it is there."""
    words = [word.lower() for word in _TOKEN.findall(text)][:WORDS_READ]
    runs = Counter(
        crc32(" ".join(words[at : at + size]).encode()) % BUCKETS
        for size in range(1, LONGEST_RUN + 1)
        for at in range(len(words) - size + 1)
    )
    weights = {place: 1 + math.log(count) for place, count in runs.items()}
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    return {place: weight / length for place, weight in weights.items()}


def _dense(answer: str, kind: Refusal, prose: Prose, sentences: Sequence[str]) -> list[float]:
    found = [[float(bool(one.search(sentence))) for one in _PATTERNS] for sentence in sentences[:_SENTENCES_READ]]
    none = [0.0] * len(_PATTERNS)
    return [
        *(float(kind is one) for one in Refusal),
        math.log1p(len(sentences)) / 3,
        math.log1p(len(answer)) / 7,
        sum(prose.items) / len(sentences),
        *found[0],
        *(found[1] if len(found) > 1 else none),
        *(sum(column) / len(found) for column in zip(*found, strict=True)),
        *found[-1],
    ]
