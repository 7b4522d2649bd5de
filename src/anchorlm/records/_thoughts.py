from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from anchorlm.records._settings import Settings

Policy = Literal["off", "hide", "show"]

_OURS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize")


class ThoughtSettings(Settings):
    """What becomes of the thoughts of a model that thinks before it answers."""

    policy: Policy = Field(
        default="hide",
        description="`off`: the model does not think. `hide`: its thoughts never leave the guard. `show`: they come "
        "next to the answer, as reasoning_content.",
    )
    budget: int = Field(
        default=1024,
        ge=1,
        description="Longest thought, in tokens of the target. A thought that does not end by then is a refusal.",
    )
    judged: bool = Field(default=True, description="Judges read the thought too, marked as one.")
    costed: bool = Field(
        default=False, description="Cost models rate the thought too. InferenceGuard's final check always does."
    )


Thoughts = Annotated[
    ThoughtSettings, BeforeValidator(lambda value: {"policy": value} if isinstance(value, str) else value)
]
"""Settings of thoughts, for which the policy alone will do."""


def checked_thoughts(given: ThoughtSettings | Mapping[str, Any] | str) -> ThoughtSettings:
    """What was said of thoughts: the policy alone, or all of its settings.

    Raises:
        UserError: An unknown policy or setting.
    """
    if isinstance(given, ThoughtSettings):
        return given
    values = {"policy": given} if isinstance(given, str) else given
    return ThoughtSettings.parse(values, where="the thoughts")


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """A piece of the thought before a response. The pieces in order are the whole thought.

    Attributes:
        text: Its text. Empty where a token only opens or ends the thought.
        tokens: How many tokens of the target it took.
    """

    text: str
    tokens: int = 0


def checked_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for a chat template, none of which takes the place of what AnchorLM gives it.

    Raises:
        ValueError: A name is no variable's, or one of AnchorLM's own.
    """
    for name in values:
        if not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"{name!r} is not the name of a template's variable")
        if name in _OURS:
            raise ValueError(f"{name} is given to the template by AnchorLM: leave it out")
    return dict(values)
