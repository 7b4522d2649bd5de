"""Published files that name no columns: each reader gives rows with the names that they should have, or none."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

MMLU = ("question", "A", "B", "C", "D", "answer")
"""The columns of MMLU's CSV files, which have no header."""

_PHRASE = re.compile(r"(.*\S)\s*@(positive|negative|neutral)\s*")


def is_mmlu(rows: Iterable[Sequence[str]], names: Sequence[str]) -> bool:
    """Whether CSV rows, the first included, are a question, four options and a letter. `names` only a header has."""
    first = None
    with suppress(csv.Error):  # anyone who reads the rows names the line
        for row in filter(None, rows):
            first = first or row
            if len(row) != len(MMLU) or row[-1].strip() not in ("A", "B", "C", "D"):
                return False
    return first is not None and first[0].strip().lower() not in names


def phrases(lines: Iterable[tuple[int, str]]) -> list[tuple[int, object]]:
    """Numbered lines of the Financial PhraseBank, `sentence@label`, as rows. Nothing if one is otherwise."""
    found: list[tuple[int, object]] = []
    for number, line in lines:
        match = _PHRASE.fullmatch(line)
        if match is None:
            return []
        found.append((number, {"sentence": match[1], "label": match[2]}))
    return found


def keyed(data: Mapping[str, object]) -> list[object]:
    """PubMedQA's object of objects as rows, with the keys as ids. Nothing if it holds anything else."""
    rows: list[object] = [{"id": key, **value} for key, value in data.items() if isinstance(value, Mapping)]
    return rows if len(rows) == len(data) else []
