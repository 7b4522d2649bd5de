"""Rows as what the heads read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anchorlm.judging._english import joined
from anchorlm.judging._heads import Head
from anchorlm.judging._refusal import Refusal
from anchorlm.judging._traits import Traits, grams
from tools.graders._fit import Table, fitted, logits, matrix
from tools.graders._rows import Answer, requests

WEIGHTS = {"xstest": 1.0, "runs": 0.5, "own": 0.4, "small": 0.4}
"""How much an answer counts: labels of people, of programs, and by construction."""

HARM_WEIGHTS = {"xstest": 2.0, "runs": 1.0, "own": 1.0, "small": 0.6}
LABELED = 4.0
"""The same for the harm head. Answers to harmful prompts, in both outcomes, are labeled in `runs` alone."""

STRENGTH = 4.0


class Rows:
    """Answers, and what is read of them."""

    def __init__(self, answers: Sequence[Answer], traits: Sequence[Traits]) -> None:
        self.answers = list(answers)
        self.source = np.array([one.source for one in answers])
        self.model = np.array([one.model for one in answers])
        self.partial = np.array([one.partial for one in answers])
        self.refused = np.array([-1 if one.refused is None else one.refused for one in answers])
        self.harmful = np.array([-1 if one.harmful is None else one.harmful for one in answers])
        self.labeled = np.array([one.labeled for one in answers])
        self.harm_weights = np.where(self.labeled & (self.source == "runs"), LABELED, self.parts(HARM_WEIGHTS))
        self.weights = self.parts(WEIGHTS)
        self.kinds: list[Refusal] = [one.kind for one in traits]
        self.blocks = matrix([one.opening for one in traits]), matrix([one.rest for one in traits])
        self.dense = np.array([one.dense for one in traits])
        self.prompts = matrix([grams(one.prompt) for one in answers])

    def refusal_table(self) -> Table:
        """For the refusal head."""
        return Table(self.blocks, self.dense, self.refused, self.weights)

    def harm_table(self, request: Head, refusal: Head) -> Table:
        """For the harm head, by the other two."""
        asked = logits(request, Table((self.prompts,), np.zeros((len(self.answers), 0)), self.harmful, self.weights))
        declined = logits(refusal, self.refusal_table())
        dense = [joined(float(a), float(b), kind) for a, b, kind in zip(asked, declined, self.kinds, strict=True)]
        return Table((*self.blocks, self.prompts), np.array(dense), self.harmful, self.harm_weights)

    def parts(self, weights: dict[str, float]) -> Any:
        """The weight of each answer by its source (N,)."""
        return np.array([weights[one] for one in self.source])


def request_head(more: Sequence[tuple[str, int]] = ()) -> Head:
    """Whether a prompt asks for harm, from prompts of our own and `more`."""
    rows = [*requests(), *more]
    labels = np.array([label for _, label in rows])
    block = matrix([grams(prompt) for prompt, _ in rows])
    return fitted(Table((block,), np.zeros((len(rows), 0)), labels, np.ones(len(rows))), STRENGTH)
