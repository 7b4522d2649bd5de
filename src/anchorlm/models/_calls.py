from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from anchorlm.models._call_python import python_calls, python_text
from anchorlm.models._call_values import quoted_object, typed

CallKind = Literal["object", "named", "tagged", "quoted", "python"]
"""`object`: one JSON object holds name and arguments. `named`: a name, and the arguments as JSON behind it. `tagged`:
each argument between marks of its own. `quoted`: as JSON, but with bare keys and marks in place of quotation marks.
`python`: a list of calls as Python writes them, or `object`: of such a form only the marks are known.
"""

Found = tuple[str, dict[str, Any]]
"""A call: its name, and its arguments."""

LONGEST_NAME = 64
NAME = rf"(?P<name>[\w.\-]{{1,{LONGEST_NAME}}})"
_DECODER = json.JSONDecoder()


def loose(text: str) -> str:
    """A pattern for a mark, with any white space where it has some."""
    return r"\s*".join(map(re.escape, re.split(r"\s+", text)))


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls of tools, as its chat template writes them.

    Attributes:
        kind: Where name and arguments stand.
        begin: What opens the first call, up to its JSON or its name. Empty where an answer that is a call has no mark.
        again: What opens each further one.
        end: What ends a call.
        close: What ends the last one, besides.
        keys: Of `object`: what name and arguments are called in it.
        listed: Of `object`: whether the calls stand in a list.
        behind: Of `named` and `quoted`: what stands between a name and its arguments. Of `tagged`: what ends the name.
        key: Of `tagged`: what opens an argument's name.
        value: Of `tagged`: what stands between an argument's name and a text. Of `quoted`: the quotation mark.
        bare: Of `tagged`: the same before what is no text.
        over: Of `tagged`: what ends a value.
    """

    kind: CallKind
    begin: str
    again: str = ""
    end: str = ""
    close: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    listed: bool = False
    behind: str = ""
    key: str = ""
    value: str = ""
    bare: str = ""
    over: str = ""

    @property
    def opening(self) -> str:
        """What opens calls, without white space around it."""
        return self.begin.strip()

    @property
    def _listable(self) -> bool:
        """Whether calls may stand in a list."""
        return self.kind in ("object", "python")

    def written(self, calls: Sequence[Found]) -> str:
        """Calls as a model writes them in JSON or in Python, for a template that writes none itself."""
        if self.kind == "python":
            return f"{self.begin}{python_text(calls)}{self.end}"
        made = [json.dumps(dict(zip(self.keys, call, strict=True)), ensure_ascii=False) for call in calls]
        if self.listed:
            return f"{self.begin}[{', '.join(made)}]{self.end}"
        return "".join(f"{self.begin}{one}{self.end}" for one in made)

    def place(self, text: str, start: int = 0) -> int | None:
        """Where calls may begin, from some place on."""
        if not self.opening:
            at = start + len(text[start:]) - len(text[start:].lstrip())
            return at if start == 0 and self._may_begin(text[at:]) else None
        found = self._begin.search(text, start)
        return None if found is None else found.start()

    def _may_begin(self, text: str) -> bool:
        if text.startswith(CODE):
            return True
        if self.kind == "object":
            return text.startswith("{")
        return bool(re.match(rf"{NAME}{_digits(self.behind)}", text))

    def parse(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[Found]]:
        """The calls in a text, and the text around them. What is no call of a tool that is offered stays text.

        Args:
            text: An answer, control tokens by their names.
            schemas: The schema of each tool's arguments, by its name.
        """
        calls: list[Found] = []
        kept, at = [], 0
        while (place := self.place(text, at)) is not None:
            read = self._section(text, place, schemas)
            if read is None:
                after = place + 1
                kept.append(text[at:after])
            else:
                found, after = read
                kept.append(text[at:place])
                calls += found
            at = after
        kept.append(text[at:])
        if not calls:
            return text, []
        return "\n".join(filter(None, (piece.strip() for piece in kept))), calls

    def _section(
        self, text: str, place: int, schemas: Mapping[str, Mapping[str, Any]]
    ) -> tuple[list[Found], int] | None:
        """The calls that begin at one place, and where they end."""
        calls: list[Found] = []
        begun = self._begin.match(text, place)
        at = begun.end() if begun else place
        if not self.opening and text.startswith(CODE, at):
            at += len(CODE)
        while True:
            read = self._json_or_python(text, at) if self._listable else self._other(text, at, schemas)
            if read is None or any(name not in schemas for name, _ in read[0]):
                break
            calls += read[0]
            at = after = _past(self._end, text, read[1])
            further = self._again.match(text, at)
            if further is None:
                break
            at = further.end()
        return (calls, _past(self._close, text, after)) if calls else None

    def _json_or_python(self, text: str, at: int) -> tuple[list[Found], int] | None:
        found = self._object(text, at)
        return python_calls(text, at) if found is None and self.kind == "python" else found

    def _object(self, text: str, at: int) -> tuple[list[Found], int] | None:
        at = _past(_SPACE, text, at)
        try:
            value, after = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        found: list[Found] = []
        for one in value if isinstance(value, list) else [value]:
            name = one.get(self.keys[0]) if isinstance(one, dict) else None
            arguments = _arguments(one.get(self.keys[1])) if isinstance(name, str) else None
            if arguments is None:
                return None
            found.append((str(name), arguments))
        return (found, after) if found else None

    def _other(self, text: str, at: int, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[list[Found], int] | None:
        named = self._named.match(text, at)
        if named is None:
            return None
        name, at = named["name"], named.end()
        if self.kind == "tagged":
            return self._tagged(text, at, name, schemas.get(name) or {})
        if self.kind == "quoted":
            read = quoted_object(text, at, self.value)
        else:
            try:
                read = _DECODER.raw_decode(text, _past(_SPACE, text, at))
            except (ValueError, RecursionError):
                return None
        arguments = None if read is None else _arguments(read[0])
        return None if read is None or arguments is None else ([(name, arguments)], read[1])

    def _tagged(self, text: str, at: int, name: str, schema: Mapping[str, Any]) -> tuple[list[Found], int] | None:
        arguments: dict[str, Any] = {}
        while (key := self._key.match(text, at)) is not None:
            kinds = schema.get("properties") or {}
            kind = kinds.get(key["key"], {}) if isinstance(kinds, Mapping) else {}
            over = self._over.search(text, key.end())
            if over is None:
                return None
            told = None if self.value == self.bare else key["text"] is not None
            arguments[key["key"]] = typed(text[key.end() : over.start()], kind, told)
            at = over.end()
        return None if self._end.match(text, at) is None else ([(name, arguments)], at)

    # --- patterns ---------------------------------------------------------------------------------------------------

    @cached_property
    def _begin(self) -> re.Pattern[str]:
        return re.compile(loose(self.opening))

    @cached_property
    def _again(self) -> re.Pattern[str]:
        inner = loose(self.again.strip())
        if self._listable:
            return re.compile(rf"\s*[,;]?\s*{inner}\s*(?=[{{\[])")
        return re.compile(rf"\s*{inner}\s*(?={NAME})" if inner else r"(?!)")

    @cached_property
    def _end(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{loose(self.end.strip())}")

    @cached_property
    def _close(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{loose(self.close.strip())}")

    @cached_property
    def _named(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{NAME}{_digits(self.behind)}")

    @cached_property
    def _key(self) -> re.Pattern[str]:
        texts, others = _exact_end(self.value), _exact_end(self.bare)
        middle = f"(?:(?P<text>{texts})|{others})"
        return re.compile(rf"\s*{loose(self.key)}\s*(?P<key>[^<>\"\n]{{1,200}}?)\s*{middle}")

    @cached_property
    def _over(self) -> re.Pattern[str]:
        """A value's end: what stands behind it is another argument, or the end of the call."""
        end = re.escape(self.over.strip())
        gap = rf"(?:{re.escape(self.over[: len(self.over) - len(self.over.lstrip())])})?"
        further = rf"\s*(?:{loose(self.key.strip())}|{loose(self.end.strip())})"
        return re.compile(rf"{gap}{end}(?={further})")


_SPACE = re.compile(r"\s*")


def _exact_end(mark: str) -> str:
    """A pattern for a mark behind which a text begins: its white space, if it is there, and no more."""
    body = mark.rstrip()
    return rf"{loose(body)}(?:{re.escape(mark[len(body) :])})?"


CODE = "<|python_tag|>"
"""Llama's models may write it before a call that has no mark."""


def _digits(mark: str) -> str:
    """A pattern for a mark that counts the calls."""
    return re.sub(r"\d+", r"\\d+", loose(mark))


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _arguments(value: Any) -> dict[str, Any] | None:
    """Arguments as an object. Some models write it as a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return {} if value is None else value if isinstance(value, dict) else None
