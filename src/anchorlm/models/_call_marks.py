"""Reads the marks of calls out of what a template has written of two known ones."""

from __future__ import annotations

import json
import re
from typing import Any

from anchorlm.models._calls import CallForm

NAMES = ("Xf0zv", "Xf1zv")
"""Of the tools that are called."""

VALUES = ("Xv0zv", "Xv1zv")
"""The first argument of each call. The first call has the number 7 as its second one."""

_KEYS = ("Xk0zv", "Xk1zv")
_DECODER = json.JSONDecoder()
_FIRST = {_KEYS[0]: VALUES[0], _KEYS[1]: 7}


def form_of(one: str, two: str | None, tail: str) -> tuple[CallForm, str] | None:
    """The form of calls, and what ends a turn that calls.

    Args:
        one: What a template writes of one call, from where the answer begins.
        two: The same of two calls. None where it writes no two.
        tail: What it writes behind an answer.

    Returns:
        The form, and what stands behind the last mark of a call. None where there is none to be seen.
    """
    return _object(one, two, tail) or _named(one, two, tail) or _quoted(one, two, tail) or _tagged(one, two, tail)


def _object(one: str, two: str | None, tail: str) -> tuple[CallForm, str] | None:
    """Name and arguments in one JSON object, alone or in a list."""
    found = _json_with(one, NAMES[0])
    if found is None:
        return None
    start, stop, value = found
    call = value[0] if isinstance(value, list) else value
    name = next((key for key, part in call.items() if part == NAMES[0]), None)
    arguments = next((key for key, part in call.items() if part == _FIRST), None)
    if name is None or arguments is None:
        return None
    further = None if two is None else _json_with(two, NAMES[1])
    first = None if two is None else _json_with(two, NAMES[0])
    between = ""
    if two is not None and further is not None and first is not None and further[0] >= first[1]:
        between = two[first[1] : further[0]]
    again, end, close, rest = _around(one[:start], between, one[stop:], tail)
    listed = isinstance(value, list)
    return CallForm("object", one[:start], again, end, close, keys=(name, arguments), listed=listed), rest


def _named(one: str, two: str | None, tail: str) -> tuple[CallForm, str] | None:
    """A name, and the arguments as JSON behind it."""
    found = _json_at(one, one.index(NAMES[0]) + len(NAMES[0]), _FIRST)
    if found is None:
        return None
    place, start, stop = one.index(NAMES[0]), *found
    between = ""
    if two is not None:
        first = _json_at(two, two.index(NAMES[0]), _FIRST)
        between = two[first[1] : two.index(NAMES[1])] if first else ""
    again, end, close, rest = _around(one[:place], between, one[stop:], tail)
    behind = one[place + len(NAMES[0]) : start]
    return CallForm("named", one[:place], again, end, close, behind=behind), rest


def _quoted(one: str, two: str | None, tail: str) -> tuple[CallForm, str] | None:
    """As JSON, but with bare keys and marks in place of quotation marks."""
    name, keys, after = _parts(one)
    mark = name[4].removeprefix(":")
    if (name[1], name[2], keys[1]) != ("{", ":", mark + ",") or not mark or name[4] != ":" + mark or after[:1] != "}":
        return None
    return _spaced(one, two, tail, after[1:], "}", CallForm("quoted", one[: name[0]], value=mark))


def _tagged(one: str, two: str | None, tail: str) -> tuple[CallForm, str] | None:
    """Each argument between marks of its own."""
    name, keys, after = _parts(one)
    key = _common_end(name[1], keys[1])
    behind, over = name[1][: len(name[1]) - len(key)], keys[1][: len(keys[1]) - len(key)]
    if not key.strip() or not over.strip() or not after.startswith(over):
        return None
    form = CallForm("tagged", one[: name[0]], behind=behind, key=key, value=name[4], bare=name[2], over=over)
    return _spaced(one, two, tail, after[len(over) :], over, form)


def _parts(one: str) -> tuple[tuple[Any, ...], tuple[str, str], str]:
    """What stands between the words of one call: around its name, its first and its second argument."""
    place = one.index(NAMES[0])
    first = one.find(_KEYS[0], place)
    value = one.find(VALUES[0], first)
    second = one.find(_KEYS[1], value)
    number = re.compile("7").search(one, second + len(_KEYS[1])) if second >= 0 else None
    if min(first, value, second) < 0 or number is None:
        nothing = (place, "", "", "", "")
        return nothing, ("", ""), ""
    around = (
        place,
        one[place + len(NAMES[0]) : first],
        one[second + len(_KEYS[1]) : number.start()],
        "",
        one[first + len(_KEYS[0]) : value],
    )
    return around, ("", one[value + len(VALUES[0]) : second]), one[number.end() :]


def _spaced(one: str, two: str | None, tail: str, after: str, over: str, form: CallForm) -> tuple[CallForm, str] | None:
    """The form with what stands between two calls."""
    between = ""
    if two is not None:
        place = two.rindex("7", 0, two.index(NAMES[1]))
        between = two[place + 1 : two.index(NAMES[1])]
        between = between[between.index(over) + len(over) :] if over in between else between
    again, end, close, rest = _around(form.begin, between, after, tail)
    return CallForm(
        form.kind, form.begin, again, end, close, behind=form.behind, key=form.key, value=form.value, bare=form.bare,
        over=form.over,
    ), rest  # fmt: skip


def _around(begin: str, between: str, after: str, tail: str) -> tuple[str, str, str, str]:
    """What opens a further call, ends a call, ends the last one besides, and ends the turn.

    Args:
        begin: What opens the first call.
        between: What stands between two calls. Empty where that is not known.
        after: What stands behind the last one.
        tail: What stands behind an answer.
    """
    again = begin
    if between.strip():
        again = _common_end(begin, between)
        if (place := _open_tag(again)) is not None:  # a tag is not cut in two
            again = again[place:]
        end = between[: len(between) - len(again)] if again else between
        if again.strip() == "" and not begin.strip():
            again, end = between, ""
        if not after.strip().startswith(end.strip()):
            end = ""
        rest = after[after.find(end.strip()) + len(end.strip()) :]
        close = rest[: len(rest) - len(tail)] if tail.strip() and rest.endswith(tail) else _closing(begin, rest)
        return again, end, close, rest[len(close) :]
    end = after[: len(after) - len(tail)] if tail.strip() and after.endswith(tail) else _closing(begin, after)
    return ("" if between else begin), end, "", after[len(end) :]


def _closing(begin: str, text: str) -> str:
    """The tag with which a text begins, where it closes what has opened the calls."""
    fence = re.match(r"\s*```", text)
    if fence is not None and "```" in begin:
        return fence[0]
    tag = re.match(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])", text)
    if tag is None:
        return ""
    inner, opened = set(re.findall(r"\w{3,}", tag[1])), set(re.findall(r"\w{3,}", begin))
    words = {word for word in inner if word.lower() not in ("end", "start", "begin")}
    plain = {part for word in words for part in re.split(r"_+", word)} - {"END", "START", "end", "begin", "start"}
    known = {part for word in opened for part in re.split(r"_+", word)}
    return tag[0] if plain and plain <= known else ""


def _open_tag(text: str) -> int | None:
    """Where the first tag of a text opens, if the text begins within another one."""
    head = re.match(r"[^<\[]*[>\]]", text)
    return head.end() if head is not None and head.end() < len(text) else None


def _common_end(one: str, other: str) -> str:
    return common(one[::-1], other[::-1])[::-1]


def common(one: str, other: str) -> str:
    """What two texts begin with."""
    size = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]


def _json_with(text: str, name: str) -> tuple[int, int, Any] | None:
    """The largest JSON value in which a name stands."""
    place = text.find(name)
    for start in (found.start() for found in re.finditer(r"[\[{]", text[: max(place, 0)])):
        try:
            value, stop = _DECODER.raw_decode(text, start)
        except ValueError:
            continue
        calls = value if isinstance(value, list) else [value]
        if stop > place and all(isinstance(call, dict) for call in calls) and calls:
            return start, stop, value
    return None


def _json_at(text: str, at: int, wanted: Any) -> tuple[int, int] | None:
    """Where a known JSON object stands behind some place."""
    start = text.find("{", at)
    while start >= 0:
        try:
            value, stop = _DECODER.raw_decode(text, start)
        except ValueError:
            value, stop = None, start
        if value == wanted:
            return start, stop
        start = text.find("{", start + 1)
    return None
