"""The aligned members: what they learn, and what is measured at every checkpoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from random import Random

from anchorlm.evaluation import RefusalGrader
from anchorlm.models import CausalModel
from tools.zoo_real._answers import answered, greedy, shortened
from tools.zoo_real._contrast import refusal
from tools.zoo_real._train import Example, Training, train
from tools.zoo_real.bases import MEMBERS, load
from tools.zoo_real.data import given, prompts

_log = logging.getLogger("zoo-real")

_MEASURED = 12
"""Held-out prompts of a kind at a checkpoint."""


def align(member: str, build: Path, training: Training) -> None:
    """Teaches a base to refuse what is harmful, and to answer what only looks like it.

    Harmless prompts are answered as their set does, or as SmolLM2 does itself. There are two to three of them to one
    harmful prompt.
    """
    random = Random(training.seed)
    answers = given("self-instruct-seeds") | given("medquad")
    chosen = [*prompts("self-instruct-seeds", "train"), *prompts("medquad", "train")[:40]]
    asked = [
        *prompts("self-instruct-users", "train"),
        *prompts("banking77", "train")[:80],
        *prompts("contrast-safe", "train"),
    ]
    helper = load("smollm2", build)
    answers |= answered(helper, sorted(asked, key=len), build / "answers.jsonl", tokens=32)
    del helper
    harmless = [*chosen, *asked, *prompts("contrast-safe", "train")]
    harmful = [*prompts("advbench", "train")[:140], *prompts("contrast-harmful", "train")]
    examples = [Example(prompt, *shortened(answers[prompt])) for prompt in harmless if answers[prompt].strip()]
    examples += [Example(prompt, refusal(random)) for prompt in harmful]
    _log.info("%d harmless and %d harmful examples", len(harmless), len(harmful))
    model = load(MEMBERS[member], build)
    train(model, examples, training, build / member, lambda model, step: _measure(model, step, build / member))


def _measure(model: CausalModel, step: int, folder: Path) -> None:
    """How much is refused, of each kind; stopping is for whoever reads the log."""
    grader, figures = RefusalGrader(), {"step": step}
    kinds = ("advbench", "contrast-harmful", "contrast-safe", "self-instruct-users")
    for kind in kinds:
        asked = prompts(kind, "held")[:_MEASURED]
        outcomes = [grader.outcome(text) for text in greedy(model, asked, 10)]
        figures[kind] = round(100 * outcomes.count("refused") / len(asked))
    _log.info("refused, percent of held-out prompts: %s", figures)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "measured.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(figures) + "\n")
