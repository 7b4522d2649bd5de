from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field

from anchorlm.models import CausalModel
from anchorlm.records import Settings, UserError


class GuardFormat(Settings):
    """How a family of guard models is asked, and how its verdict is read. `guards.toml` says what each field is."""

    source: str
    names: tuple[str, ...]
    marks: tuple[str, ...] = ()
    template: str | None = None
    further: dict[str, Any] = Field(default_factory=dict)
    parts: bool = False
    after: str = ""
    system: str = ""
    frame: str = ""
    raw: bool = False
    tags: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    thought: str = ""
    lead: str | None = None
    verdict: str
    harm: dict[str, float]
    category: str = ""
    categories: dict[str, str] = Field(default_factory=dict)
    each: bool = False
    asked: tuple[str, ...] = ()
    policy: Literal["none", "takes", "needs"] = "none"
    with_policy: dict[str, Any] = Field(default_factory=dict)
    max_new_tokens: int

    @property
    def digest(self) -> str:
        """Of all that it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def marked(self, template: str | None) -> bool:
        """Whether a chat template is one of this format."""
        return bool(self.marks) and template is not None and all(mark in template for mark in self.marks)

    def named_in(self, text: str) -> list[str] | None:
        """The categories that a written answer names, as this format calls them. None where it names none."""
        found = re.search(self.category, text) if self.category else None
        if found is None:
            return None
        known = {name.casefold(): name for name in self.categories}
        said = [part.strip() for part in found[1].split(",")]
        return [known.get(part.casefold(), part) for part in said if part and part.casefold() != "none"] or None


@cache
def guard_formats() -> Mapping[str, GuardFormat]:
    """The formats that are known, by name."""
    data = tomllib.loads(files(__package__).joinpath("guards.toml").read_text("utf-8"))
    return {name: GuardFormat.parse(one, where=f"the format {name}") for name, one in data.items()}


def find_format(model: CausalModel, name: str | None) -> tuple[str, GuardFormat]:
    """The format of a guard model: the named one, or the one that its chat template or its name tells.

    Args:
        model: The guard.
        name: Of the format. None to find it.

    Raises:
        UserError: There is no such format, or nothing tells which one it is.
    """
    known = guard_formats()
    if name is not None:
        if name not in known:
            raise UserError(f"format = {name!r} is not known; the formats of guard models are: {', '.join(known)}.")
        return name, known[name]
    template = model.chat_template if isinstance(model.chat_template, str) else None
    by_template = (key for key, one in known.items() if one.marked(template))
    by_name = (key for key, one in known.items() if any(re.search(each, model.name, re.I) for each in one.names))
    found = next(by_template, None) or next(by_name, None)
    if found is None:
        raise UserError(
            f"Neither name nor chat template of {model.name} tells which guard model it is: give format = one of "
            f"{', '.join(known)}."
        )
    return found, known[found]
