from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anchorlm.records import UserError

T = TypeVar("T")


@dataclass(slots=True)
class Findings:
    """What stands between a recipe and its models.

    Attributes:
        gaps: One sentence each, with the remedy.
        notes: What works, but may surprise.
        facts: What was looked at.
        thoughts: Whether the target's chat template knows thoughts, and how they are switched.
    """

    gaps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    thoughts: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the recipe works on its models, as far as that is known without their weights."""
        return not self.gaps

    def __str__(self) -> str:
        return "\n".join([*self.facts, *(f"note: {note}" for note in self.notes), *self.gaps])

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """The result of `work`; None where it found a gap, which is kept."""
        try:
            return work()
        except UserError as error:
            self.gaps.append(f"{what}: {error}")
            return None
