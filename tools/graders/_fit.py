"""Fits a head: TF-IDF of hashed runs of words and a few numbers, one logistic regression, Platt's calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from anchorlm.judging._heads import Head
from anchorlm.judging._traits import BUCKETS, Grams

FEWEST = 3
"""Answers that must have a run of words. A rarer one is the matter of one prompt."""

DENSE = 0.15
"""Weight of the numbers against a block of words."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a head reads of some answers, and what it is to say.

    Attributes:
        blocks: One matrix (N, BUCKETS) for each block of words.
        dense: The numbers (N, D).
        labels: 0 or 1 (N,).
        weights: How much each answer counts (N,).
    """

    blocks: tuple[Any, ...]
    dense: Any
    labels: Any
    weights: Any

    def part(self, rows: Any) -> Table:
        """Some of the answers, by place or mask."""
        return Table(tuple(one[rows] for one in self.blocks), self.dense[rows], self.labels[rows], self.weights[rows])


def matrix(rows: Sequence[Grams]) -> Any:
    """Runs of words as a sparse matrix (N, BUCKETS)."""
    places = [place for row in rows for place in row]
    values = [value for row in rows for value in row.values()]
    starts = np.cumsum([0, *map(len, rows)])
    return sp.csr_matrix((values, places, starts), shape=(len(rows), BUCKETS))


def fitted(table: Table, strength: float) -> Head:
    """The head of a table. `strength` is the inverse of the L2 penalty."""
    center, scale = table.dense.mean(0), DENSE / (table.dense.std(0) + 0.1)
    columns, idfs = [sp.csr_matrix((table.dense - center) * scale)], []
    for block in table.blocks:
        seen = np.asarray((block > 0).sum(0)).ravel()
        idf = (
            np.where(seen >= FEWEST, np.log((1 + block.shape[0]) / (1 + seen)) + 1, 0).astype(np.float16).astype(float)
        )
        idfs.append(idf)
        columns.append(_normed(block @ sp.diags(idf)))
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=300)
    model.fit(sp.hstack(columns).tocsr(), table.labels, sample_weight=table.weights)
    weights = np.split(model.coef_[0], np.cumsum([len(center), *[BUCKETS] * len(idfs)])[:-1])
    blocks = tuple(zip(idfs, (one.astype(np.float16).astype(float) for one in weights[1:]), strict=True))
    return Head(blocks, center, scale, weights[0], float(model.intercept_[0]))


def logits(head: Head, table: Table) -> Any:
    """The uncalibrated logits of a table's answers (N,)."""
    found = head.bias + (table.dense - head.center) * head.scale @ head.weight
    for (idf, weight), block in zip(head.blocks, table.blocks, strict=True):
        found = found + _normed(block @ sp.diags(idf)) @ weight
    return found


def calibrated(head: Head, scores: Any, labels: Any, weights: Any, unsure: float) -> Head:
    """The head with Platt's slope and shift, from logits of answers that did not fit it, and with its band.

    Args:
        head: Fitted on all answers.
        scores: Logits of heads that did not see the answer's model.
        labels: What is right.
        weights: How much each answer counts.
        unsure: Share of these answers, those nearest to even, of which the head cannot tell.
    """
    model = LogisticRegression(C=1e4).fit(scores[:, None], labels, sample_weight=weights)
    head = replace(head, slope=float(model.coef_[0, 0]), shift=float(model.intercept_[0]))
    sure = np.abs(1 / (1 + np.exp(-(head.slope * scores + head.shift))) - 0.5)
    order = np.argsort(sure)
    within = np.cumsum(weights[order]) <= unsure * weights.sum()
    width = float(sure[order][within].max()) if within.any() else 0.0
    return replace(head, band=(0.5 - width, 0.5 + width))


def _normed(block: Any) -> Any:
    length = np.sqrt(np.asarray(block.multiply(block).sum(1)).ravel())
    return sp.diags(1 / np.where(length > 0, length, 1)) @ block
