from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ThoughtKind = Literal["open", "optional", "none"]
"""`open`: every answer begins inside a thought. `optional`: thoughts can be switched, or the model decides. `none`."""


@dataclass(frozen=True)
class Channel:
    """Where a model's thought stands in what it writes, as its chat template has it.

    Attributes:
        begin: What opens a thought, with the white space that the template writes behind it.
        end: All that the template writes between a thought and the answer.
        empty: What stands before an answer without a thought.
        opened: Whether the prompt ends inside a thought, as the template writes it by itself.
        shut: Whether the prompt ends behind a thought without words, as the template writes it by itself.
        on: Variables of the template that switch thoughts on. None where none does.
        off: Variables that switch them off. None where none does.
        effort: Whether the template reads `reasoning_effort`.
    """

    begin: str
    end: str
    empty: str
    opened: bool = False
    shut: bool = False
    on: Mapping[str, Any] | None = None
    off: Mapping[str, Any] | None = None
    effort: bool = False

    @property
    def kind(self) -> ThoughtKind:
        """Whether the model has a choice, or you have."""
        return "open" if self.opened and self.off is None else "optional"

    @property
    def opening(self) -> str:
        """What opens a thought, without white space around it."""
        return self.begin.strip()

    @property
    def closing(self) -> str:
        """What ends a thought, in the same way."""
        return self.end.strip()

    @property
    def boundaries(self) -> tuple[str, ...]:
        """What begins or ends a thought in an answer."""
        return tuple(filter(None, (self.opening, self.closing)))

    def inside(self, prompt: str) -> bool:
        """Whether a prompt ends inside an open thought."""
        return prompt.rstrip().endswith(self.opening)

    def closed(self, prompt: str) -> str:
        """A prompt behind which the answer follows at once: an open thought is ended, a missing one is an empty one."""
        if self.inside(prompt):
            return prompt + self.end
        return prompt if prompt.rstrip().endswith(self.closing) else prompt + self.empty

    def split(self, text: str, *, inside: bool = False) -> tuple[str | None, str | None]:
        """What a model has written, as thought and answer, without the white space between them.

        Args:
            text: All that it wrote.
            inside: Whether its prompt ended inside an open thought.

        Returns:
            The thought, None without one. And the answer, None where the thought has not ended.
        """
        lead = text.lstrip()
        if lead.startswith(self.opening):
            text, inside = lead[len(self.opening) :], True
        if not inside:
            return None, text
        thought, closing, answer = text.partition(self.closing)
        return thought.strip(), answer.lstrip() if closing else None

    @property
    def told(self) -> str:
        """In a few words, for people."""
        if self.kind == "open":
            return f"open (every answer begins inside {self.opening} and its thought ends with {self.closing})"
        begins = "the prompt opens it" if self.opened else "the model opens it"
        begins = "the template leaves it out" if self.shut else begins
        ways = [f"{what} with {_shown(values)}" for what, values in (("off", self.off), ("on", self.on)) if values]
        return f"optional ({self.opening} to {self.closing}; {begins}{'; ' if ways else ''}{', '.join(ways)})"


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()
    )
