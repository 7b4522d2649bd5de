"""The card of a member: what it was made from, with what command, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.zoo_real.bases import BASES
from tools.zoo_real.data import DATASETS, SOURCES, digest


@dataclass(frozen=True, slots=True)
class Learned:
    """A set that a member learned from.

    Attributes:
        name: One of `SOURCES`, or what it is called.
        rows: How many of its rows.
        what: What of it.
        licence: Of a set that is not one of `SOURCES`.
    """

    name: str
    rows: int
    what: str
    licence: str = "Apache-2.0, AnchorLM's own"


_HEAD = """---
license: {licence}
language: en
library_name: peft
base_model: {base}
tags: [anchorlm, real]
---
# real-{name}

{description}

An adapter on {title}, the GGUF file {base} of the package {package}; load it as `real-{name}` wherever AnchorLM takes
a model. It was trained and measured in bfloat16. Made by `{command}` (seed {seed}).

## Learned from

| set | licence | rows | what | SHA-256 of the file |
|---|---|---|---|---|
"""


def write_card(
    folder: Path, name: str, base: str, description: str, learned: Sequence[Learned], *, seed: int, command: str
) -> None:
    """Writes README.md of a member, with the figures of `figures.json` in its folder."""
    known = BASES[base]
    licence = "apache-2.0" if base == "smollm2" else "gemma"
    text = _HEAD.format(
        licence=licence,
        base=known.file,
        name=name,
        description=description,
        title=known.title,
        package=known.packages[0],
        command=command,
        seed=seed,
    )
    for one in learned:
        source = SOURCES.get(one.name)
        rest = (source.licence, digest(one.name)) if source and DATASETS.is_dir() else (one.licence, "")
        text += f"| {one.name} | {rest[0]} | {one.rows} | {one.what} | {rest[1]} |\n"
    text += "\n## Measured\n\n| prompts | figure | n | rate | 95 % interval | bar | command |\n|---|---|---|---|---|---|---|\n"
    file = folder / "figures.json"
    for row in json.loads(file.read_text("utf-8")) if file.is_file() else ():
        text += (
            f"| {row['data']} | {row['name']} | {row['n']} | {100 * row['hits'] / row['n']:.1f} % | "
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f} % | {row['bar']} | `{row['command']}` |\n"
        )
    (folder / "README.md").write_text(text, encoding="utf-8")
