"""What is asked about a row of a published set of tasks, and what solves it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

from anchorlm.records import UserError

AnswerForm = Literal["number", "choice", "label", "name"]
"""How a task's answer is recognized: the last number. The letter of an option. One of a few words. The first line."""

Solution = tuple[str, str, AnswerForm, tuple[str, ...]]
"""The prompt, the right answer, its form, and the words or letters among which it is."""

INTENTS = frozenset(files("anchorlm.evaluation").joinpath("banking77.txt").read_text("utf-8").split())
"""Of Banking77, as its files spell them."""

WORDINGS: Mapping[str, tuple[str, str]] = {
    "banking77": (
        "What does this bank customer want? Answer with the name of the intent alone.\n\nCustomer: {}",
        "category",
    ),
    "medquad": ("What kind of medical question is this? Answer with its kind alone.\n\nQuestion: {}", "type"),
}
"""How the rows of sets are asked that bring a text and a class, and the column of the class. The shipped specialists
were tuned on these words."""

_LETTERS = "ABCDEFGHIJ"


def solution(format: str | None, prompt: str, fields: Mapping[str, Any], where: str) -> Solution:
    """What is asked about a row, and what solves it. Several choices are listed in the prompt.

    Args:
        format: Name of the set's format, if it is known.
        prompt: The row's text.
        fields: The row, by lower-case column.
        where: Names the row in an error.

    Raises:
        UserError: It has no answer, or one that is none of its options.
    """
    if format is not None and format in WORDINGS:
        wording, column = WORDINGS[format]
        name = answer_line(str(fields[column]).replace("_", " "))
        return wording.format(" ".join(prompt.split()).replace(" ?", "?")), name, "name", ()
    apart = [fields[name] for name in "abcd"] if fields.keys() >= set("abcd") else None
    options = fields.get("options", fields.get("choices", apart))
    answer = next((fields[name] for name in ("answer", "final_decision", "target", "label") if name in fields), None)
    if answer is None or str(answer).strip() == "":
        raise UserError(f"{where} is a task without an answer: give it in a column answer.")
    text = str(answer).strip()
    if options:
        return _choice(prompt, text, fields.get("answer_idx"), options, where)
    if "####" in text:
        return prompt, text.rsplit("####", 1)[1].strip().replace(",", ""), "number", ()
    if "final_decision" in fields:
        context = fields.get("context", fields.get("contexts", ""))
        if isinstance(context, Mapping):  # on the Hub, next to the names of its sections
            context = context.get("contexts", "")
        told = " ".join(map(str, context)) if isinstance(context, list) else str(context)
        asked = f"{told}\n\n{prompt}\nAnswer with yes, no or maybe.".strip()
        return asked, text.lower(), "label", ("yes", "no", "maybe")
    if text.lower() in ("positive", "negative", "neutral"):
        asked = "\n\nWhat is the sentiment of this? Answer with positive, negative or neutral."
        given = prompt + (asked if "sentence" in fields else "")  # a bare sentence asks nothing
        return given, text.lower(), "label", ("positive", "negative", "neutral")
    if value := number(text):
        return prompt, value, "number", ()
    return prompt, text.lower(), "label", (text.lower(),)


def answer_line(text: str) -> str:
    """An answer that is a name, as it is compared: the first line in lower case, without marks at its end."""
    lines = text.strip().splitlines() or [""]
    return re.sub(r"[\s.?!\"']+$", "", lines[0].lower())


def number(text: str) -> str | None:
    """A text as a number without separators and the dollar sign. None if it is none."""
    bare = text.replace(",", "").lstrip("$")
    return bare if bare.lstrip("-").replace(".", "", 1).isdigit() else None


def _choice(prompt: str, answer: str, index: Any, options: Any, where: str) -> Solution:
    named = (
        {str(key): str(value) for key, value in options.items()}
        if isinstance(options, Mapping)
        else dict(zip(_LETTERS, map(str, options), strict=False))
    )
    letter = _letter(answer, index, named)
    if letter is None:
        raise UserError(f"{where} has the answer {answer!r}, which is none of its options: fix it.")
    listed = "\n".join(f"{key}. {value}" for key, value in named.items())
    return f"{prompt}\n\n{listed}\n\nAnswer with the letter of the right option.", letter, "choice", tuple(named)


def _letter(answer: str, index: Any, options: Mapping[str, str]) -> str | None:
    if isinstance(index, str) and index in options:
        return index
    if answer in options:
        return answer
    if answer.isdigit() and int(answer) < len(options):
        return list(options)[int(answer)]
    return next((letter for letter, text in options.items() if text.strip() == answer), None)
