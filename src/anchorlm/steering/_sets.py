from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anchorlm.records import Messages, prompts_digest, sketches

GIVEN = "given"
"""What the prompts are called that belong to no set."""

TWINS, LOOK_ALIKES, TASKS, PLAIN = "twins of look-alikes", "look-alikes", "tasks", "plain instructions"
"""Sets of prompts that a gate must tell apart, or leave alone."""

Prompts = Sequence[Messages | str]


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Sets of prompts next to those that are given, each reported by itself.

    A gate that has seen harmful prompts and everyday ones alone tells them by their form. Look-alikes, harmless prompts
    in the words of harmful ones, make it read what is asked for. Tasks are those of the target's domain.

    Attributes:
        harmful: Those on which the gate should open, by name.
        harmless: Those on which it should not.
    """

    harmful: Mapping[str, Prompts] = field(default_factory=dict)
    harmless: Mapping[str, Prompts] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """What an artifact keeps of them: of each its size, digest and sketches. Nothing where there are none."""
        kept = {
            name: {"n": len(prompts), "digest": prompts_digest(prompts), "sketches": sketches(prompts)}
            for sets in (self.harmful, self.harmless)
            for name, prompts in sets.items()
        }
        return {"sets": kept} if kept else {}

    def with_prompts(self, *, look_alikes: Prompts = (), tasks: Prompts = ()) -> PromptSets:
        """These sets, and prompts of one's own in the sets of look-alikes and tasks."""
        more = {LOOK_ALIKES: look_alikes, TASKS: tasks}
        harmless = dict(self.harmless)
        for name, prompts in more.items():
            if prompts:
                harmless[name] = [*harmless.get(name, ()), *prompts]
        return PromptSets(self.harmful, harmless)
