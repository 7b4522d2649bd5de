"""How clients say that an answer must be JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from anchorlm.records import checked_format
from anchorlm.serving.http._objects import unsupported


def _read(value: Any) -> dict[str, Any] | None:
    try:
        return checked_format(value)
    except ValueError as error:
        raise unsupported("", f"this is no response format: {error}", "invalid_value") from None


def _unfolded(value: Any) -> dict[str, Any] | None:
    """The same, where a schema stands next to its type."""
    if isinstance(value, Mapping) and value.get("type") == "json_schema" and "json_schema" not in value:
        value = {"type": "json_schema", "json_schema": dict(value)}
    return _read(value)


ResponseFormat = Annotated[dict[str, Any] | None, BeforeValidator(_read)]
"""As in a chat completion."""

TextFormat = Annotated[dict[str, Any] | None, BeforeValidator(_unfolded)]
"""As in a response."""


def as_chosen(asked: BaseModel, name: str, format: dict[str, Any] | None) -> dict[str, Any]:
    """What a request says of its response format: plain text, too, if it says so. Else the recipe's holds."""
    return {"response_format": format} if name in asked.model_fields_set else {}
