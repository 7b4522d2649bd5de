"""Answers in a response format from another server: it has to hold to the format itself."""

from __future__ import annotations

import json
from typing import Any

from anchorlm.engine._endpoint_bodies import Abilities, sampling
from anchorlm.engine._endpoint_faults import RejectedError
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_replies import UnusableError, read_reply
from anchorlm.records import GenerationSettings, schema_of

_TRIED: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "tried",
        "schema": {
            "type": "object",
            "properties": {"fine": {"type": "boolean"}},
            "required": ["fine"],
            "additionalProperties": False,
        },
    },
}
"""Nobody answers a question so by chance."""
_ROOM = 64

_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""For servers that are built with llguidance: it allows white space without end. Others pass over it."""


def as_asked(found: Abilities, generation: GenerationSettings) -> dict[str, Any]:
    """A response format as a server takes it; nothing where none is asked for."""
    format = generation.response_format
    if format is None:
        return {}
    if found.kind == "llama-server":
        tight = {**schema_of(format), "x-guidance": _TIGHT}
        named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": tight, "strict": True}}
        return {"response_format": named} if found.mode == "chat" else {"json_schema": tight}
    if found.mode != "chat" and found.kind == "sglang":
        return {"json_schema": json.dumps(schema_of(format))}
    if format["type"] == "json_schema":
        format = {**format, "json_schema": {**format["json_schema"], "strict": True}}
    return {"response_format": format}


async def holds_formats(caller: Caller, found: Abilities, prompt: dict[str, Any]) -> bool:
    """Whether a server holds to a response format: some ignore what they do not know.

    Args:
        caller: Calls it.
        found: What it can do.
        prompt: A request's prompt as the server takes it.
    """
    asked = GenerationSettings(response_format=_TRIED)
    body = prompt | sampling(found, asked, _ROOM) | as_asked(found, asked)
    try:
        written = json.loads(read_reply(await caller.post(found.path, body)).text)
    except (RejectedError, UnusableError, ValueError, RecursionError):
        return False
    return isinstance(written, dict) and list(written) == ["fine"] and isinstance(written["fine"], bool)
