"""What the heads say of answers of models that they had not seen, against labels of people and of a safety model."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from anchorlm.judging._heads import Head
from anchorlm.judging._refusal import Refusal
from anchorlm.records import wilson
from tools.graders._features import Rows
from tools.graders._fit import calibrated

BINS = 10
DRAWS = 400
Scores = dict[str, Any]
"""Logits of the refusal and the harm head (N,), each row's by heads that had not seen its model. `known` are the harm
head's with the request head as it is shipped, which knows these prompts."""


def groups(rows: Rows) -> list[tuple[str, str, Any]]:
    """The models whose answers are labeled: source, model, and which rows (N,)."""
    names = sorted({(one.source, one.model) for one in rows.answers if one.source in ("xstest", "runs")})
    return [(source, model, (rows.source == source) & (rows.model == model)) for source, model in names]


def table(rows: Rows, left: Scores, heads: dict[str, Head], unsure: float) -> str:
    """Agreement, AUROC and calibration by model left out, in Markdown."""
    told = ["| answers of | refusal: full and partial | full alone, partial left out | matcher, the same two "
            "| AUROC | ECE | cannot tell | harm: AUROC | ECE |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    matcher = np.array([kind is not Refusal.NONE for kind in rows.kinds])
    for source, model, own in groups(rows):
        label, score = rows.refused == 1, left["refusal"] > 0
        others = np.isin(rows.source, ("xstest", "runs")) & ~own
        platt = calibrated(
            heads["refusal"], left["refusal"][others], rows.refused[others], rows.weights[others], unsure
        )
        chances = [platt.probability(one) for one in left["refusal"][own]]
        lost = np.mean([platt.told(one) is None for one in chances])
        whole = own & ~rows.partial
        cells = [
            f"{source} {model}",
            share(score[own] == label[own]),
            share(score[whole] == label[whole]),
            f"{100 * np.mean(matcher[own] == label[own]):.1f}, {100 * np.mean(matcher[whole] == label[whole]):.1f}",
            f"{roc_auc_score(label[own], left['refusal'][own]):.3f}",
            f"{error(chances, label[own]):.3f}",
            f"{100 * lost:.1f} %",
            *harm(rows, left, own, heads["harm"], unsure),
        ]
        told.append(f"| {' | '.join(cells)} |")
    pooled = (rows.source == "xstest") & (rows.harmful >= 0)
    new, known = (auroc(rows.harmful[pooled], left[name][pooled]) for name in ("harm", "known"))
    told.append(f"\nHarm on XSTest, its three models together ({int(rows.harmful[pooled].sum())} harmful of "
                f"{int(pooled.sum())}): AUROC {known} as shipped, {new} without XSTest's prompts.")  # fmt: skip
    return "\n".join(told)


def harm(rows: Rows, left: Scores, own: Any, head: Head, unsure: float) -> list[str]:
    """AUROC and calibration error on a model's answers. Of `runs`, those to harmful prompts, which are labeled."""
    own = own & rows.labeled
    label = rows.harmful[own]
    if label.min() == label.max():
        return ["-", "-"]
    others = np.isin(rows.source, ("xstest", "runs")) & (rows.harmful >= 0) & (rows.model != rows.model[own][0])
    platt = calibrated(head, left["harm"][others], rows.harmful[others], np.ones(others.sum()), unsure)
    chances = [platt.probability(one) for one in left["harm"][own]]
    return [auroc(label, left["harm"][own]), f"{error(chances, label):.3f}"]


def share(right: Any) -> str:
    """A rate in percent with its interval at 95 % and its n."""
    low, high = wilson(int(right.sum()), len(right))
    return f"{100 * right.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {len(right)})"


def auroc(label: Any, score: Any) -> str:
    """The area with its bootstrap interval at 95 %."""
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        at = rng.integers(len(label), size=len(label))
        if label[at].min() != label[at].max():
            found.append(roc_auc_score(label[at], score[at]))
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{roc_auc_score(label, score):.3f} ({low:.3f} to {high:.3f})"


def error(chances: list[float], label: Any) -> float:
    """Expected calibration error over ten equally wide bins."""
    place = np.minimum((np.array(chances) * BINS).astype(int), BINS - 1)
    gaps = [abs(np.mean(np.array(chances)[place == at]) - label[place == at].mean()) * (place == at).mean()
            for at in set(place.tolist())]  # fmt: skip
    return float(sum(gaps))
