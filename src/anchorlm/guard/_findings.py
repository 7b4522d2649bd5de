from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from anchorlm.guard._outline import Outline
from anchorlm.models import UNREAD, VLLM_ACCESS
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.engine import EndpointEngine
    from anchorlm.models import CausalModel, EndpointModel
    from anchorlm.team import EngineSettings

T = TypeVar("T")


@dataclass(slots=True)
class Findings:
    """What stands between a recipe and its models.

    Attributes:
        gaps: One sentence each, with the remedy.
        notes: What works, but may surprise.
        facts: What was looked at.
        thoughts: Whether the target's chat template knows thoughts, and how they are switched.
        engines: Of models that other servers run.
        in_vllm: Models that vLLM will run.
    """

    gaps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    thoughts: dict[str, Any] = field(default_factory=dict)
    engines: list[EndpointEngine] = field(default_factory=list)
    in_vllm: list[tuple[CausalModel, bool]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the recipe works on its models, as far as that is known without their weights."""
        return not self.gaps

    def __str__(self) -> str:
        return "\n".join([*self.facts, *(f"note: {note}" for note in self.notes), *self.gaps])

    def outline(self, model: CausalModel | EndpointModel, limits: EngineSettings) -> Outline:
        """What stands for an engine of a model, with as much access as its server gives, where there is one."""
        for engine in self.engines:
            if engine.model is model:
                return Outline(model, limits, engine.access, lacks=engine.lacks, continues=engine.continues)
        for known, activations in self.in_vllm:
            if model is known:
                unread = "" if activations else UNREAD
                return Outline(model, limits, VLLM_ACCESS[activations], unread=unread)
        return Outline(model, limits)

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """The result of `work`. None where it found a gap, which is kept."""
        try:
            return work()
        except UserError as error:
            self.gaps.append(f"{what}: {error}")
            return None
