from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anchorlm.models import CausalModel
from anchorlm.records import ThoughtSettings
from anchorlm.serving._errors import ApiError

_EFFORT = "reasoning_effort"
"""Clients send it to all models, whether these know it or not."""


def allowed_options(
    id: str, model: CausalModel, limits: Mapping[str, Sequence[Any]], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables of a chat template that a client may set. What the recipe says by itself may be said again.

    Args:
        id: The served model's name.
        model: Whose template it is.
        limits: The values that clients may choose from, by name.
        asked: What a request says.

    Raises:
        ApiError: 400, a variable that is not the client's to set, or a value that it may not choose.
    """
    found: dict[str, Any] = {}
    for name, value in asked.items():
        if _among(value, [model.options[name]] if name in model.options else []):
            continue
        if name not in limits:
            if name == _EFFORT:
                continue
            allowed = ", ".join(sorted(limits)) or "none"
            raise ApiError(
                400, f"{name!r} cannot be set by requests to {id}; variables of its template that can: {allowed}.",
                param=f"chat_template_kwargs.{name}", code="variable_not_allowed",
            )  # fmt: skip
        if not _among(value, limits[name]):
            shown = f"{value!r:.80}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
            raise ApiError(
                400, f"{name} = {shown} is beyond what this server allows: choose one of "
                f"{', '.join(map(_shown, limits[name]))}.",
                param=f"chat_template_kwargs.{name}", code="variable_out_of_bounds",
            )  # fmt: skip
        found[name] = value
    return found


def unshown(settings: ThoughtSettings | None) -> ThoughtSettings | None:
    """The same for a client that wants no thoughts: shown ones are hidden."""
    if settings is None or settings.policy != "show":
        return settings
    return settings.model_copy(update={"policy": "hide"})


def _among(value: Any, known: Sequence[Any]) -> bool:
    return any(type(value) is type(one) and value == one for one in known)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
