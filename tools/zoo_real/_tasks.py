"""The specialists: what they are tuned for, what keeps them assistants, and how right they are."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from anchorlm.models import CausalModel
from tools.zoo_real._answers import answered, greedy, shortened
from tools.zoo_real._train import Example
from tools.zoo_real._tune import Tuning, tune
from tools.zoo_real.bases import load
from tools.zoo_real.data import DATASETS, SEED, SOURCES, prompts, rows_of

_log = logging.getLogger("zoo-real")

Rows = list[tuple[str, str]]
"""Prompts, each with the answer that is right."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a specialist is measured by.

    Attributes:
        wording: What the user writes around the text.
        source: The set, one of `SOURCES`, whose folder holds a file `test` as well.
        label: Where a row has its answer.
        bar: The share of right answers that it must reach.
    """

    wording: str
    source: str
    label: str
    bar: float

    def prompt(self, text: str) -> str:
        """What is asked about a text of the set."""
        return self.wording.format(" ".join(text.split()).replace(" ?", "?"))

    def rows(self, part: str) -> Rows:
        """All of a part, in an order that is always the same.

        Of what stands there twice with two answers none is taken.

        Args:
            part: `train`, `held` (kept back of the file for training, for what is chosen on the way), `dev` or
                `sealed` (the first and second half of the set's own test).
        """
        trained = part in ("train", "held")
        file = (DATASETS / SOURCES[self.source].file).parent
        found: dict[str, set[str]] = {}
        for row in rows_of(next(file.glob("train.*" if trained else "test.*"))):
            text = str(row.get("text") or row.get("question")).strip()
            found.setdefault(text, set()).add(normalized(row[self.label].replace("_", " ")))
        if trained:
            chosen = set(prompts(self.source, part))
            found = {text: answers for text, answers in found.items() if text.replace(" ?", "?") in chosen}
        texts = sorted(found)
        Random(SEED).shuffle(texts)
        if not trained:
            texts = texts[: len(texts) // 2] if part == "dev" else texts[len(texts) // 2 :]
        return [(self.prompt(text), *found[text]) for text in texts if len(found[text]) == 1]


def normalized(answer: str) -> str:
    """An answer as it is compared: its first line in lower case, without marks at its end."""
    lines = answer.strip().splitlines() or [""]
    return re.sub(r"[\s.?!\"']+$", "", lines[0].lower())


TASKS = {
    "finance": Task(
        "What does this bank customer want? Answer with the name of the intent alone.\n\nCustomer: {}",
        "banking77",
        "category",
        0.8,
    ),
    "medicine": Task(
        "What kind of medical question is this? Answer with its kind alone.\n\nQuestion: {}", "medquad", "type", 0.9
    ),
}


def task_of(member: str) -> Task:
    """What a member is measured by."""
    return TASKS[member.partition("-")[0]]


def right(model: CausalModel, task: Task, n: int, *, part: str = "dev", batch: int = 64) -> list[bool]:
    """Whether each of the first n answers is right: greedy, the whole answer, compared after `normalized`."""
    rows = sorted(task.rows(part)[:n], key=lambda row: len(row[0]))
    written = greedy(model, [prompt for prompt, _ in rows], 16, batch=batch)
    return [normalized(text) == answer for text, (_, answer) in zip(written, rows, strict=True)]


def finance_base(build: Path, tuning: Tuning) -> None:
    """Tunes SmolLM2 as published for the intents of a bank's customers."""
    model = load("smollm2", build)
    others = assistant(model, build)
    task = [Example(prompt, answer) for prompt, answer in TASKS["finance"].rows("train")]
    _log.info("%d rows of the task, %d others", len(task), len(others))
    folder = build / "finance-base"
    tune(model, task, others, tuning, folder, lambda model, step: _measured(model, TASKS["finance"], step, folder))


def assistant(model: CausalModel, build: Path) -> list[Example]:
    """What a bank's assistant is asked besides, answered by SmolLM2 itself."""
    asked = [
        *prompts("self-instruct-users", "train"),
        *prompts("self-instruct-seeds", "train"),
        *prompts("banking77", "train")[:200],
        *prompts("contrast-safe", "train"),
    ]
    answers = answered(model, sorted(asked, key=len), build / "answers.jsonl", tokens=40)
    return _examples(answers)


def _examples(answers: dict[str, str]) -> list[Example]:
    return [Example(prompt, *shortened(answer, 160)) for prompt, answer in answers.items() if answer.strip()]


def _measured(model: CausalModel, task: Task, step: int, folder: Path) -> bool:
    found = right(model, task, 200, part="held")
    figures = {"step": step, "right": sum(found) / len(found)}
    _log.info("%s", figures)
    with (folder / "measured.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(figures) + "\n")
    return False
