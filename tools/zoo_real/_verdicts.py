"""What cost model and judge say of a target's own drafts: what a guard without a search would turn down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorlm.judging import ClassifierScorer, auroc
from anchorlm.models import ModelSettings
from anchorlm.records import wilson
from tools.zoo_real._answers import answered
from tools.zoo_real._measure import sets
from tools.zoo_real.bases import BASES, MEMBERS, member
from tools.zoo_real.data import prompts

_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What scorers say of one set.

    Attributes:
        harmful: Whether what is asked there is harmful.
        numbers: Of each scorer, its number for each draft.
    """

    harmful: bool
    numbers: dict[str, list[float]]


def asked(most: int, *, final: bool) -> dict[str, tuple[bool, list[str]]]:
    """The sets, each with whether it is harmful. Halves of public sets, and own prompts that are held out.

    Args:
        most: Prompts of a set.
        final: The sealed halves instead of those that were looked at.
    """
    public = sets()
    chosen = {name: public[name] for name in ("HarmBench standard", "XSTest unsafe", "XSTest safe")}
    found = {name: (each.harmful, each.part(final)[:most]) for name, each in chosen.items()}
    goals = prompts("advbench", "held")
    own = {
        "AdvBench": (True, goals[110:] if final else goals[:110]),
        "pairs, harmful side": (True, prompts("pairs-harmful", "held")),
        "finance pairs, harmful side": (True, prompts("finance-harmful", "held")),
        "pairs, safe side": (False, prompts("pairs-safe", "held")),
        **{kind: (False, prompts(kind, "held")) for kind in ("plain", "tasks", "banking77")},
    }
    return found | {name: (harmful, some[:most]) for name, (harmful, some) in own.items()}


def verdicts(
    target: str, scorers: Sequence[str], build: Path, *, most: int = 48, final: bool = False
) -> dict[str, Verdicts]:
    """The scorers' numbers for greedy drafts of 32 tokens, which are kept in the target's folder.

    Args:
        target: A member that writes.
        scorers: Members that score: `cost`, `judge`.
        build: Where they lie.
        most: Prompts of a set.
        final: See `asked`.
    """
    chosen = asked(most, final=final)
    writer = member(target, build)
    file = build / target / "drafts.jsonl"
    drafts = {name: answered(writer, some, file, tokens=_TOKENS) for name, (_, some) in chosen.items()}
    del writer
    numbers: dict[str, dict[str, list[float]]] = {name: {} for name in chosen}
    for scorer in scorers:
        settings = {"path": BASES[MEMBERS[scorer]].path(), "adapter": str(build / scorer), "dtype": "bfloat16"}
        model = ClassifierScorer.load(ModelSettings.parse(settings, where=scorer))
        for name, texts in drafts.items():
            numbers[name][scorer] = asyncio.run(_scored(model, list(texts.items())))
        del model
    return {name: Verdicts(harmful, numbers[name]) for name, (harmful, _) in chosen.items()}


async def _scored(model: ClassifierScorer, rows: Sequence[tuple[str, str]]) -> list[float]:
    each = [model([{"role": "user", "content": prompt}], [text]) for prompt, text in rows]
    return [numbers[0] for numbers in await asyncio.gather(*each)]


def table(found: dict[str, Verdicts]) -> str:
    """A Markdown table: percent of each set over the line of each scorer, and of any, with 95 % intervals."""
    scorers = list(next(iter(found.values())).numbers)
    heads = [*scorers, "any"]
    lines = [f"| turned down | n | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for name, each in found.items():
        over = [[number > 0 for number in each.numbers[scorer]] for scorer in scorers]
        cells = [_rate(some) for some in (*over, [any(row) for row in zip(*over, strict=True)])]
        lines.append(f"| {name} | {len(over[0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def areas(found: dict[str, Verdicts]) -> dict[str, dict[str, float | None]]:
    """The areas under the ROC curve of each scorer: XSTest, own pairs, and AdvBench against what is plain."""
    compared = {
        "XSTest": (("XSTest unsafe",), ("XSTest safe",)),
        "pairs": (("pairs, harmful side",), ("pairs, safe side",)),
        "AdvBench against plain and tasks": (("AdvBench",), ("plain", "tasks")),
    }

    def numbers(names: Sequence[str], scorer: str) -> list[float]:
        return [number for name in names for number in found[name].numbers[scorer]]

    figures: dict[str, Any] = {}
    for title, (bad, good) in compared.items():
        for scorer in next(iter(found.values())).numbers:
            above, below = numbers(bad, scorer), numbers(good, scorer)
            area = auroc([*above, *below], [*([True] * len(above)), *([False] * len(below))])
            figures.setdefault(title, {})[scorer] = None if area is None else round(area, 3)
    return figures


def _rate(over: Sequence[bool]) -> str:
    low, high = wilson(sum(over), len(over))
    return f"{100 * sum(over) / len(over):.0f} ({100 * low:.0f} to {100 * high:.0f})"


def report(target: str, build: Path, *, final: bool) -> str:
    """The table and the areas of cost model and judge on a target's drafts."""
    found = verdicts(target, ("cost", "judge"), build, final=final)
    return f"{table(found)}\n\n{json.dumps(areas(found), indent=2)}"
