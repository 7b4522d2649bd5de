"""Finds how a chat template writes calls of tools: by looking at what it writes, and never by a model's name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from anchorlm.models._call_marks import NAMES, VALUES, common, form_of
from anchorlm.models._calls import CallForm
from anchorlm.models._rendering import EndlessTemplateError, TemplateFailedError, TemplateRefusedError, rendered
from anchorlm.models._told_calls import TAG, told_form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anchorlm.models._marks import Marks

_FIRST = "Xk0zv"
_ASKED, _ANSWER, _RESULT, _NEXT = "Xq0zv", "Xq1zv", "Xr0zv", "Xq2zv"
_LONG_ID, _SHORT_ID = "call_0123456789abcdef0{}", "Xi0zvABC{}"
_REMEMBERED = 64

Turn = dict[str, Any]


@dataclass(frozen=True)
class ToolTemplate:
    """What a chat template does with tools.

    Attributes:
        kind: `calls`: it writes tools and results, and how its model calls is known. `reads`: it writes tools, but what
            a call of its model looks like cannot be seen. `none`: it takes no tools.
        form: How it writes calls. Only with `calls`.
        as_text: Whether it takes the arguments of earlier calls as text, and not as an object.
        short_ids: Whether it takes the ids of calls only with nine letters and digits.
        several: Whether it writes several calls of one turn.
        stops: Control tokens with which a turn ends that calls, by their names.
        marks: What stands around calls and results: no result of a tool may write it.
        in_text: Whether it leaves out the calls of a turn. Then they are written as a part of the turn's text.
        why: Of `reads`: what the template does, in a few words.
    """

    kind: Literal["calls", "reads", "none"] = "none"
    form: CallForm | None = None
    as_text: bool = False
    short_ids: bool = False
    several: bool = True
    stops: tuple[str, ...] = ()
    marks: frozenset[str] = field(default_factory=frozenset)
    in_text: bool = False
    why: str = "writes no calls, and names no mark that opens one"

    @property
    def told(self) -> str:
        """In a few words, for people."""
        if self.form is None:
            return f"read, but the template {self.why}" if self.kind == "reads" else "not taken"
        mark = self.form.opening.split("\n")[0] or "a call that has no mark"
        return f"called ({mark}, arguments as {ARGUMENTS[self.form.kind]})"


ARGUMENTS = {"object": "JSON", "named": "JSON", "tagged": "text between tags", "quoted": "a list of names and values",
             "python": "Python or JSON"}  # fmt: skip
"""How each kind of call holds its arguments, in a few words."""

_known: dict[str, ToolTemplate] = {}


def find_tools(tokenizer: PreTrainedTokenizerBase, template: str, options: Mapping[str, Any]) -> ToolTemplate:
    """What a template does with tools.

    Args:
        tokenizer: Whose special tokens the template may write.
        template: The template.
        options: Variables that it always gets.
    """
    if "tools" not in template:
        return ToolTemplate()
    options = {name: value for name, value in options.items() if name != "tools"}
    added = sorted({str(token.content) for token in tokenizer.added_tokens_decoder.values()})
    key = json.dumps([template, options, tokenizer.special_tokens_map, added], sort_keys=True, default=str)
    if key not in _known:
        found = ToolTemplate()
        with suppress(EndlessTemplateError):  # which is said where the template is used
            found = _Search(tokenizer, template, options, frozenset(added)).found()
        while len(_known) >= _REMEMBERED:
            _known.pop(next(iter(_known)), None)
        _known[key] = found
    return _known[key]


def usable(found: ToolTemplate, marks: Marks, stops: frozenset[int]) -> ToolTemplate:
    """The same for a model as it is read here: what ends an answer cannot stand within a call.

    Args:
        found: What the template does with tools.
        marks: The model's tokens as text.
        stops: What ends an answer.
    """
    form = found.form
    if form is None:
        return found
    within = (form.begin, form.behind, form.key, form.value, form.bare)
    if stops.isdisjoint(token for text in within for token in marks.ids(text)):
        return found
    return ToolTemplate("reads", why="writes calls in the middle of which an answer would end")


class _Search:
    """Tries one template."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, options: Mapping[str, Any], added: frozenset[str]
    ) -> None:
        self._tokenizer, self._template, self._options, self._added = tokenizer, template, options, added

    def found(self) -> ToolTemplate:
        asked = self._text([_USER], opens=True)
        if asked is None or not all(name in asked for name in (*NAMES, _FIRST)):
            return ToolTemplate()
        self._leads = [_behind(asked), self._lead()]
        for as_text in (False, True):
            for short in (False, True):
                one = self._behind_user([_calls(1, as_text, short)])
                if one is None or not self._is_whole(one):
                    continue
                two = self._behind_user([_calls(2, as_text, short)])
                if two is not None and not all(word in two for word in (*NAMES, *VALUES)):
                    two = None
                if (found := self._of(one, two)) is not None:
                    marks = self._around_result(_calls(1, as_text, short)) or frozenset()
                    return replace(
                        found, as_text=as_text, short_ids=short, several=two is not None, marks=found.marks | marks
                    )
        return self._told(asked) or ToolTemplate("reads")

    def _told(self, asked: str) -> ToolTemplate | None:
        """What is found where the template leaves out calls. It must write a text that holds them, and results."""
        form = told_form(asked, self._added)
        if form is None:
            return None
        turn: Turn = {"role": "assistant", "content": form.written([(NAMES[0], {_FIRST: VALUES[0]})])}
        text, around = self._behind_user([turn]), self._around_result(turn)
        if text is None or turn["content"] not in text or around is None:
            return None
        ends = list(_tokens(text.partition(turn["content"])[2], self._added))[:1]
        marks = frozenset(filter(None, (form.begin, form.end))) | around
        return ToolTemplate("calls", form, stops=tuple(ends), marks=marks, in_text=True)

    @staticmethod
    def _is_whole(text: str) -> bool:
        """Whether the call is there, and its arguments are an object and no text in quotation marks."""
        return NAMES[0] in text and VALUES[0] in text and '\\"Xk0zv' not in text and '{{"Xk0zv' not in text

    # --- what it writes ---------------------------------------------------------------------------------------------

    def _text(self, turns: Sequence[Turn], *, opens: bool) -> str | None:
        for form in (turns, [_parted(turn) for turn in turns]):
            with suppress(TemplateRefusedError, TemplateFailedError):
                return rendered(
                    self._tokenizer, form, template=self._template, opens=opens,
                    options={**self._options, "tools": PROBES},
                )  # fmt: skip
        return None

    def _behind_user(self, turns: Sequence[Turn]) -> str | None:
        text = self._text([_USER, *turns], opens=False)
        return None if text is None else _behind(text)

    def _lead(self) -> str:
        """What stands in front of an answer."""
        text = self._behind_user([{"role": "assistant", "content": _ANSWER}])
        return (text or "").partition(_ANSWER)[0]

    def _tail(self) -> str:
        """What stands behind an answer."""
        text = self._behind_user([{"role": "assistant", "content": _ANSWER}])
        return (text or "").partition(_ANSWER)[2]

    def _of(self, one: str, two: str | None) -> ToolTemplate | None:
        lead = self._before(one)
        read = form_of(one[lead:], None if two is None else two[self._before(two) :], self._tail())
        if read is None:
            return None
        form, rest = read
        ends = list(_tokens(rest, self._added))[:1]
        marks = {tag for part in (form.begin, form.again, form.end, form.close) for tag in TAG.findall(part)}
        return ToolTemplate("calls", form, stops=tuple(ends), marks=frozenset(marks))

    def _before(self, text: str) -> int:
        """Where a turn begins behind all that a prompt, or an answer, begins with."""
        head = text[: text.index(NAMES[0])]
        whole = [lead for lead in self._leads if head.startswith(lead)]
        if whole:
            return len(max(whole, key=len))
        return max((_at_tag(common(head, lead)) for lead in self._leads), default=0)

    def _around_result(self, turn: Turn) -> frozenset[str] | None:
        """The tags that stand around the result of a tool. None where the template leaves it out.

        Args:
            turn: Calls the tool.
        """
        call = turn["tool_calls"][0]["id"] if "tool_calls" in turn else _LONG_ID.format(0)
        result = {"role": "tool", "content": _RESULT, "name": NAMES[0], "tool_call_id": call}
        for more in ([], [{"role": "user", "content": _NEXT}]):
            text = self._text([_USER, turn, result, *more], opens=True)
            if text is None or _RESULT not in text:
                continue
            before, _, after = text.partition(_RESULT)
            near = before[before.rfind(VALUES[0]) :] + after.partition(_NEXT)[0]
            return frozenset(tag for tag in TAG.findall(near) if "zv" not in tag)
        return None


_USER: Turn = {"role": "user", "content": _ASKED}


def _probe(name: str) -> dict[str, Any]:
    texts = {"type": "string", "description": "one"}
    properties = {"Xk0zv": texts, "Xk1zv": {"type": "integer", "description": "two"}}
    schema = {"type": "object", "properties": properties, "required": ["Xk0zv"]}
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema}}


PROBES = [_probe(name) for name in NAMES]


def _calls(count: int, as_text: bool, short: bool) -> Turn:
    """A turn that calls one tool, or two."""
    made = []
    for index in range(count):
        arguments = {"Xk0zv": VALUES[index], "Xk1zv": 7} if index == 0 else {"Xk0zv": VALUES[index]}
        given: Any = json.dumps(arguments) if as_text else arguments
        id = (_SHORT_ID if short else _LONG_ID).format(index)
        made.append({"id": id, "type": "function", "function": {"name": NAMES[index], "arguments": given}})
    return {"role": "assistant", "content": "", "tool_calls": made}


def _parted(turn: Turn) -> Turn:
    content = turn["content"]
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) and content else turn


def _behind(text: str) -> str:
    """What follows on the user's words."""
    return text[text.rfind(_ASKED) + len(_ASKED) :]


def _at_tag(text: str) -> int:
    """The length of a text without a tag that is cut off at its end."""
    for opening, closing in (("<", ">"), ("[", "]")):
        place = text.rfind(opening)
        if place >= 0 and closing not in text[place:]:
            text = text[:place]
    return len(text)


def _tokens(text: str, added: frozenset[str]) -> Iterator[str]:
    """The control tokens with which a text begins."""
    rest = text.lstrip()
    while rest:
        token = max((one for one in added if one and rest.startswith(one)), key=len, default=None)
        if token is None:
            return
        yield token
        rest = rest[len(token) :].lstrip()
