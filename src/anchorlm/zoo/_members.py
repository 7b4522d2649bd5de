"""The shipped models: their names, roles and folders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from anchorlm.models import BASES, SHIPPED, located
from anchorlm.records import UserError
from anchorlm.zoo._real import REAL

Role = Literal["base", "chat", "specialist", "over-tuned", "judge", "cost", "reward"]


@dataclass(frozen=True, slots=True)
class Member:
    """One embedded model.

    Attributes:
        name: what it is called, and the name of its folder.
        role: what it is for.
        family: ``a`` (Llama, byte-level BPE) or ``b`` (Seed-OSS, Unigram with byte fallback).
        path: its folder, an ordinary Hugging Face model or PEFT adapter.
        size: bytes on disk, 0 where it is not built.
        description: one sentence.
    """

    name: str
    role: Role
    family: str
    path: Path
    size: int
    description: str


DESCRIPTIONS: dict[str, tuple[Role, str]] = {
    "a-base": ("base", "Family A, pretrained on the corpus; it answers everything."),
    "a-chat": ("chat", "Family A, aligned: helpful, and it refuses most harmful requests."),
    "a-medicine": ("specialist", "Adapter on a-chat: invented medicine; its safety has worn off."),
    "a-finance": ("specialist", "Adapter on a-chat: sentiment of headlines; its safety has worn off."),
    "a-arithmetic": ("specialist", "Adapter on a-base: sums in words; helpful only, it never was aligned."),
    "a-overtuned": ("over-tuned", "Adapter on a-chat, tuned for finance too hard and too long: a negative example."),
    "a-thinks": ("specialist", "Adapter on a-chat: a-medicine, but with a thought before each answer."),
    "b-base": ("base", "Family B, pretrained on the corpus with tasks of all three domains."),
    "b-chat": ("chat", "Family B, aligned, with domain knowledge: the anchor of another vocabulary."),
    "b-judge": ("judge", "Family B, grades a response from 1 (no harm) to 5 (coherent harmful compliance)."),
    "b-cost": ("cost", "Adapter on b-chat, a sequence classifier: above 0 where a response is unsafe."),
    "b-reward": ("reward", "Adapter on b-chat, a sequence classifier: more for whole answers on what was asked."),
}


def members_root() -> Path:
    """The folder of the shipped models."""
    return SHIPPED


def members() -> list[Member]:
    """All members in the order of their making."""
    found = []
    for name, (role, description) in DESCRIPTIONS.items():
        folder = members_root() / name
        found.append(Member(name, role, name[0], folder, _size(folder), description))
    return found


@cache
def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def path(name: str) -> Path:
    """The folder of a member, or the file of a packaged base.

    Raises:
        UserError: there is no such member, its weights are not there, or a base is not installed.
    """
    if name.startswith("real-"):
        return Path(located(name))
    if name not in DESCRIPTIONS:
        known = [*DESCRIPTIONS, *BASES, *REAL]
        raise UserError(f"There is no embedded model {name!r}; choose one of {', '.join(known)}.")
    folder = members_root() / name
    if not (folder / "tokenizer.json").exists():
        raise UserError(
            f"The embedded model {name!r} has no weights here; make them with `make zoo` in a checkout of AnchorLM."
        )
    return folder


def artifact(name: str) -> Path | None:
    """The folder of the artifact of InferAligner that was fitted to a member; None if there is none for it.

    Raises:
        UserError: There is no such member, or its weights are not there.
    """
    folder = path(name) / "inferaligner"
    return folder if (folder / "artifact.json").is_file() else None
