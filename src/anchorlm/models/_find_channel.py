"""Finds the thought channel of a chat template: by looking at what it writes, and never by a model's name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from anchorlm.models._channel import Channel
from anchorlm.models._rendering import (
    EndlessTemplateError,
    TemplateFailedError,
    TemplateRefusedError,
    rendered,
    template_names,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ABOUT = re.compile(r"think|thought|reason|reflect|inner|analysis|scratchpad|cot\b", re.I)
"""What the names of thoughts have in common: of tags, of variables, of a turn's fields."""

_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
_NAME = re.compile(r"[A-Za-z_]\w{2,39}")
_TAG = re.compile(r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]|◁[^◁▷\s]{1,40}▷")
_LISTED = re.compile(r"""["']type["']\s*:""")
_ASKED, _THOUGHT, _ANSWER = "Xq0zv", "Xq1zv", "Xq2zv"
_MOST = 6
"""Names of variables, and of fields, that are tried."""

_REMEMBERED = 64
"""Templates, with their variables, whose channels are remembered: to find one takes a second."""

_known: dict[str, Channel | None] = {}

Turn = dict[str, Any]
Options = Mapping[str, Any]


def find_channel(tokenizer: PreTrainedTokenizerBase, template: str, options: Options) -> Channel | None:
    """How a template marks thoughts. None where it knows none.

    Args:
        tokenizer: Whose special tokens the template may write.
        template: The template.
        options: Variables that it always gets.
    """
    if not _ABOUT.search(template):
        return None
    key = json.dumps([template, dict(options), tokenizer.special_tokens_map], sort_keys=True, default=str)
    if key not in _known:
        found = None
        with suppress(EndlessTemplateError):  # which is said where the template is used
            found = _Search(tokenizer, template, options).found()
        while len(_known) >= _REMEMBERED:
            _known.pop(next(iter(_known)), None)
        _known[key] = found
    return _known[key]


class _Search:
    """Tries one template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, options: Options) -> None:
        self._tokenizer, self._template, self._options = tokenizer, template, dict(options)
        words, names = template_names(template)
        self._words = words
        self._names = {name: values for name, values in names.items() if _ABOUT.search(name)}
        self._fields = [*_FIELDS, *(word for word in words if _NAME.fullmatch(word) and _ABOUT.search(word))]
        self._fields = [name for name in dict.fromkeys(self._fields) if name in words][: _MOST + len(_FIELDS)]
        self._effort = "reasoning_effort" in names

    def found(self) -> Channel | None:
        self.tail = self._tail({})
        if self.tail is None:
            return None
        self._switched = dict(self._switches())
        marks = self._written() or self._beside() or self._removed() or self._told()
        return None if marks is None else self._channel(*marks)

    # --- what it writes ---------------------------------------------------------------------------------------------

    def _text(self, turns: Sequence[Turn], extra: Options, *, opens: bool) -> str | None:
        for form in (turns, [_parted(turn) for turn in turns]):
            try:
                return rendered(
                    self._tokenizer, form, template=self._template, opens=opens, options={**self._options, **extra}
                )
            except EndlessTemplateError:
                raise
            except (TemplateRefusedError, TemplateFailedError):
                continue
        return None

    def _tail(self, extra: Options) -> str | None:
        """What a prompt ends with, behind the user's words."""
        return _behind(self._text([_USER], extra, opens=True))

    def _switches(self) -> Iterator[tuple[tuple[tuple[str, Any], ...], str]]:
        """The variables that change a prompt, each with what it ends with then."""
        plain = self._text([_USER], {}, opens=True)
        for name, values in list(self._names.items())[: 3 * _MOST]:
            if name in self._options:
                continue
            for value in (0,) if "budget" in name else (False, True, *(values if name != "reasoning_effort" else ())):
                text = self._text([_USER], {name: value}, opens=True)
                tail = _behind(text)
                if text is not None and tail is not None and text != plain:
                    yield ((name, value),), tail

    @property
    def _ways(self) -> list[Options]:
        return [{}, *(dict(way) for way in self._switched)]

    # --- where the marks are found ----------------------------------------------------------------------------------

    def _written(self) -> tuple[str, str, str] | None:
        """Around the thought of an earlier turn that comes in a field of its own."""
        for extra in self._ways:
            for turn in _turns_with(self._fields):
                text = _behind(self._text([_USER, turn], extra, opens=False))
                if text is None or _THOUGHT not in text or _ANSWER not in text.partition(_THOUGHT)[2]:
                    continue
                if _LISTED.search(text):
                    continue  # it has written a list down, and knows nothing of what is in it
                head, _, rest = text.partition(_THOUGHT)
                end = rest.partition(_ANSWER)[0]
                if end.strip():
                    return self._begin(head, end, extra), end, self._empty(extra)
        return None

    def _begin(self, head: str, end: str, extra: Options) -> str:
        """The part of an opened turn that opens the thought."""
        tails = [tail for tail in (self._tail(extra), self.tail, *self._switched.values()) if tail is not None]
        for tail in tails:
            if head.startswith(tail) and head[len(tail) :].strip():
                return head[len(tail) :].lstrip()
        for mirror in _mirrors(end.strip()):
            if (place := head.rfind(mirror)) >= 0:
                return head[place:]
        longer = [tail[len(head) :] for tail in tails if tail.startswith(head) and len(tail) > len(head)]
        if longer:  # only the prompt has words for it
            return longer[0]
        shared = max((_common(head, tail) for tail in tails), key=len, default="")
        return head[len(shared) :]

    def _beside(self) -> tuple[str, str, str] | None:
        """In an empty thought, or an open one, with which a prompt or an answer begins."""
        plain = self._lead({})
        for text in (self.tail or "", *self._switched.values(), plain or ""):
            tags = list(_TAG.finditer(text))
            for left, right in pairwise(tags):
                between = text[left.end() : right.start()]
                if right[0] in _closings(left[0]) and _ABOUT.search(left[0] + between) and len(between) < 20:
                    line = "\n" if "\n" in between else ""
                    end = line + right[0] + text[right.end() :]
                    return left[0] + between.rstrip() + line, end, text[left.start() :]
        for text in (self.tail or "", *self._switched.values()):
            last = list(_TAG.finditer(text))[-1:]
            if last and not text[last[0].end() :].strip() and _ABOUT.search(last[0][0]):
                tag, gap = last[0][0], text[last[0].end() :]
                close = next((one for one in _closings(tag) if one in self._template), _closings(tag)[0])
                return tag + gap, f"\n{close}", ""
        return None

    def _removed(self) -> tuple[str, str, str] | None:
        """In what it takes out of an earlier answer."""
        for tag in dict.fromkeys(found for word in self._words for found in _TAG.findall(word) if _ABOUT.search(found)):
            for begin in _mirrors(tag):
                said = {"role": "assistant", "content": f"{begin}\n{_THOUGHT}\n{tag}\n\n{_ANSWER}"}
                for turns in ([_USER, said, _USER, {**said, "content": _ANSWER}, _USER], [_USER, said]):
                    text = self._text(turns, {}, opens=True)
                    if text is not None and _ANSWER in text and _THOUGHT not in text:
                        return f"{begin}\n", f"\n{tag}", ""
        return None

    def _told(self) -> tuple[str, str, str] | None:
        """In what it tells the model to do, of itself or where a variable says so."""
        plain = self._text([_USER], {}, opens=True) or ""
        for extra in self._ways:
            head = (self._text([_USER], extra, opens=True) or "").partition(_ASKED)[0]
            if extra and head == plain.partition(_ASKED)[0]:
                continue
            tags = _TAG.findall(head)
            for tag in tags:
                for close in _closings(tag):
                    if close in tags and _ABOUT.search(tag):
                        return f"{tag}\n", f"\n{close}", ""
        return None

    # --- what comes of it -------------------------------------------------------------------------------------------

    def _lead(self, extra: Options) -> str | None:
        """What stands in front of an answer without a thought."""
        text = _behind(self._text([_USER, {"role": "assistant", "content": _ANSWER}], extra, opens=False))
        return None if text is None or _ANSWER not in text else text.partition(_ANSWER)[0]

    def _empty(self, extra: Options) -> str:
        """What an answer without a thought has in front of it, behind the opened turn."""
        lead, tail = self._lead(extra) or self._lead({}) or "", self._tail(extra) or ""
        return lead[len(tail) :] if lead.startswith(tail) else lead

    def _channel(self, begin: str, end: str, empty: str) -> Channel:
        known = Channel(begin, end, "")
        if known.closing not in empty and not known.closing.endswith(empty.strip()):
            empty = ""  # it opens the turn, and says nothing of thoughts
        elif known.opening not in empty and empty.strip().endswith(known.closing):
            empty = ""  # it ends what the prompt has opened
        states = {way: self._state(known, tail) for way, tail in self._switched.items()}
        now = self._state(known, self.tail or "")
        for way, state in states.items():  # an empty thought as the template itself writes it
            tail = self._switched[way]
            if state == "shut" and not empty.strip():
                empty = tail[tail.rfind(known.opening) :] if known.opening in tail else ""
        if now == "shut" and not empty.strip() and known.opening in (self.tail or ""):
            empty = (self.tail or "")[(self.tail or "").rfind(known.opening) :]
        off = self._way(states, {"shut"} | ({"plain"} if now == "opened" else set()), now)
        on = self._way(states, {"opened"} | ({"plain"} if now == "shut" else set()), now)
        if now == "plain" and on is None and off is None:
            on = self._asks(known)
        return Channel(
            begin,
            end,
            empty if empty.strip() else f"{known.opening}\n\n{known.closing}\n\n",
            opened=now == "opened",
            shut=now == "shut",
            on=None if now == "opened" else on,
            off=None if now == "shut" else off,
            effort=self._effort,
        )

    @staticmethod
    def _state(channel: Channel, tail: str) -> str:
        if channel.inside(tail):
            return "opened"
        return "shut" if channel.closing in tail and tail.rstrip().endswith(channel.closing) else "plain"

    @staticmethod
    def _way(states: Mapping[tuple[tuple[str, Any], ...], str], wanted: set[str], now: str) -> dict[str, Any] | None:
        if now in wanted:
            wanted = wanted - {now}
        return next((dict(way) for way, state in states.items() if state in wanted), None)

    def _asks(self, channel: Channel) -> dict[str, Any] | None:
        """The variable with which a template tells the model to think."""
        plain = self._text([_USER], {}, opens=True) or ""
        for way in self._switched:
            text = self._text([_USER], dict(way), opens=True) or ""
            if channel.opening in text.partition(_ASKED)[0] and channel.opening not in plain.partition(_ASKED)[0]:
                return dict(way)
        return None


_USER = {"role": "user", "content": _ASKED}


def _parted(turn: Turn) -> Turn:
    content = turn["content"]
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def _turns_with(fields: Sequence[str]) -> Iterator[Turn]:
    """Answers with a thought, in the ways in which clients and templates hold one."""
    for name in fields:
        yield {"role": "assistant", "content": _ANSWER, name: _THOUGHT}
    answer = {"type": "text", "text": _ANSWER}
    for name in fields:
        yield {"role": "assistant", "content": [{"type": name, name: _THOUGHT}, answer]}
        yield {"role": "assistant", "content": [{"type": name, "text": _THOUGHT}, answer]}


def _behind(text: str | None) -> str | None:
    """What follows on the user's words."""
    return None if text is None or _ASKED not in text else text[text.rfind(_ASKED) + len(_ASKED) :]


def _common(one: str, other: str) -> str:
    size = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]


_PAIRS = (("START", "END"), ("BEGIN", "END"), ("start", "end"), ("begin", "end"), ("prefix", "suffix"),
          ("PREFIX", "SUFFIX"), ("open", "close"))  # fmt: skip


def _closings(tag: str) -> list[str]:
    """The tags that close one which opens, in the ways in which people write pairs."""
    inner, first, last = tag[1:-1], tag[0], tag[-1]
    if inner.startswith("/") or inner.startswith("|/"):
        return [tag]  # closes, and opens nothing
    found = [tag.replace(one, other) for one, other in _PAIRS if one in tag]
    if inner.startswith("|") and inner.endswith("|"):
        found.append(f"{first}|/{inner[1:]}{last}")
    elif inner.startswith("|"):
        found.append(f"{first}{inner[1:]}|{last}")
    return [*found, f"{first}/{inner}{last}"]


def _mirrors(closing: str) -> list[str]:
    """The tags that may open what the first tag of a text closes."""
    tag = _TAG.match(closing)
    if tag is None:
        return []
    inner, first, last = tag[0][1:-1], tag[0][0], tag[0][-1]
    found = [tag[0].replace(other, one) for one, other in _PAIRS if other in tag[0]]
    if inner.startswith("/"):
        found.append(f"{first}{inner[1:]}{last}")
    if inner.startswith("|/"):
        found.append(f"{first}|{inner[2:]}{last}")
    if inner.endswith("|") and not inner.startswith("|"):
        found.append(f"{first}|{inner[:-1]}{last}")
    return found
