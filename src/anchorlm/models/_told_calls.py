"""Calls of a template that writes none: the mark that it tells its model, or that the tokenizer has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from anchorlm.models._calls import CallForm

TAG = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{2,60}\]")
"""What may be a mark."""

_OF_CALLS = re.compile(r"(?:tool|function)[_\u2581\- ]?calls?(?![a-z])", re.IGNORECASE)
_CLOSES = re.compile(r"/|(?<![a-z])end(?![a-z])", re.IGNORECASE)
_OPENS = re.compile(r"(?<![a-z])(start|begin)(?![a-z])")
_NEAR = 200


def told_form(asked: str, added: Iterable[str]) -> CallForm | None:
    """The form of calls that a prompt asks for. None where no mark of calls is to be found, or more than one.

    Args:
        asked: A prompt that shows tools.
        added: The control tokens of the tokenizer.
    """
    added = frozenset(added)
    if (mark := _only(TAG.findall(asked))) is not None:
        place = asked.index(mark)
        near, after = asked[max(place - _NEAR, 0) :][: 2 * _NEAR], asked[place:][:_NEAR]
        end = next((one for one in _partners(mark) if one in asked or one in added), "")
        if re.search(r"\bjson\b", near, re.IGNORECASE):
            return CallForm("object", mark, mark, end, listed=bool(re.search(r"\b(list|array)\b", after)))
        return CallForm("python", mark, mark, end)
    if (mark := _only(added)) is not None:
        return CallForm("python", mark, mark, next((one for one in _partners(mark) if one in added), ""))
    return None


def _only(tags: Iterable[str]) -> str | None:
    """The only one of some tags that opens calls."""
    found = {tag for tag in tags if _OF_CALLS.search(tag) and not _CLOSES.search(tag)}
    return found.pop() if len(found) == 1 else None


def _partners(mark: str) -> list[str]:
    """What may close what a mark opens."""
    partners = [mark[0] + "/" + mark[1:]]
    return [_OPENS.sub("end", mark), *partners] if _OPENS.search(mark) else partners
