"""The members that score an answer: judge and cost (its harm) and reward (its worth)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self

from anchorlm.evaluation import RefusalGrader
from anchorlm.judging import auroc
from tools.zoo_real._answers import answered
from tools.zoo_real._contrast import refusal
from tools.zoo_real._graded import Graded, graded
from tools.zoo_real._heads import Learner, Learning, learn, row_of, tokenizer_of
from tools.zoo_real._scorer_card import card
from tools.zoo_real.bases import BASES, MEMBERS, load
from tools.zoo_real.data import given, prompts, targets

_log = logging.getLogger("zoo-real")

AIMS = {"judge": "harm", "cost": "harm", "reward": "worth"}
"""What each member learns to say."""

SETTINGS = {
    "cost": Learning(rate=2e-3, most=2_000),
    "judge": Learning(rate=1e-3, most=900, seed=1, above=6, start="anchor", roles=("User", "Assistant", "System")),
    "reward": Learning(rate=2e-3, most=900, seed=2, start="cost"),
}
"""How each is trained. The judge goes on from the anchor, in its words: who refuses knows what is harmful. The reward
goes on from the cost model. Both need half the examples so."""

TOKENS = 32
"""Of an answer that SmolLM2 gives."""

_WORDS = 18
"""Of an answer that are learned from or measured: they say what it is, and more of them cost more than they teach."""


_FEW = {"advbench": 100, "banking77": 50, "medquad": 40, "self-instruct-seeds": 80, "self-instruct-users": 50}
"""Prompts that are trained on, of sets that have more than are needed."""

_HELD = {"pairs-harmful": 100, "pairs-safe": 100, "advbench": 48, "plain": 48, "tasks": 48}
"""Held-out prompts that are measured on."""


def score(member: str, build: Path, learning: Learning) -> None:
    """Trains a scorer on answers whose harm and worth are known.

    Args:
        member: `judge`, `cost` or `reward`.
        build: Where everything is kept.
        learning: How.
    """
    file = BASES[MEMBERS[member]].path()
    tokenizer = tokenizer_of(file, learning)
    examples = training(Random(learning.seed), build)[: learning.most]
    rows = [row_of(tokenizer, example, AIMS[member], learning.dense) for example in examples]
    held = Held.of(build)

    def measure(learner: Learner, step: int) -> None:
        figures = {"step": step, **held.measured(learner, AIMS[member])}
        _log.info("%s", figures)
        with (build / member / "measured.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(figures) + "\n")

    learn(file, rows, learning, build / member, measure)
    (build / member / "README.md").write_text(card(member, build / member, learning), encoding="utf-8")


def training(random: Random, build: Path) -> list[Graded]:
    """The examples of the part that adapters learn from."""
    pairs = list(zip(*(prompts(f"earlier-pairs-{side}", "train") for side in ("safe", "harmful")), strict=True))
    bad = prompts("advbench", "train")[: _FEW["advbench"]]
    kinds = ("plain", "tasks", "self-instruct-users", "banking77")
    asked = [prompt for kind in kinds for prompt in prompts(kind, "train")[: _FEW.get(kind)]]
    own = [prompt for kind in ("self-instruct-seeds", "medquad") for prompt in prompts(kind, "train")[: _FEW.get(kind)]]
    answers = _said([prompt for pair in pairs for prompt in pair] + bad + asked, build)
    answers |= {prompt: text for prompt, text in _written().items() if prompt in set(own)}
    openings = {goal: opening for goal, opening in targets("advbench").items() if goal in set(bad)}
    frames = [*prompts("wrappings", "train"), *prompts("attacks", "train")]
    return graded(random, pairs, [*asked, *own], openings, answers, frames)


def _said(asked: list[str], build: Path) -> dict[str, str]:
    """What SmolLM2 as published says. It is loaded where an answer lacks."""
    file = build / "answers.jsonl"
    known = {json.loads(line)["prompt"] for line in file.read_text("utf-8").splitlines()} if file.is_file() else set()
    asked = sorted((prompt for prompt in asked if len(prompt) < 400), key=len)
    model: Any = None if known.issuperset(asked) else load("smollm2")
    answers = answered(model, asked, file, tokens=TOKENS)
    return {prompt: shorter(text) for prompt, text in answers.items()}


def shorter(text: str) -> str:
    """The first words of an answer."""
    return " ".join(text.split(" ")[:_WORDS])


def _written() -> dict[str, str]:
    """The answers that sets bring along, their beginnings where they are long."""
    answers = given("self-instruct-seeds") | given("medquad")
    return {prompt: shorter(text) for prompt, text in answers.items() if text}


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out requests with answers, by what they are. Each a request and a text.

    Attributes:
        complied: SmolLM2's answers to the harmful side of pairs, those that its refusal matcher calls answers.
        answered: Its answers to the harmless side.
        goals: Its answers to AdvBench.
        plain: Its answers to plain instructions and to tasks.
        refused: Refusals of the harmful side.
        other: Answers to other requests, on the harmless side.
    """

    complied: list[tuple[str, str]]
    answered: list[tuple[str, str]]
    goals: list[tuple[str, str]]
    plain: list[tuple[str, str]]
    refused: list[tuple[str, str]]
    other: list[tuple[str, str]]

    @classmethod
    def of(cls, build: Path) -> Self:
        """From prompts that no member learns from."""
        kinds = {kind: prompts(kind, "held")[:count] for kind, count in _HELD.items()}
        said = _said([prompt for some in kinds.values() for prompt in some], build)
        grader, random = RefusalGrader(), Random(0)
        texts = {
            kind: [(prompt, said[prompt]) for prompt in some if grader.outcome(said.get(prompt, "")) == "complied"]
            for kind, some in kinds.items()
        }
        safe = texts["pairs-safe"]
        return cls(
            complied=texts["pairs-harmful"],
            answered=safe,
            goals=texts["advbench"],
            plain=texts["plain"] + texts["tasks"],
            refused=[(prompt, refusal(random)) for prompt in kinds["pairs-harmful"]],
            other=[(prompt, safe[at - 1][1]) for at, (prompt, _) in enumerate(safe)],
        )

    def measured(self, learner: Learner, aim: str) -> dict[str, Any]:
        """Areas under the ROC curve, and what of harm passes where few harmless answers are turned down."""
        answered, other = learner.scores(self.answered), learner.scores(self.other)
        no = [text for _, text in self.refused]
        refused = learner.scores([(prompt, no[at % len(no)]) for at, (prompt, _) in enumerate(self.answered)])
        if aim == "worth":
            return {"whole over other": _area(answered, other), "whole over refusal": _area(answered, refused)}
        complied, goals = learner.scores(self.complied), learner.scores(self.goals)
        plain, turned_down = learner.scores(self.plain), learner.scores(self.refused)
        begun = [
            [(prompt, " ".join(text.split()[:4])) for prompt, text in some] for some in (self.complied, self.answered)
        ]
        fine = sorted(answered + plain)
        figures: dict[str, Any] = {
            "pairs": _area(complied, answered),
            "pairs, four words": _area(*map(learner.scores, begun)),
            "advbench": _area(goals, plain),
            "complied over refused": _area(complied, turned_down),
        }
        for share in (0.01, 0.05, 0.1):
            line = fine[min(len(fine) - 1, int((1 - share) * len(fine)))]
            passed = [sum(value <= line for value in some) / len(some) for some in (complied, goals, turned_down)]
            figures[f"at {share:.0%}"] = {
                "line": round(line, 2),
                "pairs, advbench, refusals pass": [round(x, 3) for x in passed],
            }
        return figures


def _area(above: Sequence[float], below: Sequence[float]) -> float:
    return round(auroc([*above, *below], [*([True] * len(above)), *([False] * len(below))]) or 0.5, 3)
