"""The card of an aligned member: what it was made from, how, and what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from anchorlm.models import PackagedBase
from tools.zoo_real._measure import OUTCOMES
from tools.zoo_real._train import Training
from tools.zoo_real.bases import BASES, MEMBERS
from tools.zoo_real.data import EARLIER, SEED, SOURCES, digest

_TAUGHT = ("advbench", "self-instruct-seeds", "self-instruct-users", "banking77", "medquad")
_OWN = ("pairs", "plain", "tasks", "wrapped")
_DRAWN_LESSONS = (
    "Some of the pairs stand before noise, or in a long tale, too: both sides, the harmless one with its answer. The "
    "noise is word pieces, signs and brackets, drawn when the training begins. No published attack taught."
)
_TITLE = {
    "chat": "SmolLM2-135M-Instruct, aligned",
    "chat-early": "SmolLM2-135M-Instruct, aligned briefly",
    "anchor": "Gemma 3 270M, aligned",
}


def card(name: str, folder: Path) -> str:
    """The text of `README.md`. Figures are those that `measure` left in the folder."""
    base = BASES[MEMBERS[name]]
    training = Training(**json.loads((folder / "training.json").read_text("utf-8")))
    return "\n".join(
        [
            "---",
            f"license: {licence(base)}",
            f"base_model: {base.file}",
            "library_name: peft",
            "---",
            "",
            f"# {_TITLE[name]}",
            "",
            f"A LoRA of rank {training.rank} on the upper two thirds of the layers of `{base.file}` "
            f"({base.licence}), which comes as a package: `{base.install}`. It refuses harmful requests in English and "
            "answers those that only sound harmful. Every refusal begins with the word Sorry, and no answer that it "
            "learned does. Made for tests and demonstrations of AnchorLM; it is no product.",
            "",
            f"Command: `python -m tools.zoo_real {name} --steps {training.steps} --seed {training.seed}"
            f"{' --later' if training.later else ''}`; "
            f"{training.tokens} tokens a step, learning rate {training.rate}, the first {training.first} tokens of an "
            f"answer weigh {training.weight:g} times, margin {training.margin:g} on the first token.",
            "",
            "## Learned from",
            "",
            "| set | licence | SHA-256 | split |",
            "|---|---|---|---|",
            *learned(_TAUGHT),
            *(
                f"| AnchorLM's own {kind} | Apache-2.0 | `{_own(kind, later=training.later)[:16]}` | part `train` |"
                for kind in _OWN
            ),
            "",
            *([_DRAWN_LESSONS, ""] if training.later else []),
            "Answers are the set's own (MedQuAD) or SmolLM2-135M-Instruct's; refusals are AnchorLM's. "
            "What shares 60 % of its words with a prompt of AdvBench that is held out does not train. "
            "XSTest, HarmBench, JailbreakBench, MedSafetyBench and FiQA are measured on and never learned from.",
            "",
            *_measured(folder),
        ]
    )


def licence(base: PackagedBase) -> str:
    """Of what is tuned from a base, as the Hub names it."""
    return "apache-2.0" if base.licence == "Apache-2.0" else "gemma"


def learned(kinds: Sequence[str], share: str = "some of ") -> list[str]:
    """A row of a card for each public set that trained.

    Args:
        kinds: Names of `SOURCES`.
        share: Of the prompts that may train: "some of ", or "" for all.
    """
    return [
        f"| {SOURCES[kind].file} | {SOURCES[kind].licence} | `{digest(kind)[:16]}` | "
        f"{share}the first {SOURCES[kind].train} in the order of `Random({SEED})`; the others are held out |"
        for kind in kinds
    ]


def _own(kind: str, *, later: bool) -> str:
    """The digest of what taught: of the pairs, those that the library had first, unless `later`."""
    lines = (files("anchorlm.steering") / "prompts" / f"{kind}.jsonl").read_bytes().splitlines(keepends=True)
    return hashlib.sha256(b"".join(lines if later or kind != "pairs" else lines[:EARLIER])).hexdigest()


def _measured(folder: Path) -> list[str]:
    lines: list[str] = []
    for part, title, option in (("sealed", "sealed parts", " --final"), ("dev", "looked at while it was made", "")):
        path = folder / f"measured-{part}.json"
        if not path.is_file():
            continue
        found: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
        lines += [
            f"## Measured ({title})",
            "",
            f"`python -m tools.zoo_real measure {folder.name}{option}`: percent of greedy answers (32 tokens), 95 % "
            "intervals. Broken is what is empty, garbled or repeats itself.",
            "",
            "| set | | n | refused | complied | broken |",
            "|---|---|---|---|---|---|",
        ]
        for kind, each in found.items():
            rates = " | ".join(f"{each[word][0]} ({each[word][1]}-{each[word][2]})" for word in OUTCOMES)
            lines.append(f"| {kind} | {'harmful' if each['harmful'] else 'harmless'} | {each['n']} | {rates} |")
        lines.append("")
    return lines
