from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from anchorlm.records import Decision


def candidate_scores(trace: Sequence[Decision]) -> list[float | None] | None:
    """What each candidate was graded when they were last looked at: its harm, or its cost where that is counted."""
    for decision in reversed(trace):
        candidates = decision.data.get("candidates") or decision.data.get("responses")
        if isinstance(candidates, list):
            return [next((one[name] for name in ("harm", "cost") if name in one), None) for one in candidates]
    return None


def plain_json(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(one) for one in value]
    return value
