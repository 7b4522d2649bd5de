"""Verdicts that a model gives in one token, read from its logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from anchorlm.tokens import ByteVocabulary

LEAST = 0.5
"""Share of the probability that the verdicts must have together: with less the model is about to say something else."""

MOST = 30.0
"""Log-odds beyond are cut off: there is no probability that a float could tell from 0 or 1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the logits of one token say.

    Attributes:
        logs: The logarithm of each verdict's probability, of all that could be said.
    """

    logs: Mapping[str, float]

    @property
    def together(self) -> float:
        """The probability of all verdicts."""
        return sum(map(math.exp, self.logs.values()))

    @property
    def likeliest(self) -> str:
        """The verdict that is said if the likeliest token is taken."""
        return max(self.logs, key=self.logs.__getitem__)

    @property
    def lead(self) -> float:
        """By how much, in logarithms, the likeliest verdict is ahead of the next."""
        first, second = sorted(self.logs.values(), reverse=True)[:2]
        return min(first - second, MOST)

    def shares(self) -> dict[str, float]:
        """The verdicts' probabilities, as parts of `together`."""
        top = max(self.logs.values())
        raw = {name: math.exp(log - top) for name, log in self.logs.items()}
        return {name: value / sum(raw.values()) for name, value in raw.items()}

    def mean(self, values: Mapping[str, float]) -> float:
        """The mean of a value that each verdict has, weighted by probability."""
        return sum(share * values[name] for name, share in self.shares().items())

    def margin(self, values: Mapping[str, float]) -> float:
        """The log-odds of `mean`, for values from 0 to 1: above 0 where it is above one half."""
        high = _sum_of_logs([log + math.log(values[name]) for name, log in self.logs.items() if values[name] > 0])
        low = _sum_of_logs([log + math.log1p(-values[name]) for name, log in self.logs.items() if values[name] < 1])
        return max(-MOST, min(MOST, high - low))


@dataclass(frozen=True, slots=True)
class Words:
    """The tokens with which a model says its verdicts.

    Attributes:
        ids: Of each verdict.
    """

    ids: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, vocabulary: ByteVocabulary, words: Sequence[str]) -> Self | None:
        """The tokens that are one of some words, in any case, with white space around them or not.

        A word that is no token is known by its first one. None where verdicts cannot be told apart so.

        Args:
            vocabulary: Of the model.
            words: The verdicts.
        """
        named = {word.casefold(): word for word in words}
        found: dict[str, set[int]] = {word: set() for word in words}
        for index in range(vocabulary.size):
            text = vocabulary.token_bytes(index).strip()
            if text and (word := named.get(text.decode("utf-8", errors="replace").casefold())) is not None:
                found[word].add(index)
        for word, ids in found.items():
            if not ids:
                ids |= {_first(vocabulary, f"{space}{word}") for space in ("", " ")} - {-1}
        every = [index for ids in found.values() for index in ids]
        if not all(found.values()) or len(every) != len(set(every)):
            return None
        return cls({word: tuple(sorted(ids)) for word, ids in found.items()})

    def read(self, logits: Tensor, unnamed: float = 0.0) -> Reading | None:
        """What logits (V,) say. None where the verdicts have less than half of the probability.

        Args:
            logits: Of the next token.
            unnamed: The probability of what a server has left out of them.
        """
        logs = logits.double().log_softmax(-1)
        said = {word: float(logs[list(ids)].logsumexp(-1)) for word, ids in self.ids.items()}
        reading = Reading(said)
        return reading if reading.together * (1 - unnamed) >= LEAST else None


def _first(vocabulary: ByteVocabulary, text: str) -> int:
    """The first token of a text that is more than white space. -1 where there is none."""
    ids = vocabulary.encode(text.encode())
    return next((index for index in ids if vocabulary.token_bytes(index).strip()), -1)


def _sum_of_logs(logs: Sequence[float]) -> float:
    """The logarithm of a sum of numbers of which the logarithms are given."""
    top = max(logs, default=-math.inf)
    return top if math.isinf(top) else top + math.log(sum(math.exp(log - top) for log in logs))
