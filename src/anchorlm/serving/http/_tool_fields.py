from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from anchorlm.records import MOST_TOOLS, UserError, checked_tools
from anchorlm.serving.http._objects import Flag, RequestObject, is_empty, unsupported

TOOL_FIELDS = frozenset({"tools", "tool_choice"})


class ToolFields(RequestObject):
    """What a request says of tools."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = Field(
        default=None, description="Functions that the model may call: name, description, and parameters as JSON "
        "schema.")  # fmt: skip
    tool_choice: Any = Field(default=None, description="auto, none, required, or the form that names one tool.")
    parallel_tool_calls: Flag | None = Field(default=None, description="Whether one answer may hold several calls.")

    @field_validator("tools", mode="before")
    @classmethod
    def _functions(cls, tools: Any) -> Any:
        return [_function(tool, place) for place, tool in enumerate(tools)] if isinstance(tools, list) else tools

    @field_validator("tools", mode="after")
    @classmethod
    def _fit(cls, tools: Any) -> Any:
        try:
            checked_tools(tools)
        except UserError as error:
            raise unsupported("", str(error).rstrip("."), "invalid_value") from None
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _kept(cls, choice: Any) -> Any:
        if is_empty(choice) or choice in ("auto", "none", "required"):
            return choice or None
        name = choice.get("name") if isinstance(choice, Mapping) else None
        return choice if name is None else {"type": choice.get("type"), "function": {"name": name}}

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        try:
            checked_tools(self.tools, self.tool_choice)
        except UserError as error:
            raise unsupported("tool_choice", str(error).rstrip("."), "invalid_value") from None
        return self

    @property
    def offer(self) -> dict[str, Any]:
        """The tools as a guard takes them. Empty where there are none."""
        if not self.tools:
            return {}
        several = self.parallel_tool_calls is not False
        return {"tools": self.tools, "tool_choice": self.tool_choice, "parallel_tool_calls": several}


def _function(tool: Any, place: int) -> Any:
    """A tool of either interface in the chat's form."""
    if not isinstance(tool, Mapping):
        return tool
    kind = tool.get("type", "function")
    if kind != "function":
        raise unsupported(f"{place}.type", f"tools of type {kind!r:.40} are not called here: offer functions",
                          "unsupported_value")  # fmt: skip
    if "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {name: one for name, one in tool.items() if name != "type"}}
