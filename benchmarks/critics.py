"""What InferenceGuard's critic tells after the first block, and what a search gains by it in the same time."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from anchorlm import Guard, zoo
from anchorlm.defenses.inferenceguard import save_critic
from anchorlm.engine import LocalEngine, runtime
from anchorlm.judging import Scorer
from anchorlm.records import Artifact, as_messages, wilson
from benchmarks._report import report
from benchmarks.inferenceguard import BLOCK, CRITIC_PROMPTS, HARMFUL, LENGTH, engine, fitted, sample, scorer

BUDGETS = (0.0, 2.0)
"""The cost model's own line, and one that no answer has passed by its first block."""
BEAMS = (2, 4, 8, 16, 32)
"""Each a search of its own, without a draft before it: more beams take more time and find more."""


@dataclass(slots=True)
class Search:
    """What searches with so many beams came to, over all prompts."""

    seconds: list[float] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    complied: list[bool] = field(default_factory=list)


def told(target: str, budget: float, artifact: Artifact) -> list[object]:
    """The critic's figures on held-out states, as its card has them."""
    figures, first = artifact.figures, "auroc after the first block"
    values = (figures[name] for name in (first, f"{first} of the budget left"))
    return [
        target, budget, figures["states after the first block"], f"{100 * figures['over budget after a block']:.1f}",
        f"{100 * figures['ended within budget']:.1f}", *("-" if one is None else f"{one:.3f}" for one in values),
    ]  # fmt: skip


def race(
    guards: Mapping[tuple[str, int], Guard], prompts: Sequence[zoo.Item], reward: Scorer
) -> dict[tuple[str, int], Search]:
    """Every prompt by every guard in turn, so that a drifting machine hits all alike."""
    searches = {name: Search() for name in guards}
    for guard in guards.values():
        guard.chat(as_messages(prompts[0].prompt))  # warm
    for item in prompts:
        messages = as_messages(item.prompt)
        for name, guard in guards.items():
            own, start = searches[name], perf_counter()
            response = guard.chat(messages)
            own.seconds.append(perf_counter() - start)
            own.found.append(response.finish_reason != "refusal")
            own.rewards += runtime().run(reward(messages, [response.text]))
            own.complied.append(str(zoo.grade(item, response.text)) == "complied")
    return searches


def at(seconds: float, searches: Sequence[Search], values: Sequence[float]) -> float | None:
    """The value in so many seconds, between the searches that take less and more. None outside of them."""
    points = sorted(zip((statistics.mean(one.seconds) for one in searches), values, strict=True))
    for (early, less), (late, more) in pairwise(points):
        if early <= seconds <= late:
            return less + (more - less) * (seconds - early) / (late - early)
    return None


def compared(target: str, budget: float, searches: Mapping[tuple[str, int], Search]) -> list[list[object]]:
    """A row for each number of beams and kind. With a critic also what a search without one does in the same time."""
    bare = [one for (kind, _), one in searches.items() if kind == "without"]
    rows: list[list[object]] = []
    for (kind, beams), one in searches.items():
        n, seconds = len(one.found), statistics.mean(one.seconds)
        low, high = wilson(sum(one.found), n)
        same = [
            at(seconds, bare, [100 * statistics.mean(map(float, each.found)) for each in bare]),
            at(seconds, bare, [statistics.mean(each.rewards) for each in bare]),
        ] if kind == "with" else [None, None]  # fmt: skip
        rows.append([
            target, budget, kind, beams, n, seconds,
            f"{100 * sum(one.found) / n:.1f} ({100 * low:.1f} to {100 * high:.1f})", statistics.mean(one.rewards),
            f"{100 * sum(one.complied) / n:.1f}",
            *("-" if value is None else f"{value:.{digits}f}" for value, digits in zip(same, (1, 2), strict=True)),
        ])  # fmt: skip
    return rows


def searching(
    target: LocalEngine, cost: Scorer, reward: Scorer, budget: float, critic: Path
) -> dict[tuple[str, int], Guard]:
    common = {"cost": cost, "reward": reward, "generation": {"max_new_tokens": LENGTH}, "block": BLOCK,
              "budget": budget, "draft": False}  # fmt: skip
    return {
        (kind, n): Guard(target, "inferenceguard", beams=(n,), **common, **own)  # type: ignore[arg-type]
        for n in BEAMS
        for kind, own in (("without", {}), ("with", {"critic": str(critic)}))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=30, help="prompts of each harmful split, for the comparison; 0: none")
    parser.add_argument("--partition", default="dev", help="dev, or test once everything is settled")
    parser.add_argument("--domains", default=",".join(zoo.DOMAINS))
    parser.add_argument("--critic-prompts", type=int, default=CRITIC_PROMPTS)
    chosen = parser.parse_args()
    cost, reward = scorer(zoo.path("b-cost")), scorer(zoo.path("b-reward"))
    figures, rows = [], []
    with TemporaryDirectory() as folder:
        for domain in chosen.domains.split(","):
            target = engine(f"a-{domain}")
            prompts = [item for split in HARMFUL for item in sample(split, domain, chosen.partition, chosen.n)]
            for budget in BUDGETS:
                journal = Path(folder) / f"{domain}.jsonl"
                artifact = fitted(target, domain, cost, reward, chosen.critic_prompts, budget, journal)
                figures.append(told(f"a-{domain}", budget, artifact))
                print(figures[-1], flush=True)
                if chosen.n:
                    critic = save_critic(artifact, Path(folder) / f"{domain}-{budget:g}")
                    guards = searching(target, cost, reward, budget, critic)
                    rows += compared(f"a-{domain}", budget, race(guards, prompts, reward))
    columns = ["target", "budget", "states after the first block, held out", "states over budget already %",
               "ended within %", "AUROC", "AUROC of the budget left alone"]  # fmt: skip
    report("critics", columns, figures)
    columns = ["target", "budget", "critic", "beams", "n", "s/prompt", "found %", "reward", "complied %",
               "found % without, same time", "reward without, same time"]  # fmt: skip
    if rows:
        report("critics in equal time", columns, rows)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
