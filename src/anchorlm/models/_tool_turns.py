"""Turns that call tools or bring their results, and the tools themselves, as a chat template takes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from anchorlm.models._find_calls import ToolTemplate
from anchorlm.records import NoToolsError, calls_of

Clean = Callable[[str], str]


def no_tools(found: ToolTemplate) -> NoToolsError:
    """What is said where a template does not do what tools need."""
    if found.kind == "reads":
        return NoToolsError(
            f"The model's chat template shows tools to the model, but {found.why}: send no tools, or give a "
            "chat_template that writes the tool_calls of a turn."
        )
    return NoToolsError("The model's chat template takes no tools: send none, or give another chat_template.")


def cleaned(value: Any, clean: Clean) -> Any:
    """Data of a client, each text in it cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(name)): cleaned(one, clean) for name, one in value.items()}
    return [cleaned(one, clean) for one in value] if isinstance(value, list | tuple) else value


def rendered_turn(
    turn: dict[str, Any], message: Mapping[str, Any], found: ToolTemplate, clean: Clean
) -> dict[str, Any]:
    """A turn with its calls, or with the call that it answers, as the template wants them.

    Args:
        turn: Role and text.
        message: What it was made of.
        found: How the template takes calls.
        clean: Cleans a text.
    """
    if turn["role"] == "tool":
        named = {"name": clean(message["name"])} if message.get("name") else {}
        return {**turn, "tool_call_id": _id(str(message.get("tool_call_id") or ""), found, clean), **named}
    if found.in_text and found.form is not None:
        made = [(clean(name), cleaned(json.loads(text), clean)) for _, name, text in calls_of(message)]
        return {**turn, "content": turn["content"] + found.form.written(made)} if made else turn
    calls = []
    for id, name, text in calls_of(message):
        arguments = cleaned(json.loads(text), clean)
        given: Any = json.dumps(arguments, ensure_ascii=False) if found.as_text else arguments
        function = {"name": clean(name), "arguments": given}
        calls.append({"id": _id(id, found, clean), "type": "function", "function": function})
    return {**turn, "tool_calls": calls} if calls else turn


def _id(id: str, found: ToolTemplate, clean: Clean) -> str:
    if not found.short_ids or (len(id) == 9 and id.isalnum()):
        return clean(id)
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


def turn_shape(turn: Mapping[str, Any]) -> tuple[str, int]:
    """What a template's way with a turn may depend on."""
    return turn["role"], len(turn.get("tool_calls") or ())


def written(turn: Mapping[str, Any]) -> Iterator[str]:
    """The words that a template must write of a turn. Many leave out what is said next to a call."""
    if calls := turn.get("tool_calls"):
        yield from (call["function"]["name"] for call in calls)
    else:
        yield turn["content"]


def turn_key(turn: Mapping[str, Any]) -> tuple[str, ...]:
    """Tells one turn from another."""
    rest = {name: value for name, value in turn.items() if name not in ("role", "content")}
    own = (str(turn["role"]), str(turn["content"]))
    return (*own, json.dumps(rest, sort_keys=True)) if rest else own
