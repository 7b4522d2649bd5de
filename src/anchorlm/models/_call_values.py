"""The values of arguments where they are no plain JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_WORDS = {"true": True, "false": False, "null": None, "none": None}
_BARE = re.compile(r"[^,{}\[\]]+")
_KEY = re.compile(r"\s*([^:,{}\[\]]{1,200}?)\s*:")
_DEEPEST = 50


def typed(text: str, schema: Any, told: bool | None) -> Any:
    """What a text between marks stands for.

    Args:
        text: The text.
        schema: Of the argument: it tells a text from a number that looks like one.
        told: Whether the marks say that it is a text. None where they do not say.
    """
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if told or (told is None and kinds == ["string"]):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        word = text.strip().lower()
        return _WORDS[word] if word in _WORDS and "string" not in kinds else text
    return text if isinstance(value, str) and told is None else value


def quoted_object(text: str, at: int, mark: str) -> tuple[dict[str, Any], int] | None:
    """An object with bare keys, whose texts stand between marks.

    Args:
        text: All of the answer.
        at: Where it opens.
        mark: Stands for a quotation mark.

    Returns:
        It, and where it ends. None where there is none.
    """
    try:
        value, after = _value(text, at, mark, 0)
    except ValueError:
        return None
    return (value, after) if isinstance(value, dict) else None


def _value(text: str, at: int, mark: str, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if text.startswith(mark, at):
        end = text.index(mark, at + len(mark))
        return text[at + len(mark) : end], end + len(mark)
    if text.startswith("{", at):
        return _object(text, at + 1, mark, depth)
    if text.startswith("[", at):
        return _list(text, at + 1, mark, depth)
    found = _BARE.match(text, at)
    if found is None:
        raise ValueError("nothing there")
    word = found[0].strip()
    return (_WORDS[word] if word in _WORDS else json.loads(word)), found.end()


def _object(text: str, at: int, mark: str, depth: int) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    while not text.startswith("}", at):
        key = _KEY.match(text, at)
        if key is None:
            raise ValueError("no key")
        made[key[1].removeprefix(mark).removesuffix(mark)], at = _value(text, key.end(), mark, depth + 1)
        at = _past_comma(text, at, "}")
    return made, at + 1


def _list(text: str, at: int, mark: str, depth: int) -> tuple[list[Any], int]:
    made: list[Any] = []
    while not text.startswith("]", at):
        value, at = _value(text, at, mark, depth + 1)
        made.append(value)
        at = _past_comma(text, at, "]")
    return made, at + 1


def _past_comma(text: str, at: int, closing: str) -> int:
    if text.startswith(",", at):
        return at + 1
    if not text.startswith(closing, at):
        raise ValueError("not closed")
    return at
