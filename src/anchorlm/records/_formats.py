from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator

_KINDS = ("text", "json_object", "json_schema")
_LONGEST = 64_000
"""Characters of a schema, written as JSON."""

_NAMED = ("properties", "patternProperties")
_FIXED = ("const", "enum", "pattern", "required")

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def checked_format(value: Any) -> dict[str, Any] | None:
    """A response format as OpenAI's clients send it, in one form; None for plain text.

    Args:
        value: Such an object, or a class of pydantic's, whose schema is taken.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, type) and issubclass(value, BaseModel):
        value = {"type": "json_schema", "json_schema": {"name": value.__name__, "schema": value.model_json_schema()}}
    if value is None or value == {}:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in _KINDS:
        raise ValueError("it needs a type, which is text, json_object or json_schema")
    if kind == "text":
        return None
    return {"type": kind} if kind == "json_object" else {"type": kind, "json_schema": _checked_schema(value)}


def _checked_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    told = value.get("json_schema")
    schema = told.get("schema") if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(schema, Mapping):
        raise ValueError('the type json_schema needs json_schema = {"name": ..., "schema": {...}}')
    name = told.get("name", "answer")
    if not isinstance(name, str):
        raise ValueError("the name of a json_schema is a text")
    try:
        written = json.dumps(dict(schema))
    except (TypeError, ValueError, RecursionError):
        raise ValueError("the schema is no JSON") from None
    if len(written) > _LONGEST:
        raise ValueError(f"a schema has at most {_LONGEST:,} characters")
    return {"name": name, "schema": json.loads(written)}


def schema_of(format: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema that an answer in a checked format fits."""
    found: dict[str, Any] = format["json_schema"]["schema"] if format["type"] == "json_schema" else _ANY_OBJECT
    return found


def forced_words(format: Mapping[str, Any] | None) -> str:
    """What a schema may write into an answer in the client's own words: names, fixed values, patterns; on lines.

    Judges read them in the answer. A gate, which reads the request alone, must be shown them.
    """
    if format is None:
        return ""
    schemas = format["schemas"] if format["type"] == "calls" else schema_of(format)
    return "\n".join(dict.fromkeys(filter(None, _words(schemas))))


def is_json(format: Mapping[str, Any] | None) -> bool:
    """Whether the text of an answer is JSON in some format. A format of a guard's own may only hold calls of tools."""
    return format is not None and (format["type"] != "calls" or format["answer"] is not None)


def _words(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for each in schema:
            yield from _words(each)
    for name, value in schema.items() if isinstance(schema, dict) else ():
        if name in _NAMED and isinstance(value, dict):
            yield from map(str, value)
            yield from _words(list(value.values()))
        elif name in _FIXED:
            yield from _texts(value)
        else:
            yield from _words(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else ():
        yield from _texts(each)


Format = Annotated[dict[str, Any] | None, BeforeValidator(checked_format)]
"""A response format in settings."""

FormatSupport = Literal["none", "local", "any"]
"""Where a defense can hold an answer to a response format: `none`: nowhere. `local`: where the target is loaded here.
`any`: on another server, too, because the target writes the whole answer in one go.
"""
