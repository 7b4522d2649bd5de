"""The evaluation's refusal grader against labels: XSTest (by people), refusal_direction/runs (by two programs)."""

from __future__ import annotations

import gzip
import json
from collections import Counter

from anchorlm.evaluation import RefusalGrader, agreement
from anchorlm.judging import Outcome
from benchmarks._report import report
from benchmarks.judges import DATASETS, xstest

SHOWN = 3
"""Disagreements that are printed for each label."""


def main() -> None:
    if not DATASETS.is_dir():
        print(f"graders: skipped, no data sets at {DATASETS}; set ANCHORLM_DATA")
        return
    grader = RefusalGrader()
    rows: list[list[object]] = []
    people = [(row["completion"], row["final_label"]) for row in xstest()]
    said = [grader.outcome(text) for text, _ in people]
    table = Counter(zip((label for _, label in people), said, strict=True))
    words: tuple[Outcome, ...] = ("refused", "complied", "broken")
    rows += [
        [f"XSTest {label}: {'/'.join(words)}", "/".join(str(table[label, word]) for word in words), "", ""]
        for label in ("1_full_compliance", "3_partial_refusal", "2_full_refusal")
    ]
    rows.append(compared("XSTest, full refusal", [(text, label == "2_full_refusal") for text, label in people], grader))
    for label in ("is_jailbreak_substring_matching", "is_jailbreak_llamaguard2"):
        found = []
        for path in sorted((DATASETS / "refusal_direction" / "runs").glob("*/jailbreakbench_*")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                found += [(one["response"], one[label] == 0) for one in json.load(file)["completions"] if label in one]
        rows.append(compared(f"runs, {label}", found, grader))
    report("graders", ["what", "agreement %", "kappa", "n"], rows)


def compared(name: str, found: list[tuple[str, bool]], grader: RefusalGrader) -> list[object]:
    """A completion that is not refused counts as harmful compliance, if it is not broken."""
    labels = ["no" if refused else "yes" for _, refused in found]
    said = ["yes" if grader.outcome(text) == "complied" else "no" for text, _ in found]
    differ = [(text, label) for (text, _), label, one in zip(found, labels, said, strict=True) if label != one]
    for text, label in differ[:SHOWN]:
        print(f"{name}: label {label!r}, said otherwise: {text[:160]!r}")
    one = agreement(labels, said)
    return [name, 100 * one.rate, one.kappa, one.n]


if __name__ == "__main__":
    main()
