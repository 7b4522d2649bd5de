"""Calls of tools as a grammar for llguidance, in the form in which a chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anchorlm.models._calls import CallForm
from anchorlm.records import ToolUse, schema_of

if TYPE_CHECKING:
    from anchorlm.models._marks import Marks

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line, as `json.dumps` writes it."""

_HEAD = "%llguidance {}"
_MAYBE_LINE = r'"\n"?'
_TEXT = r"TEXT: /(.|\n)*/"


def call_grammar(
    form: CallForm,
    marks: Marks,
    stops: frozenset[int],
    use: ToolUse,
    answer: Mapping[str, Any] | None = None,
    *,
    several: bool = True,
) -> dict[str, Any] | None:
    """What holds an answer to calls of tools, as settings hold a response format; None where no grammar can.

    Args:
        form: How the model writes calls.
        marks: The model's tokens as text.
        stops: The tokens that end an answer.
        use: The tools, and which of them must be called.
        answer: The response format of an answer that calls nothing. Without one such an answer is any text.
        several: Whether the template writes several calls.
    """
    parts = _Parts(form, marks, use, several=several and use.several)
    free = not use.must and answer is None
    if form.kind not in ("object", "named") or not parts.known.isdisjoint(stops):
        return None
    if not use.must and not form.opening:
        return None  # nothing tells the beginning of a call from that of a text
    opened = parts.opened_in_text() if free else []
    if opened is None:
        return None
    schemas = [schema for name, schema in use.schemas.items() if name in parts.names]
    rules = [*opened, *parts.rules] if free else ["start: begun section", f"begun: {parts.begin}", *parts.rules]
    if answer is not None and not use.must:
        rules[0] = "start: begun section | answer"
        rules.append(f"answer: {_json(schema_of(answer))}")
        schemas.append(schema_of(answer))
    return {
        "type": "calls",
        "lark": "\n".join([_HEAD, *rules]),
        "tokens": sorted(parts.known),
        "schemas": [{"enum": list(parts.names)}, *schemas],
        "answer": None if use.must else answer,
        "free": free,
    }


class _Parts:
    """The rules of one form of calls."""

    def __init__(self, form: CallForm, marks: Marks, use: ToolUse, *, several: bool) -> None:
        self._form, self._marks = form, marks
        self.known: set[int] = set()
        self.names = use.must or tuple(use.schemas)
        self.begin = self._text(form.begin.lstrip("\n")) or '""'
        end = form.end.rstrip()
        gap = form.end[len(end) :]
        further = f"{self._text(gap) or _MAYBE_LINE} {self._text(form.again)}"  # not all templates show the line
        items = " | ".join(f"call{place}" for place in range(len(self.names)))
        if form.listed:
            more = '(", " item)*' if several else ""
            self.rules = [f'section: "[" item {more} "]" {self._text(end)} {self._text(form.close.rstrip())}']
        else:
            more = f"({further} item {self._text(end)})*" if several and form.again.strip() else ""
            self.rules = [f"section: item {self._text(end)} {more} {self._text(form.close.rstrip())}"]
        self.rules.append(f"item: {items}")
        for place, name in enumerate(self.names):
            before, after = self._around(name)
            schema = {**use.schemas[name], "type": "object"}
            self.rules += [f"call{place}: {before} arguments{place} {after}", f"arguments{place}: {_json(schema)}"]

    def _around(self, name: str) -> tuple[str, str]:
        """What stands before and behind the arguments of a call."""
        if self._form.kind == "named":
            return self._text(name + self._form.behind), ""
        named, given = map(json.dumps, self._form.keys)
        return self._text(f"{{{named}: {json.dumps(name)}, {given}: "), self._text("}")

    def opened_in_text(self) -> list[str] | None:
        """The rules of a text in which calls may begin; None where a text could begin one unseen."""
        first, *rest = self._marks.pieces(self._form.opening)
        behind = self._form.begin[len(self._form.begin.rstrip()) :]
        if isinstance(first, int) and self._marks.silent(first):
            head = f"head: TEXT <[{first}]>"
        else:
            text = self._marks.text([first]) if isinstance(first, int) else first
            if text.split() != [text]:
                return None  # white space may vary, and a call would begin all the same
            head = f"head[lazy]: TEXT {json.dumps(text, ensure_ascii=False)}"
        after = " ".join([*map(self._piece, rest), self._text(behind)])
        return [f"start: (head {after} section)* TEXT", head, _TEXT]

    def _text(self, text: str) -> str:
        return " ".join(map(self._piece, self._marks.pieces(text)))

    def _piece(self, piece: int | str) -> str:
        if isinstance(piece, str):
            return json.dumps(piece, ensure_ascii=False)
        self.known.add(piece)
        return f"<[{piece}]>"


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _STYLE})}"
