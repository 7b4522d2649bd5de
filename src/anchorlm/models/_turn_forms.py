"""The forms in which templates want turns, and whether a text holds all that was said in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from anchorlm.models._tool_turns import written

Turns = list[dict[str, Any]]

_TAGS = re.compile(r"(</?)([\w|\-]*\w[\w|\-]*)(/?>)")


def forms_of(roles: tuple[str, ...]) -> list[Callable[[Turns], Turns]]:
    """Ways to give turns of such roles to a template, the plain one first."""
    forms: list[Callable[[Turns], Turns]] = [list]
    if "system" in roles:
        forms.append(_without_system)
    return [*forms, *(_in_parts(form) for form in forms)]


def _without_system(turns: Turns) -> Turns:
    """The system turns at the head of what follows them, or as the user's where nothing does."""
    merged: Turns = []
    held: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            held.append(turn["content"])
        elif turn["role"] == "user":
            merged.append({**turn, "content": "\n\n".join([*held, turn["content"]])})
            held = []
        else:
            merged.append(turn)
    return [*merged, {"role": "user", "content": "\n\n".join(held)}] if held else merged


def _in_parts(form: Callable[[Turns], Turns]) -> Callable[[Turns], Turns]:
    return lambda turns: [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in form(turns)]


def in_quotes(turns: Turns) -> Turns:
    """The same turns with what looks like a tag in quotation marks: some templates read tags (of a thought, say)."""
    return [{**turn, "content": _TAGS.sub(r'\1"\2"\3', turn["content"])} for turn in turns]


def holds(text: str, turns: Turns) -> bool:
    """Whether all words are there: as they stand, or at least each as often."""
    at = 0
    said = [words for turn in turns for words in written(turn)]
    for words in map(str.strip, said):
        if (place := text.find(words, at)) < 0:
            break
        at = place + len(words)
    else:
        return True
    if any(turn["role"] == "tool" for turn in turns):  # a template may write a result as JSON
        text += " ".join(words for words in said if json.dumps(words, ensure_ascii=False)[1:-1] in text)
    count = Counter(re.findall(r"\w+", text))
    need = Counter(word for words in said for word in re.findall(r"\w+", words))
    return all(count[word] >= often for word, often in need.items())
