"""Tools of Inspect's tasks in OpenAI's form, in which guards take them, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageTool
from inspect_ai.tool import ToolCall, ToolChoice, ToolFunction, ToolInfo

from anchorlm.records import Response, UserError


def offered(tools: Sequence[ToolInfo], choice: ToolChoice, several: bool | None) -> dict[str, Any]:
    """What a request says of tools: nothing where there are none.

    Args:
        tools: Of the task.
        choice: Which of them is to be called.
        several: Whether one answer may hold several calls. None: the guard's default.
    """
    if not tools:
        return {}
    functions = [
        {"name": one.name, "description": one.description, "parameters": one.parameters.model_dump(exclude_none=True)}
        for one in tools
    ]
    named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, ToolFunction) else None
    return {
        "tools": [{"type": "function", "function": one} for one in functions],
        "tool_choice": named or ("required" if choice == "any" else choice),
        "parallel_tool_calls": several is not False,
    }


def calls_of(response: Response) -> list[ToolCall] | None:
    """The calls of a response. None where there are none."""
    made = [ToolCall(id=one.id, function=one.name, arguments=json.loads(one.arguments)) for one in response.calls]
    return made or None


def turn_of(one: ChatMessage) -> dict[str, Any]:
    """A message as a guard takes it.

    Raises:
        UserError: It holds more than text.
    """
    if not isinstance(one.content, str) and any(part.type not in ("text", "reasoning") for part in one.content):
        raise UserError("Inspect's images, sounds and files are not read: give a task of text, or use Guard.chat.")
    turn: dict[str, Any] = {"role": one.role, "content": one.text}
    if isinstance(one, ChatMessageTool):
        failed = f"Error: {one.error.message}" if one.error is not None and not one.text else one.text
        return turn | {"content": failed, "tool_call_id": one.tool_call_id or ""}
    if isinstance(one, ChatMessageAssistant) and one.tool_calls:
        made = [(call.id, {"name": call.function, "arguments": json.dumps(call.arguments)}) for call in one.tool_calls]
        return turn | {"tool_calls": [{"id": id, "type": "function", "function": call} for id, call in made]}
    return turn
