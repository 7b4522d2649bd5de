"""Calls of tools in the pieces of a stream: what is told piece by piece is what is told at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from callers import TOOLS
from factories import tiny_tokenizer

from anchorlm.guard._calling import Calls
from anchorlm.models import CallForm, CallWatch
from anchorlm.models._marks import Marks
from anchorlm.records import Event, Finished, TextDelta, ToolCall, Usage, checked_tools
from anchorlm.tokens import ByteVocabulary

HERMES = CallForm("object", "<tool_call>\n", "<tool_call>\n", "\n</tool_call>")
BARE = CallForm("object", "", keys=("name", "parameters"))
LINES = CallForm("named", "", ">>>", behind="\n")
OPENS = "\u300c\u547c\u3073\u51fa\u3057\u300d"
WIDE = CallForm("object", OPENS, end="\u300c\u7d42\u300d")
"""Its marks are characters of several bytes each."""

TOKENIZER = tiny_tokenizer()
VOCABULARY = ByteVocabulary.from_tokenizer(TOKENIZER, stop_ids={1})
ONE = '{"name": "weather", "arguments": {"city": "\u4eac\u90fd \U0001f324 Z\u00fcrich"}}'
LEAD = "Gr\u00fc\u00dfe \u4e0a\u6d77 \U0001f30d, let me see.\n\n"
TEXTS = {
    "a call behind a text": (HERMES, f"{LEAD}<tool_call>\n{ONE}\n</tool_call>", 1),
    "two calls": (HERMES, f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{ONE}\n</tool_call>", 2),
    "no call": (HERMES, f"{LEAD}a < b and <tool> or <tool_ca, \U0001f30d<", 0),
    "no mark": (BARE, f"\n {ONE.replace('arguments', 'parameters')}", 1),
    "a text in front of a call without a mark": (BARE, LEAD + ONE, 0),
    "a name in a line": (LINES, 'weather\n{"city": "\u4eac\u90fd"}', 1),
    "a line that is no name": (LINES, LEAD * 20, 0),
    "marks of several bytes": (WIDE, f"{LEAD}\u300c\u547c, {OPENS}{ONE}\u300c\u7d42\u300d", 1),
}  # fmt: skip


class CountingMarks(Marks):
    """Counts the tokens that are decoded."""

    decoded = 0

    def data(self, token: int) -> bytes:
        self.decoded += 1
        return super().data(token)


def use() -> Any:
    return checked_tools(TOOLS)


def pieces(text: str, sizes: Sequence[int]) -> list[TextDelta]:
    """A text in pieces of bytes, as an engine gives them: a character comes with its last byte."""
    tokens, made, at, said = [VOCABULARY.encode(bytes([one]))[0] for one in text.encode()], list[TextDelta](), 0, ""
    for size in sizes:
        whole = text.encode()[: at + size].decode("utf-8", "ignore")
        made.append(TextDelta(whole[len(said) :], tuple(tokens[at : at + size])))
        at, said = at + size, whole
    return made


def told(form: CallForm, given: Sequence[TextDelta], marks: Marks | None = None) -> list[Event]:
    calls = Calls(form, marks or Marks(TOKENIZER, VOCABULARY), use())
    events: list[Event] = [one for piece in given for one in calls.take(piece)]
    return [*events, *calls.ended(Finished("stop", Usage(1, 1, 1)))]


def said(events: Sequence[Event]) -> tuple[str, list[tuple[str, str]]]:
    texts = "".join(one.text for one in events if isinstance(one, TextDelta))
    return texts, [(one.name, one.arguments) for one in events if isinstance(one, ToolCall)]


@pytest.mark.parametrize("name", TEXTS)
def test_a_stream_says_what_the_whole_says_wherever_characters_are_cut(name: str) -> None:
    form, text, number = TEXTS[name]
    length, chance = len(text.encode()), random.Random(7)
    whole = said(told(form, pieces(text, [length])))
    assert len(whole[1]) == number
    assert number or whole[0] == text
    cuts = [[1] * length, [2] * (length // 2) + [length % 2]]
    for _ in range(20):
        places = sorted(chance.sample(range(1, length), min(9, length - 1)))
        cuts.append([b - a for a, b in zip([0, *places], [*places, length], strict=True)])
    for sizes in cuts:
        streamed = said(told(form, pieces(text, sizes)))
        assert streamed[1] == whole[1]
        assert streamed[0].split() == whole[0].split()
        assert number or streamed[0] == text


def test_a_text_goes_out_while_it_streams_and_a_call_does_not() -> None:
    form, text, _ = TEXTS["marks of several bytes"]
    calls = Calls(form, Marks(TOKENIZER, VOCABULARY), use())
    out = "".join(one.text for piece in pieces(text, [1] * len(text.encode())) for one in calls.take(piece))
    assert out == f"{LEAD}\u300c\u547c,"


@dataclass(frozen=True)
class _CountingForm(CallForm):
    """Counts the characters in which calls are looked for."""

    def place(self, text: str, start: int = 0) -> int | None:
        COUNTED.append(len(text) - start)
        return super().place(text, start)


COUNTED: list[int] = []


@pytest.mark.parametrize("text", [
    "A plain answer. " * 400, f"<tool_call>\n{ONE}\n</tool_call>" * 80, "\n" * 4000, "<tool_call " * 400,
    f"Let me see.\n\n<tool_call>\n{'x' * 4000}",
])  # fmt: skip
def test_each_token_is_decoded_once_and_each_character_is_looked_at_a_bounded_number_of_times(text: str) -> None:
    length = len(text.encode())
    marks = CountingMarks(TOKENIZER, VOCABULARY)
    told(HERMES, pieces(text, [1] * length), marks)
    assert marks.decoded == length
    for opening in ("<tool_call>\n", ""):
        for kind in ("object", "named"):
            COUNTED.clear()
            watch = CallWatch(_CountingForm(kind, opening, behind="\n"))
            for sign in text:
                watch.take(sign)
            assert sum(COUNTED) <= 200 * len(text)
