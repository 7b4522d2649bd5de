from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO

from anchorlm.cli._errors import complain
from anchorlm.files import append_line, lock, table_rows
from anchorlm.records import UserError, clustered, turn_text, wilson

Word = Callable[[str, str], tuple[str, float]]
"""The outcome and the probability of a prompt and an answer."""

AnswerRow = dict[str, Any]
"""One grade, as it is written down."""

_STEP = 256
"""Rows that are written at once."""


def run(source: str, text: str, prompt: str | None, grader: str, output: str, *, overwrite: bool = False) -> None:
    """Grades the rows of `source` that `output` does not hold yet, in order. `-` is stdout.

    Raises:
        UserError: A file, column, row or grader that cannot be used.
    """
    _check_grader(grader, prompt, source)
    place = Path(output)
    if output != "-" and place.exists() and Path(source).exists() and place.samefile(source):
        raise UserError(f"{output!r} is the input: choose another output.")
    pairs = _pairs(source, text, prompt)
    pairs = chain([next(pairs)], pairs)  # what is wrong with the input is said before there is an output
    word = _grader(grader)
    if output == "-":
        return _grade(pairs, word, grader, sys.stdout.buffer, output, [])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("r+b" if place.exists() else "x+b", buffering=0) as file:
            lock(file, place)
            if overwrite:
                file.truncate(0)
            _grade(pairs, word, grader, file, output, _resumed(file, output, grader))
    except OSError as error:
        raise UserError(f"{output!r} cannot be written ({error.strerror or error}): choose another output.") from None
    return None


def _grade(
    pairs: Iterator[tuple[str | None, str]], word: Word, grader: str, file: BinaryIO, place: str, done: list[AnswerRow]
) -> None:
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from anchorlm.cli._bars import stderr

    tally = _Tally()
    with Progress(TextColumn("Grading: {task.completed} answers"), TimeElapsedColumn(), console=stderr,
                  disable=not stderr.is_terminal) as progress:  # fmt: skip
        task = progress.add_task("")
        for start in count(0, _STEP):
            some = list(islice(pairs, _STEP))
            fresh: list[str] = []
            for index, (asked, answer) in enumerate(some, start=start):
                row = done[index] if index < len(done) else None
                if row is None or index == len(done) - 1:  # the last one again: it must be of these rows
                    outcome, probability = word(asked or "", answer)
                    own = {"index": index, "outcome": outcome, "probability": round(probability, 6), "grader": grader}
                    if row is None:
                        fresh.append(json.dumps(own))
                    elif row != own:
                        raise _foreign(place)
                    row = own
                tally.add(asked, str(row["outcome"]))
            if fresh:
                append_line(file, place, "\n".join(fresh))
            progress.advance(task, len(some))
            if len(some) < _STEP:
                break
    if tally.n < len(done):
        raise _foreign(place)
    there = f" ({len(done)} were there already)" if done else ""
    complain(f"{grader}: {tally.n} answers{there}, with 95 % intervals: {tally}.")


class _Tally:
    """How often each outcome came. Answers to one prompt are not independent."""

    def __init__(self) -> None:
        self.n = 0
        self._alone: Counter[str] = Counter()
        self._prompts: dict[str, list[str]] = defaultdict(list)

    def add(self, prompt: str | None, outcome: str) -> None:
        """One more answer."""
        self.n += 1
        self._alone[outcome] += 1
        if prompt is not None:
            self._prompts[prompt].append(outcome)

    def __str__(self) -> str:
        told = []
        for outcome, hits in self._alone.most_common():
            groups = [[one == outcome for one in some] for some in self._prompts.values()]
            low, high = clustered(groups) if groups else wilson(hits, self.n)
            told.append(f"{outcome} {hits} ({100 * hits / self.n:.1f} %, {100 * low:.1f} to {100 * high:.1f})")
        return ", ".join(told)


def _resumed(file: BinaryIO, place: str, grader: str) -> list[AnswerRow]:
    """The rows that are there already. A last line that a kill cut short is taken off."""
    data = file.read()
    whole = data.rfind(b"\n") + 1
    try:
        rows = [json.loads(line) for line in data[:whole].splitlines()]
        ours = all(row["index"] == at and row["grader"] == grader for at, row in enumerate(rows))
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours or (whole < len(data) and not data[whole:].startswith(b'{"index"'[: len(data) - whole])):
        raise _foreign(place)
    file.truncate(whole)
    file.seek(whole)
    return rows


def _foreign(place: str) -> UserError:
    return UserError(f"{place!r} holds something else than grades of these rows by this grader: choose another "
                     "output, or start again with --overwrite.")  # fmt: skip


def _check_grader(name: str, prompt: str | None, source: str) -> None:
    if name not in ("english", "harm", "refusal"):
        raise UserError(f"There is no grader {name!r} for answers in a file: it is one of english, harm, refusal.")
    if name == "harm" and prompt is None:
        columns = ", ".join(map(repr, next(table_rows(source), (0, {}))[1]))
        raise UserError(f"The grader harm reads prompts, too: name their column with --prompt; there are {columns}.")


def _grader(name: str) -> Word:
    from anchorlm.evaluation import EnglishGrader, HarmGrader, RefusalGrader

    if name == "refusal":
        matcher = RefusalGrader()
        return lambda _, text: (outcome := matcher.outcome(text), float(outcome == "refused"))
    if name == "english":
        english = EnglishGrader()
        return lambda _, text: english.word(text)
    return HarmGrader().word


def _pairs(source: str, text: str, prompt: str | None) -> Iterator[tuple[str | None, str]]:
    """Each row's prompt, if there is a column of it, and answer. A field without a value is an empty text."""
    empty = True
    for line, row in table_rows(source):
        empty = False
        for column in (text, prompt):
            if column is not None and column not in row:
                raise UserError(f"Line {line} of {Path(source).name} has no column {column!r}; it has: "
                                f"{', '.join(map(repr, row))}.")  # fmt: skip
        yield None if prompt is None else _text(row[prompt]), _text(row[text])
    if empty:
        raise UserError(f"{Path(source).name} holds no rows: give at least one answer.")


def _text(value: Any) -> str:
    """A field's text. Of a conversation, its last turn."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping) and "content" in value[-1]:
        return turn_text(value[-1])
    return "" if value is None or value != value else str(value)
