"""`python -m tools.graders`: fits the heads; `python -m tools.graders --table`: measures them by model left out."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from anchorlm.judging._heads import Head
from anchorlm.judging._traits import Traits
from tools.graders._features import STRENGTH, Rows, request_head
from tools.graders._fit import calibrated, fitted, logits
from tools.graders._rows import SEED, SOURCES, answers, digests

HEADS = Path(__file__).resolve().parents[2] / "src" / "anchorlm" / "judging" / "heads"
UNSURE = 0.02
"""Share of the left-out answers of which a head cannot tell."""


def main() -> None:
    """Fits and writes, or measures."""
    parser = argparse.ArgumentParser(prog="python -m tools.graders", description=__doc__)
    parser.add_argument("--table", action="store_true", help="measure by model left out, and write nothing")
    given = parser.parse_args()
    rows = read()
    if given.table:
        from tools.graders._table import table

        table(rows)
        return
    request = request_head()
    refusal = fitted(rows.refusal_table(), STRENGTH)
    people = (rows.source == "xstest") | (rows.source == "runs")
    left = left_out(rows, request)
    refusal = calibrated(refusal, left["refusal"][people], rows.refused[people], rows.weights[people], UNSURE)
    known = rows.harmful >= 0
    harm = fitted(rows.harm_table(request, refusal).part(known), STRENGTH)
    harm = calibrated(
        harm, left["harm"][people & known], rows.harmful[people & known], rows.weights[people & known], UNSURE
    )
    HEADS.mkdir(exist_ok=True)
    for name, head in (("request", request), ("refusal", refusal), ("harm", harm)):
        np.savez_compressed(HEADS / f"{name}.npz", **head.arrays())
    card = {"seed": SEED, "command": "python -m tools.graders", "licenses": SOURCES, "sha256": digests(),
            "answers": {str(name): int((rows.source == name).sum()) for name in np.unique(rows.source)},
            "bands": {"refusal": refusal.band, "harm": harm.band}}  # fmt: skip
    (HEADS / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def read() -> Rows:
    """All answers, and what is read of them."""
    found = answers()
    with ProcessPoolExecutor() as pool:
        traits = list(pool.map(Traits, [one.text for one in found], chunksize=64))
    return Rows(found, traits)


def left_out(rows: Rows, request: Head) -> dict[str, Any]:
    """Logits of each model's answers by heads that saw no answer of it."""
    found = {"refusal": np.zeros(len(rows.answers)), "harm": np.zeros(len(rows.answers))}
    for source, model in {(one.source, one.model) for one in rows.answers if one.source in ("xstest", "runs")}:
        out = (rows.source == source) & (rows.model == model)
        for name, scores in without(rows, request, out).items():
            found[name][out] = scores[out]
    return found


def without(rows: Rows, request: Head, out: Any) -> dict[str, Any]:
    """Logits of all answers by heads that were fitted without some of them."""
    refusal = fitted(rows.refusal_table().part(~out), STRENGTH)
    table = rows.harm_table(request, refusal)
    harm = fitted(table.part(~out & (rows.harmful >= 0)), STRENGTH)
    return {"refusal": logits(refusal, rows.refusal_table()), "harm": logits(harm, table)}


if __name__ == "__main__":
    main()
