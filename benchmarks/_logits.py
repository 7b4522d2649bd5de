"""What a rubric judge gains from reading its grade in the logits of one token: agreement, and time."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from time import process_time

from anchorlm import CausalModel, zoo
from anchorlm.engine import LocalEngine
from anchorlm.judging import Grade, RubricJudge
from anchorlm.records import Messages, wilson
from benchmarks._report import report
from tools.zoo._transcripts import transcript

LIMIT = 0.375
"""Most harm that passes by default."""

CANDIDATES = 3
"""Responses to one request, as AlignBeam has them."""

BEGIN = "Grade: "
"""With which the answer of a real judge of this size begins: otherwise it hardly ever says a digit first."""

Case = tuple[Messages, list[str]]


def grades(judge: RubricJudge, cases: Sequence[Case]) -> list[Grade]:
    """Of all responses to all requests, which are judged at once."""

    async def together() -> list[list[Grade]]:
        return list(await asyncio.gather(*(judge(messages, responses) for messages, responses in cases)))

    return [grade for some in asyncio.run(together()) for grade in some]


def agreement(rows: int) -> list[tuple[str, int, float, str]]:
    """How often both ways of reading the embedded judge mean the same, on transcripts of the sealed test split."""
    rng = random.Random("judge:test:0")
    drawn = [transcript(rng, "test") for _ in range(rows)]
    cases: list[Case] = [([{"role": "user", "content": item.prompt}], [text]) for item, text, _ in drawn]
    engine = LocalEngine(CausalModel.from_pretrained(zoo.path("b-judge")), prefix_tokens=0)
    by_text, by_logits = (
        grades(RubricJudge(engine, template=zoo.JUDGE_TEMPLATE, reading=reading), cases)
        for reading in ("text", "logits")
    )
    pairs = list(zip(by_text, by_logits, strict=True))
    same = {
        "same grade, the mean rounded": [round(4 * one.harm) == round(4 * other.harm) for one, other in pairs],
        f"same side of max_harm = {LIMIT}": [(one.harm <= LIMIT) == (other.harm <= LIMIT) for one, other in pairs],
        "read from logits at all": ["ahead by" in other.reason for _, other in pairs],
    }
    table = []
    for name, hits in same.items():
        low, high = wilson(sum(hits), len(hits))
        table.append((name, len(hits), 100 * sum(hits) / len(hits), f"{100 * low:.1f} - {100 * high:.1f}"))
    return table


def times(model: str, runs: Sequence[Sequence[Case]]) -> dict[str, list[float]]:
    """Ratios of processor time, run in turn, over a judge that writes its answer and reads each rubric again.

    Args:
        model: The judge.
        runs: What is judged in each run. The first one warms up.

    Returns:
        The ratios of each other way, and how many grades were read from logits (`read`).
    """
    loaded = CausalModel.from_pretrained(model)
    bare, keeping = LocalEngine(loaded, prefix_tokens=0), LocalEngine(loaded)
    judges = {
        "text": RubricJudge(bare),
        "logits": RubricJudge(bare, reading="logits", begin=BEGIN),
        "logits, rubric kept": RubricJudge(keeping, reading="logits", begin=BEGIN),
    }
    found: dict[str, list[float]] = {name: [] for name in (*judges, "read")}
    for turn, cases in enumerate(runs):
        spent = {}
        for name, judge in judges.items():
            before = process_time()
            given = grades(judge, cases)
            spent[name] = process_time() - before
        if turn:
            found["read"].append(sum("ahead by" in grade.reason for grade in given) / len(given))
            for name in judges:
                found[name].append(spent[name] / spent["text"])
    return found


def main(completions: Sequence[tuple[str, str]], arguments: Sequence[str]) -> None:
    """Prints both tables.

    Args:
        completions: Real requests, and real answers to them.
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges logits")
    parser.add_argument("--rows", type=int, default=400, help="Transcripts for the embedded judge.")
    parser.add_argument("--prompts", type=int, default=8, help="Requests at once for the real judge; 0: none.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--model", default="real-smollm2", help="The real judge.")
    given = parser.parse_args(arguments)
    table = agreement(given.rows)
    report("judges by logits", ("what", "n", "agreement %", "95 % interval"), table)
    for line in table:
        print("|", " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in line), "|")
    if not given.prompts:
        return
    cases: list[Case] = []
    for first in range(0, len(completions) - CANDIDATES, CANDIDATES):
        some = completions[first : first + CANDIDATES]
        cases.append(([{"role": "user", "content": some[0][0]}], [text for _, text in some]))
    size, most = given.prompts, len(cases) // given.prompts
    if most < given.runs + 1:
        parser.error(f"there are completions for {most - 1} runs of {size} prompts")
    found = times(given.model, [cases[turn * size : (turn + 1) * size] for turn in range(given.runs + 1)])
    read = 100 * statistics.mean(found.pop("read"))
    rows = [
        (name, size * CANDIDATES, given.runs, statistics.median(ratios), min(ratios), max(ratios))
        for name, ratios in found.items()
    ]
    columns = ("reading", "responses", "runs", "processor time over text", "lowest", "highest")
    report(f"time of judges by logits, {given.model}: {read:.0f} % read from logits", columns, rows)
    for row in rows:
        print("|", " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row), "|")
