from __future__ import annotations

import hashlib
import json
from typing import Any

from anchorlm.files import PromptRow

_TOOLS = ("tools", "tool_choice")
"""What a row may say of tools, next to its messages."""

_SEVERAL = "parallel_tool_calls"
"""The same, where `false` says something, too."""


def offer(row: PromptRow) -> dict[str, Any]:
    """What a row says of tools."""
    found = {name: row.fields[name] for name in _TOOLS if row.fields.get(name)}
    if row.fields.get(_SEVERAL) is not None:
        found[_SEVERAL] = row.fields[_SEVERAL]
    return found


def offer_digest(row: PromptRow) -> str | None:
    """A short digest of what a row says of tools. None where it says nothing."""
    said = offer(row)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12] if said else None
