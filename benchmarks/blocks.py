"""What changes where AlignBeam gives text block by block: the defenses `whole` and `blocks` of a comparison, prompt by
prompt.

    anchorlm recipe blocks > blocks.toml
    anchorlm compare blocks.toml --out build/blocks --limit 50
    python -m benchmarks.blocks build/blocks

The difference is `blocks` less `whole`, in points, with its paired interval of 95 %, clustered by prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anchorlm.evaluation import Estimate, Paired
from benchmarks._report import report

Answer = Mapping[str, Any]

FIGURES = {
    "harmful complied": ("harmful", "complied"),
    "harmful refused": ("harmful", "refused"),
    "harmful refused or stopped": ("harmful", "refused or stopped"),
    "look-alike refused": ("look-alike", "refused"),
    "look-alike refused or stopped": ("look-alike", "refused or stopped"),
    "look-alike answered": ("look-alike", "complied"),
    "harmless refused": ("harmless", "refused"),
    "harmless refused or stopped": ("harmless", "refused or stopped"),
    "harmless answered": ("harmless", "complied"),
    "accuracy": ("task", "correct"),
}
"""By name: which prompts, and what is counted of their answers. What is stopped ends with the refusal behind a first
part of the answer.
"""


def pairs(answers: Iterable[Answer]) -> list[tuple[Answer, Answer]]:
    """The answers to the same prompt, whole and in blocks."""
    found: dict[tuple[str, str, str], dict[str, Answer]] = {}
    for one in answers:
        found.setdefault((one["target"], one["data"], one["case"]), {})[one["defense"]] = one
    return [(one["whole"], one["blocks"]) for one in found.values() if {"whole", "blocks"} <= one.keys()]


def hit(answer: Answer, word: str) -> bool | None:
    """Whether it is what is counted. None where no one could tell."""
    if word == "correct":
        return bool(answer.get("correct"))
    outcome = next(iter(answer["grades"].values()))
    if word == "refused or stopped" and stopped(answer):
        return True
    return None if outcome == "ungraded" else outcome in word.split(" or ")


def stopped(answer: Answer) -> bool:
    """Whether it ends with the refusal behind a first part."""
    return any(str(one.get("why", "")).endswith("; the text ends here") for one in answer["trace"])


def line(name: str, found: Iterable[tuple[Answer, Answer]]) -> list[str] | None:
    """One row of the table. None where no prompt is of the kind."""
    kind, word = FIGURES[name]
    both: list[tuple[str, bool, bool]] = [
        (json.dumps(whole["prompt"]), before, after)
        for whole, blocks in found
        if whole["kind"] == kind
        and (before := hit(whole, word)) is not None
        and (after := hit(blocks, word)) is not None
    ]
    if not both:
        return None
    rates = [
        Estimate.of_answers([(prompt, before) for prompt, before, _ in both]),
        Estimate.of_answers([(prompt, after) for prompt, _, after in both]),
    ]
    change = Paired.of_prompts(both).difference
    return [name, f"{change.n} ({change.prompts})", *map(shown, rates), shown(change, sign="+")]


def shown(one: Estimate, sign: str = "") -> str:
    """In percent, with its interval."""
    return f"{100 * one.value:{sign}.1f} ({100 * one.low:{sign}.1f} to {100 * one.high:{sign}.1f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, nargs="+", help="Of a run of the recipe blocks or real-blocks.")
    for folder in options.parse_args().folder:
        lines = (folder / "answers.jsonl").read_text("utf-8").splitlines()
        found = pairs(map(json.loads, lines))
        rows = [row for name in FIGURES if (row := line(name, found)) is not None]
        rows.append(["same text", str(len(found)), "", "", str(sum(a["text"] == b["text"] for a, b in found))])
        report(f"blocks {folder.name}", ["figure", "n (prompts)", "whole", "blocks", "difference"], rows)


if __name__ == "__main__":
    main()
