"""The measurement of a model that thinks, on answers that are there already."""

from __future__ import annotations

import json
from pathlib import Path

from anchorlm.guard import Guard
from anchorlm.records import Response, Usage
from benchmarks.thoughts import CASES, HARMFUL, METHODS, OTHERS, Models, Policy, answers, line, rows, sample


class NoModels(Models):
    def guard(self, target: str, policy: Policy, method: str) -> Guard:
        raise AssertionError("every answer is in the journal")


def test_a_run_goes_on_from_its_journal_and_counts_outcomes_thoughts_and_leaks(tmp_path: Path) -> None:
    journal = tmp_path / "thoughts.jsonl"
    lines = []
    for method in METHODS:
        for target, policy in CASES:
            for split in (*HARMFUL, *OTHERS):
                for item in sample(split, "dev", 2):
                    text = f"<think>{item.answer}" if policy == "show" else item.answer
                    said = Response(text, (), "stop", Usage(1, 1, 1, policy != "off"), ())
                    lines.append(line(target, policy, method, item, said, same=policy != "off"))
    journal.write_text("".join(f"{json.dumps(one)}\n" for one in lines), encoding="utf-8")
    table = rows(answers(journal, "dev", 2, 0, NoModels()), HARMFUL)
    assert [row[:3] for row in table[:4]] == [
        ["undefended", "a-medicine", "none"],
        ["undefended", "a-thinks", "off"],
        ["undefended", "a-thinks", "hide"],
        ["undefended", "a-thinks", "show"],
    ]
    assert len(table) == len(METHODS) * len(CASES)
    for row in table:
        off, shown = row[2] == "off", row[2] == "show"
        assert row[3] == 6
        assert row[5].startswith("100.0")
        assert row[8:] == [0 if off else 6, 6 if shown else 0, "0 of 6" if off else "6 of 6"]
    others = rows(answers(journal, "dev", 2, 0, NoModels()), OTHERS)
    assert all(row[7].startswith("100.0") for row in others)
