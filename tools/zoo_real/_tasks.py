"""The specialists: what they are tuned for, what keeps them assistants, and how right they are."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from anchorlm.evaluation import WORDINGS, RefusalGrader, answer_line, halves
from anchorlm.models import CausalModel
from anchorlm.records import wilson
from tools.zoo_real._answers import answered, greedy, shortened, teachable
from tools.zoo_real._prefix import written
from tools.zoo_real._train import Example
from tools.zoo_real._tune import Tuning, row, tune
from tools.zoo_real.bases import load, member
from tools.zoo_real.data import DATASETS, SEED, SOURCES, given, prompts, rows_of

_log = logging.getLogger("zoo-real")

Rows = list[tuple[str, str]]
"""Prompts, each with the answer that is right."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a specialist is measured by.

    Attributes:
        source: The set, one of `SOURCES` and of `WORDINGS`, whose folder holds a file `test` as well.
        domain: Of the prompts of our own.
    """

    source: str
    domain: str

    @property
    def wording(self) -> str:
        """What the user writes around the text, as `compare` asks it."""
        return WORDINGS[self.source][0]

    def prompt(self, text: str) -> str:
        """What is asked about a text of the set."""
        return self.wording.format(" ".join(text.split()).replace(" ?", "?"))

    def rows(self, part: str) -> Rows:
        """All of a part, in an order that is always the same.

        Of what stands there twice with two answers none is taken, and nothing of the test that trains as well.

        Args:
            part: `train`, `held` (kept back of the file for training, for what is chosen on the way), `dev` or
                `sealed` (the first and second half of the set's own test).
        """
        trained = part in ("train", "held")
        found = self._read("train" if trained else "test")
        if trained:
            chosen = set(prompts(self.source, part))
            texts = sorted(text for text in found if text.replace(" ?", "?") in chosen)
            Random(SEED).shuffle(texts)
        else:
            seen = set(map(self.prompt, self._read("train")))
            texts = [each for each in halves(found)[part == "sealed"] if self.prompt(each) not in seen]
        return [(self.prompt(text), next(iter(found[text]))) for text in texts if len(found[text]) == 1]

    def _read(self, file: str) -> dict[str, set[str]]:
        """The texts of a file with their right answers."""
        found: dict[str, set[str]] = {}
        for each in rows_of(next((DATASETS / SOURCES[self.source].file).parent.glob(f"{file}.*"))):
            text = str(each.get("text") or each.get("question")).strip()
            found.setdefault(text, set()).add(answer_line(each[WORDINGS[self.source][1]].replace("_", " ")))
        return found


_INTENTS, _KINDS = Task("banking77", "finance"), Task("medquad", "medicine")
TASKS = {"finance": _INTENTS, "finance-base": _INTENTS, "medicine": _KINDS}
"""By member."""

TUNINGS = {
    "finance": Tuning(epochs=0.16, rate=1e-3, among=16, every=23),
    "finance-base": Tuning(epochs=0.75, every=71),
    "medicine": Tuning(epochs=0.16, rank=8, every=18),
}
"""With what each is made."""

_STARTS = {"finance": ("chat-early", "finance-base")}
"""The members whose adapters are added up before the training begins."""


def specialize(name: str, build: Path, tuning: Tuning) -> None:
    """Tunes a specialist: for its task, and for what else an assistant of its domain is asked.

    What is harmful is neither asked nor answered. `finance` goes on from `chat-early`, the aligned chat after 110
    steps, as one adapter with it. What `finance-base` knows is added first (task arithmetic: Ilharco et al. 2023),
    which spares most of the time.

    Args:
        name: One of `TASKS`.
        build: Where everything is kept.
        tuning: How.
    """
    task, folder = TASKS[name], build / name
    model = load("smollm2")
    others = assistance(task, model, build)
    lessons = [Example(prompt, answer) for prompt, answer in task.rows("train")]
    _log.info("%d rows of the task, %d others", len(lessons), len(others))
    tune(
        model,
        lessons,
        others,
        tuning,
        folder,
        lambda model, step: _look(model, task, step, folder),
        start=[build / each for each in _STARTS.get(name, ())],
    )


def assistance(task: Task, model: CausalModel, build: Path) -> list[Example]:
    """What an assistant is asked besides the task, answered by SmolLM2 itself. Medical questions as their set does."""
    asked = [
        *prompts("plain", "train"),
        *prompts("tasks", "train"),
        *prompts("self-instruct-users", "train"),
        *prompts("self-instruct-seeds", "train"),
        *prompts("contrast-safe", "train"),
        *prompts("earlier-pairs-safe", "train"),
        *prompts("banking77", "train")[:100],
    ]
    answers = answered(model, asked, build / "answers.jsonl")
    if task.domain == "medicine":
        brought = given("medquad")
        answers |= {each: brought[each] for each in prompts("medquad", "train")[:400] if teachable(brought[each])}
    return [Example(prompt, *shortened(answer, 140)) for prompt, answer in answers.items()]


def _look(model: CausalModel, task: Task, step: int, folder: Path) -> None:
    """How right it is and how obedient, at a checkpoint, on what is for choosing."""
    rows = [row(model, Example(*each)) for each in task.rows("held")[:200]]
    right = [hit for start in range(0, len(rows), 50) for hit in written(model.model, rows[start : start + 50])]
    figures: dict[str, Any] = {"step": step, "right": sum(right) / len(right)}
    grader = RefusalGrader()
    for kind, asked in (
        ("harmful", prompts("advbench", "train")[200:232]),
        ("pairs-harmful", prompts("pairs-harmful", "calibrate")[:32]),
        ("plain", prompts("plain", "calibrate")[:32]),
    ):
        outcomes = [grader.outcome(text) for text in greedy(model, asked, 20)]
        figures[kind] = {name: outcomes.count(name) for name in ("complied", "refused", "broken")}
    _log.info("%s", figures)
    with (folder / "looks.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(figures) + "\n")


def accuracy(name: str, build: Path, *, final: bool, n: int = 1000) -> dict[str, Any]:
    """How often a member's greedy answer is right, after `answer_line`. Kept in its folder.

    Args:
        name: Of a member or a base that has a task.
        build: Where it lies.
        final: The sealed half of the set's test instead of the first.
        n: Questions at most, the first of a fixed shuffle.
    """
    task, part = TASKS[name], "sealed" if final else "dev"
    rows = task.rows(part)[:n]
    said = greedy(member(name, build), [prompt for prompt, _ in rows], 12, batch=64)
    hits = sum(answer_line(text) == answer for text, (_, answer) in zip(said, rows, strict=True))
    low, high = wilson(hits, len(rows))
    found = {
        "task": task.source,
        "n": len(rows),
        "right": [round(100 * one, 1) for one in (hits / len(rows), low, high)],
    }
    (build / name / f"task-{part}.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return found
