"""Calls as a list of Python's, `[weather(city="Oslo", days=3)]`, in which some models write them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_NAME = re.compile(r"\s*(?P<name>[\w.\-]{1,64})\s*\(")
_KEY = re.compile(r"\s*(\w{1,200})\s*=")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", **{sign: sign for sign in "\"'\\/"}}
_BARE = re.compile(r"[^,\[\](){}\s:=]+")
_SPACE = re.compile(r"\s*")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_DEEPEST = 50


def python_calls(text: str, at: int) -> tuple[list[tuple[str, dict[str, Any]]], int] | None:
    """The calls that stand at a place.

    Args:
        text: All of the answer.
        at: Where their list opens.

    Returns:
        Name and arguments of each, and where the list ends. None where there is none.
    """
    try:
        at = _past(text, at, "[")
        found: list[tuple[str, dict[str, Any]]] = []
        while not found or not _is_at(text, at, "]"):
            if found:
                at = _past(text, at, ",")
            name = _matched(_NAME, text, at)
            arguments, at = _arguments(text, name.end())
            found.append((name["name"], arguments))
        return found, _past(text, at, "]")
    except ValueError:
        return None


def python_text(calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Calls as such a list."""
    return f"[{', '.join(f'{name}({_keyed(given)})' for name, given in calls)}]"


def _keyed(given: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_written(value)}" for key, value in given.items())


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_written(str(key))}: {_written(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return repr(value) if isinstance(value, bool | None) else json.dumps(value, ensure_ascii=False)


def _arguments(text: str, at: int) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    while not _is_at(text, at, ")"):
        if made:
            at = _past(text, at, ",")
        key = _matched(_KEY, text, at)
        made[key[1]], at = _value(text, key.end(), 0)
    return made, _past(text, at, ")")


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    at = _matched(_SPACE, text, at).end()
    opening = text[at : at + 1]
    if opening in ("[", "("):
        return _list(text, at + 1, "]" if opening == "[" else ")", depth)
    if opening == "{":
        return _object(text, at + 1, depth)
    if opening in ('"', "'"):
        found = _matched(_TEXT, text, at)
        return _ESCAPE.sub(_sign, found[0][1:-1]), found.end()
    found = _matched(_BARE, text, at)
    word = found[0].lower()
    return (_WORDS[word] if word in _WORDS else json.loads(found[0])), found.end()


def _list(text: str, at: int, closing: str, depth: int) -> tuple[list[Any], int]:
    made: list[Any] = []
    while not _is_at(text, at, closing):
        value, at = _value(text, at, depth + 1)
        made.append(value)
        at = at if _is_at(text, at, closing) else _past(text, at, ",")
    return made, _past(text, at, closing)


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    while not _is_at(text, at, "}"):
        key, at = _value(text, at, depth + 1)
        if not isinstance(key, str):
            raise ValueError("no name")
        made[key], at = _value(text, _past(text, at, ":"), depth + 1)
        at = at if _is_at(text, at, "}") else _past(text, at, ",")
    return made, _past(text, at, "}")


def _sign(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    return chr(int(code, 16)) if code else _SIGNS.get(found[3], found[0])


def _is_at(text: str, at: int, sign: str) -> bool:
    return text.startswith(sign, _matched(_SPACE, text, at).end())


def _past(text: str, at: int, sign: str) -> int:
    """Behind a sign, before which white space may stand."""
    at = _matched(_SPACE, text, at).end()
    if not text.startswith(sign, at):
        raise ValueError(f"no {sign}")
    return at + len(sign)


def _matched(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError("something else")
    return found
