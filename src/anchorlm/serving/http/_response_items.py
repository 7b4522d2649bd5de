"""The items of a response in OpenAI's interface of that name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anchorlm.records import ToolCall


def text_part(text: str, scores: Sequence[Any]) -> dict[str, Any]:
    """A piece of a message that is text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(scores)}


def refusal_part(text: str) -> dict[str, Any]:
    """A piece of a message that is a refusal of the guard."""
    return {"type": "refusal", "refusal": text}


def call_item(call: ToolCall) -> dict[str, Any]:
    """A call of a tool."""
    return {"type": "function_call", "id": f"fc_{call.id}", "call_id": call.id, "name": call.name,
            "arguments": call.arguments, "status": "completed"}  # fmt: skip


def call_events(item: Mapping[str, Any], place: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a stream says of a call: kinds of events, and what each holds.

    Args:
        item: The call.
        place: Where it stands among the items.
    """
    where, arguments = {"item_id": item["id"], "output_index": place}, item["arguments"]
    begun = {**item, "arguments": "", "status": "in_progress"}
    yield "response.output_item.added", {"output_index": place, "item": begun}
    yield "response.function_call_arguments.delta", where | {"delta": arguments}
    yield "response.function_call_arguments.done", where | {"arguments": arguments, "name": item["name"]}
    yield "response.output_item.done", {"output_index": place, "item": dict(item)}


def offered(offer: Mapping[str, Any], *, held: bool) -> dict[str, Any]:
    """What a response repeats of the tools that its request has offered.

    Args:
        offer: The tools.
        held: Whether calls are held to the schemas of the tools.
    """
    functions = [tool["function"] for tool in offer.get("tools", ())]
    tools = [
        {"type": "function", "name": one["name"], "description": one.get("description"),
         "parameters": one.get("parameters"), "strict": held}
        for one in functions
    ]  # fmt: skip
    choice = offer.get("tool_choice") or ("auto" if tools else "none")
    if isinstance(choice, Mapping):
        choice = {"type": "function", "name": choice["function"]["name"]}
    several = bool(tools) and bool(offer.get("parallel_tool_calls"))
    return {"parallel_tool_calls": several, "tool_choice": choice, "tools": tools}
