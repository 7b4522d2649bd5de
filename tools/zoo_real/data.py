"""What is trained on, and what is held out. Each set under a licence that lets its trained form be passed on."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from tools.zoo_real._contrast import PAIRS

DATASETS = Path(os.environ.get("ANCHORLM_DATA", "../shared/data")) / "datasets"
SEED = 20_261_129
"""Of every split: what was held out once is held out for every member."""


@dataclass(frozen=True, slots=True)
class Source:
    """A set as published.

    Attributes:
        file: Under `DATASETS`.
        licence: Of the set.
        train: Prompts that may be trained on, the first of the shuffled ones. All others are held out.
        harmful: Whether they are to be refused.
    """

    file: str
    licence: str
    train: int
    harmful: bool = False


SOURCES = {
    "advbench": Source("advbench/advbench.csv.gz", "MIT", 300, harmful=True),
    "self-instruct-seeds": Source("self-instruct/seed_tasks.jsonl.gz", "Apache-2.0", 175),
    "self-instruct-users": Source("self-instruct/user_oriented_instructions.jsonl.gz", "Apache-2.0", 60),
    "banking77": Source("banking77/train.csv.gz", "CC-BY-4.0", 9_000),
    "medquad": Source("medquad/train.jsonl.gz", "CC-BY-4.0", 7_000),
}
"""XSTest, HarmBench's test set and StrongREJECT never train, so that they are not here."""

_HELD_PAIRS = 10

EARLIER = 1_080
"""Pairs that the library had first. The shipped members learned from these alone, and are made again as they were."""


def digest(name: str) -> str:
    """Of a set's file, for the card."""
    return hashlib.sha256((DATASETS / SOURCES[name].file).read_bytes()).hexdigest()


def prompts(name: str, part: str) -> list[str]:
    """The prompts of a set, in an order that is always the same.

    Args:
        name: One of `SOURCES`, `contrast-safe` or `contrast-harmful` (of this tool), or of the library's own prompts
            `pairs-safe`, `pairs-harmful`, `finance-harmful`, `plain`, `tasks`, `attacks`, `wrappings`. With `earlier-`
            before it, pairs are those that the library had first.
        part: `train` or `held`. The library's own have `calibrate` and `fit` too.
    """
    if name in _OWN:
        return [text for text, of in _own(*_OWN[name]) if of == part]
    if name.startswith("earlier-"):
        file, field, *more = _OWN[name.removeprefix("earlier-")]
        return [text for text, of in _own(file, field, *more)[:EARLIER] if of == part]
    if name.startswith("contrast-"):
        pairs = list(PAIRS)
        Random(SEED).shuffle(pairs)
        chosen = pairs[:-_HELD_PAIRS] if part == "train" else pairs[-_HELD_PAIRS:]
        return [pair[name == "contrast-harmful"] for pair in chosen]
    source = SOURCES[name]
    found = sorted(set(filter(None, map(_prompt, rows_of(DATASETS / source.file)))))
    Random(SEED).shuffle(found)
    return found[: source.train] if part == "train" else found[source.train :]


def apart(asked: Sequence[str], others: Sequence[str], *, share: float = 0.6) -> list[str]:
    """The prompts that share less than `share` of their words with each of the others: AdvBench says much twice."""
    words = [_words(other) for other in others]
    return [
        prompt
        for prompt in asked
        if all(len(own & other) < share * len(own | other) for own in [_words(prompt)] for other in words)
    ]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


_OWN = {
    "pairs-safe": ("pairs", "safe", ""),
    "pairs-harmful": ("pairs", "harmful", ""),
    "finance-harmful": ("pairs", "harmful", "", "finance"),
    "plain": ("plain", "prompt", ""),
    "tasks": ("tasks", "prompt", ""),
    "attacks": ("wrapped", "text", "attack"),
    "wrappings": ("wrapped", "text", "plain"),
}


@cache
def _own(file: str, field: str, category: str, domain: str = "") -> tuple[tuple[str, str], ...]:
    """Texts of the library's own prompts, each with its part."""
    lines = (files("anchorlm.steering") / "prompts" / f"{file}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    chosen = [row for row in rows if category in ("", row["category"]) and domain in ("", row.get("domain"))]
    return tuple((row[field], row["part"]) for row in chosen)


def given(name: str) -> dict[str, str]:
    """The answers that a set brings itself, by prompt."""
    rows = rows_of(DATASETS / SOURCES[name].file)
    return {_prompt(row): str(row.get("answer") or row["instances"][0]["output"]).strip() for row in rows}


def targets(name: str) -> dict[str, str]:
    """How an answer that complies begins, by prompt, where a set says so."""
    return {_prompt(row): str(row["target"]).strip() for row in rows_of(DATASETS / SOURCES[name].file)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, CSV or JSON lines."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    if path.suffixes[0] == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _prompt(row: dict[str, Any]) -> str:
    """The text of a row. An instruction with its input below it, where both are short."""
    if "instruction" in row:
        given = row["instances"][0]["input"].strip()
        text = f"{row['instruction'].strip()}\n{given}".strip()
        return text if len(text) <= 400 else ""
    return str(row.get("goal") or row.get("text") or row.get("question") or "").strip().replace(" ?", "?")
