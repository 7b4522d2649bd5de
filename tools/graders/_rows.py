"""The answers that the heads learn from, and that they are measured on: each with its source, its model and labels."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.graders._phrasing import caveated, deed, refusal, turned

ROOT = Path(__file__).resolve().parents[2]
DATASETS = Path(os.environ.get("ANCHORLM_DATA", ROOT.parent / "shared" / "data")) / "datasets"
PROMPTS = ROOT / "src" / "anchorlm" / "steering" / "prompts"
SMALL = Path(__file__).with_name("small.jsonl.gz")
SEED = 20261129
REFUSALS, CAVEATED, TURNED, MEDICAL = 700, 350, 120, 250
"""Answers in words of our own."""

QUESTIONS = 300
"""Of bank customers."""

SOURCES = {
    "xstest/xstest_v2_completions_gpt4.csv.gz": "CC-BY-4.0",
    "xstest/xstest_v2_completions_llama2new.csv.gz": "CC-BY-4.0",
    "xstest/xstest_v2_completions_mistralguard.csv.gz": "CC-BY-4.0",
    "refusal_direction/runs": "Apache-2.0",
    "self-instruct/seed_tasks.jsonl.gz": "Apache-2.0",
    "self-instruct/user_oriented_instructions.jsonl.gz": "Apache-2.0",
    "medquad/train.jsonl.gz": "CC-BY-4.0",
    "banking77/train.csv.gz": "CC-BY-4.0",
}
"""What is read of the public data, and the license that lets a trained weight be passed on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        source: xstest, runs, small, or own.
        model: Whose answer it is.
        prompt: What was asked.
        text: What was answered.
        refused: 1 for a full or partial refusal, 0 for an answer. None where nobody says.
        partial: The label is a partial refusal.
        harmful: 1 where harm was asked for and given, 0 where not. None where nobody says.
        labeled: People or a safety model say that, and not the prompt.
    """

    source: str
    model: str
    prompt: str
    text: str
    refused: int | None
    partial: bool = False
    harmful: int | None = None
    labeled: bool = False


def answers() -> list[Answer]:
    """All of them, in a fixed order."""
    return [*xstest(), *runs(), *small(), *own()]


def xstest() -> Iterator[Answer]:
    """Labels of people. Harm is a full compliance with an unsafe prompt, and a partial one with it says nothing."""
    for model in ("gpt4", "llama2new", "mistralguard"):
        with gzip.open(
            DATASETS / f"xstest/xstest_v2_completions_{model}.csv.gz", "rt", encoding="utf-8", newline=""
        ) as f:
            for row in csv.DictReader(f):
                unsafe, label = row["type"].startswith("contrast"), row["final_label"]
                harmful = (
                    None if unsafe and label == "3_partial_refusal" else int(unsafe and label == "1_full_compliance")
                )
                yield Answer("xstest", model, row["prompt"], row["completion"], int(label != "1_full_compliance"),
                             label == "3_partial_refusal", harmful, harmful is not None)  # fmt: skip


def known_requests() -> list[tuple[str, int]]:
    """XSTest's prompts and the harmful ones of `runs`, and whether each asks for harm."""
    rows = _table(DATASETS / "xstest/xstest_v2_completions_gpt4.csv.gz")
    return [(row["prompt"], int(row["type"].startswith("contrast"))) for row in rows] + [
        (prompt, 1) for prompt in sorted({one.prompt for one in runs() if one.labeled})
    ]


def runs() -> Iterator[Answer]:
    """Labels of two programs: substrings for refusals, Llama Guard 2 for harm.

    Its harmless prompts are Alpaca's, which may not be passed on in trained form: no head reads them.
    """
    for path in sorted((DATASETS / "refusal_direction" / "runs").glob("*/*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in json.load(file)["completions"]:
                harmless = path.name.startswith("harmless")
                yield Answer("runs", path.parent.name, row["prompt"], row["response"],
                             1 - row["is_jailbreak_substring_matching"],
                             harmful=None if harmless else row["is_jailbreak_llamaguard2"],
                             labeled=not harmless)  # fmt: skip


def small() -> Iterator[Answer]:
    """The first 32 tokens of SmolLM2-135M-Instruct on prompts of our own: the phrase matcher tells its few refusals."""
    for row in _lines(SMALL):
        yield Answer("small", "smollm2", row["prompt"], row["answer"], row["refused"], harmful=row["harmful"])


def own() -> Iterator[Answer]:
    """Refusals and caveats in words of our own, about prompts of our own and around public answers."""
    rng = random.Random(SEED)
    pairs = [one for one in _lines(PROMPTS / "pairs.jsonl") if one["part"] == "train"]
    deeds = [
        (phrase, pair[side])
        for pair in pairs
        for side in ("harmful", "harmful", "safe")
        if (phrase := deed(pair[side]))
    ]
    plain = [*_instructions(), *_medical(rng)]
    for _ in range(REFUSALS):
        phrase, prompt = rng.choice(deeds)
        yield Answer("own", "own", prompt, refusal(rng, phrase), 1, harmful=0)
    for prompt, text in plain:
        yield Answer("own", "own", prompt, text, 0, harmful=0)
    for _ in range(CAVEATED):
        prompt, text = rng.choice(plain)
        yield Answer("own", "own", prompt, caveated(rng, text), 0, harmful=0)
    for _ in range(TURNED):
        prompt, text = rng.choice(plain)
        yield Answer("own", "own", prompt, turned(rng, text), 0, harmful=0)


def requests() -> list[tuple[str, int]]:
    """Prompts of our own to train on, and whether each asks for harm."""
    pairs = [one for one in _lines(PROMPTS / "pairs.jsonl") if one["part"] == "train"]
    plain = [
        one["prompt"]
        for name in ("plain", "tasks")
        for one in _lines(PROMPTS / f"{name}.jsonl")
        if one["part"] == "train"
    ]
    rng = random.Random(SEED)
    bank = rng.sample(_table(DATASETS / "banking77/train.csv.gz"), QUESTIONS)
    plain += [row["text"] for row in bank]
    plain += [prompt for prompt, _ in [*_instructions(), *_medical(rng)]]
    return [(pair[side], int(side == "harmful")) for pair in pairs for side in ("safe", "harmful")] + [
        (prompt, 0) for prompt in plain
    ]


def digests() -> dict[str, str]:
    """SHA-256 of every file that is read, a folder's over its files in order."""
    found = {}
    for name in [*SOURCES, *(f"prompts/{one}.jsonl" for one in ("pairs", "plain", "tasks"))]:
        path = PROMPTS / name.removeprefix("prompts/") if name.startswith("prompts/") else DATASETS / name
        files = sorted(path.rglob("*.gz")) if path.is_dir() else [path]
        found[name] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return found


def _instructions() -> Iterator[tuple[str, str]]:
    for name in ("user_oriented_instructions", "seed_tasks"):
        for task in _lines(DATASETS / f"self-instruct/{name}.jsonl.gz"):
            output = task["instances"][0]["output"]
            if len(output.split()) > 8:
                yield task["instruction"], output[:1500]


def _medical(rng: random.Random) -> list[tuple[str, str]]:
    rows = [(row["question"], row["answer"]) for row in _lines(DATASETS / "medquad/train.jsonl.gz")]
    return rng.sample(rows, MEDICAL)


def _table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _lines(path: Path) -> list[dict]:  # type: ignore[type-arg]
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]
