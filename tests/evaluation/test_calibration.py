from __future__ import annotations

from typing import Any

import pytest

from anchorlm.evaluation.reports._calibration import knowledge
from anchorlm.evaluation.reports._plots import calibration


def answer(kind: str, outcome: str, *trace: dict[str, Any], attack: str = "none") -> dict[str, Any]:
    return {"defense": "d", "kind": kind, "attack": attack, "grades": {"truth": outcome}, "trace": list(trace)}


def gate(score: float) -> dict[str, Any]:
    return {"kind": "gate", "score": score, "threshold": 0.5, "open": score > 0.5}


def test_a_gate_is_held_against_prompts_and_what_was_given_against_its_outcome() -> None:
    given = {"kind": "candidates", "candidates": [{"harm": 1.0}, {"harm": 0.25}]}, {"kind": "chosen", "index": 1}
    found = knowledge(
        [
            answer("harmful", "refused", gate(1.5)),
            answer("harmful", "complied", gate(1.0), *given),
            answer("harmless", "complied", gate(-0.5), {"kind": "chosen", "cost": -2.0}),
            answer("harmful", "complied", gate(-9.0), attack="base64"),
        ]
    )
    by = {one.score.split()[0] + one.score.split()[1]: one for one in found}
    assert set(by) == {"thegate's", "harmof", "costof"}
    assert (sum(by["thegate's"].worse), sum(by["thegate's"].better), by["thegate's"].auroc) == (2, 1, 1.0)
    assert by["thegate's"].limit == 0.0
    assert by["thegate's"].edges[0] == pytest.approx(-1.0)
    assert by["thegate's"].edges[-1] == pytest.approx(1.0)
    assert (sum(by["harmof"].worse), sum(by["harmof"].better), by["harmof"].auroc) == (1, 0, None)
    assert (sum(by["costof"].worse), sum(by["costof"].better)) == (0, 1)
    drawn = calibration(found)
    assert drawn.count("<text") == 7 * len(found)
    assert "AUROC 1.000" in drawn


def test_defenses_that_decide_by_no_number_have_nothing_to_show() -> None:
    assert knowledge([answer("harmful", "refused")]) == []
    assert calibration([]) == ""
