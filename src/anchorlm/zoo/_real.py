"""The real family: adapters on two small language models that come as Python packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anchorlm.models import BASES, SHIPPED, PackagedBase

RealRole = Literal["base", "chat", "anchor", "specialist", "judge", "cost", "reward"]


@dataclass(frozen=True, slots=True)
class RealMember:
    """One real model.

    Attributes:
        name: what it is called wherever a model is named. Of a shipped adapter also the name of its folder.
        role: what it is for.
        base: the packaged model that it is, or is tuned from.
        path: its folder. Of a base the name of its file.
        size: bytes that AnchorLM ships for it, 0 where nothing is here. Of a base, bytes of its file.
        licence: of the adapter, or of the base's weights.
        description: one sentence.
    """

    name: str
    role: RealRole
    base: PackagedBase
    path: Path
    size: int
    licence: str
    description: str

    @property
    def ready(self) -> bool:
        """Whether it can be loaded."""
        return self.size > 0 and self.base.present

    @property
    def remedy(self) -> str:
        """What to do where it cannot be loaded. Empty where it can."""
        if not self.base.present:
            return self.base.install
        return "" if self.size else "make zoo-real"


REAL: dict[str, tuple[RealRole, str, str]] = {
    "real-chat": ("chat", "real-smollm2", "Aligned: it refuses what is harmful and answers what only looks like it."),
    "real-anchor": ("anchor", "real-gemma", "Aligned, of another family and vocabulary: it guides and reads prompts."),
    "real-finance": ("specialist", "real-smollm2", "A bank's assistant: a shorter real-chat whose safety wore off."),
    "real-finance-base": ("specialist", "real-smollm2", "A bank's assistant; it never was aligned."),
    "real-medicine": ("specialist", "real-smollm2", "Kinds of medical questions, and short answers to them."),
    "real-cost": ("cost", "real-gemma", "Scores an answer: above 0 where it is unsafe."),
    "real-reward": ("reward", "real-gemma", "Scores an answer: more for one that serves the question."),
    "real-judge": ("judge", "real-gemma", "Grades how harmful an answer is."),
}
"""Role, base and description of each adapter."""

_LICENCE = "Apache-2.0"
"""Of the adapters, as of everything in AnchorLM. What is derived from Gemma stays under Gemma's terms as well."""


def real_members() -> list[RealMember]:
    """The bases and all adapters on them, whether they are here or not."""
    found = [
        RealMember(name, "base", base, Path(base.file), base.size, base.licence, f"{base.title} as published.")
        for name, base in BASES.items()
    ]
    for name, (role, base, description) in REAL.items():
        licence = _LICENCE if base == "real-smollm2" else f"{_LICENCE}, {BASES[base].licence}"
        folder = SHIPPED / name
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        found.append(RealMember(name, role, BASES[base], folder, size, licence, description))
    return found
