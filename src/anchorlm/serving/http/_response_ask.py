from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from anchorlm.serving.http._formats import TextFormat, as_chosen
from anchorlm.serving.http._objects import Count, RequestObject, few_names, unsupported
from anchorlm.serving.http._schema import Ask, Name, refuse_unserved
from anchorlm.serving.http._tool_fields import ToolFields
from anchorlm.serving.http._turns import ChatMessage, few_turns

_STATELESS = "this server keeps no responses; send the whole conversation as input"
_UNSERVED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "previous_response_id": (_STATELESS, ("",)),
    "conversation": (_STATELESS, ("", {})),
    "prompt": ("this server keeps no prompts; send the text as instructions", ({},)),
    "background": ("an answer is given at once; leave it out", (False,)),
    "truncation": ("a conversation is never shortened; leave it out", ("disabled",)),
    "n": ("one response has one answer; leave it out", (1,)),
}
"""Why a setting is not served, and which of its values ask for nothing."""

_LOGPROBS = "message.output_text.logprobs"
_THOUGHT = "reasoning"
_TOOLS = ("call", "call_output", "tool")
"""How the kinds of items end that belong to tools."""


class Reasoning(RequestObject):
    """How a model is to think."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    effort: str | None = Field(default=None, max_length=100, description="A variable of the chat template, within the "
                               "limits that /v1/models shows.")  # fmt: skip


class TextOptions(RequestObject):
    """How a text is to be."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    format: TextFormat = Field(default=None, description="Hold the answer to JSON: of type json_object, or json_schema "
                               "with a schema.")  # fmt: skip


class ResponseAsk(ToolFields, Ask):
    """The body of /v1/responses."""

    input: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(
        min_length=1, description="A text, or the conversation, oldest first."
    )
    instructions: str | None = Field(default=None, description="A system turn before the conversation.")
    max_output_tokens: Count | None = Field(default=None, ge=1, le=2**31, description="Longest answer, in tokens.")
    top_logprobs: Count | None = Field(default=None, ge=0, le=20, description="Likeliest tokens named with each one, "
                                       f"if include has {_LOGPROBS}.")  # fmt: skip
    include: list[Name] | None = Field(default=None, max_length=20, description=f"{_LOGPROBS}; others are ignored.")
    reasoning: Reasoning | None = Field(default=None, description="How the model is to think.")
    text: TextOptions | None = Field(default=None, description="How the text is to be.")
    chat_template_kwargs: dict[Name, Any] | None = Field(default=None, description="Variables of the chat template, "
        "such as enable_thinking, within the limits that /v1/models shows.")  # fmt: skip
    previous_response_id: Any = Field(default=None, description="Not supported.")
    conversation: Any = Field(default=None, description="Not supported.")
    prompt: Any = Field(default=None, description="Not supported.")
    background: Any = Field(default=None, description="Not supported: must be false.")
    truncation: Any = Field(default=None, description="Not supported: must be disabled.")
    max_tool_calls: Any = Field(default=None, description="Ignored.")
    safety_identifier: Any = Field(default=None, description="Ignored.")
    prompt_cache_key: Any = Field(default=None, description="Ignored.")
    prompt_cache_retention: Any = Field(default=None, description="Ignored.")

    _few_variables = field_validator("chat_template_kwargs", mode="before")(few_names)

    @model_validator(mode="before")
    @classmethod
    def _stateless(cls, data: Any) -> Any:
        refuse_unserved(data, _UNSERVED)
        return data

    @field_validator("input", mode="before")
    @classmethod
    def _turns(cls, items: Any) -> Any:
        if isinstance(items, str):
            return [{"role": "user", "content": items}]
        if not isinstance(items, list):
            raise unsupported("", "should be a text or a list of messages", "invalid_value")
        few_turns(items)
        return _joined([_turn(item, place) for place, item in enumerate(items) if not _is_thought(item)])

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation, with its instructions."""
        if not self.instructions:
            return self.input
        return [ChatMessage(role="system", content=self.instructions), *self.input]

    @property
    def template(self) -> dict[str, Any]:
        """See `Ask`."""
        effort = None if self.reasoning is None else self.reasoning.effort
        return {**({} if effort is None else {"reasoning_effort": effort}), **(self.chat_template_kwargs or {})}

    def generation(self) -> dict[str, Any]:
        """See `Ask`."""
        chosen = super().generation()
        if self.max_output_tokens is not None:
            chosen["max_new_tokens"] = self.max_output_tokens
        if _LOGPROBS in (self.include or ()):
            chosen["logprobs"] = self.top_logprobs or 0
        return chosen if self.text is None else chosen | as_chosen(self.text, "format", self.text.format)


def _joined(turns: list[Any]) -> list[Any]:
    """The turns, calls that follow each other in one of them, with the text before them."""
    found: list[Any] = []
    for turn in turns:
        last = found[-1] if found else None
        calls = turn.get("tool_calls") if isinstance(turn, dict) else None
        if calls and isinstance(last, dict) and last.get("role") == "assistant":
            found[-1] = {**last, "tool_calls": [*(last.get("tool_calls") or []), *calls]}
        else:
            found.append(turn)
    return found


def _is_thought(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("type") == _THOUGHT


def _turn(item: Any, place: int) -> Any:
    """An item as a turn of a chat.

    Raises:
        PydanticCustomError: It is of a kind that is not served.
    """
    if not isinstance(item, dict):
        return item
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind != "message":
        what = (
            "calls of other tools than functions"
            if isinstance(kind, str) and kind.endswith(_TOOLS)
            else f"items of type {kind!r:.40}"
        )
        why = _STATELESS if kind == "item_reference" else "send messages"
        raise unsupported(f"{place}.type", f"{what} are not supported here: {why}", "unsupported_value")
    return {name: value for name, value in item.items() if name != "type"}
