from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchorlm.evaluation.runs._answering import Record
from anchorlm.evaluation.runs._contestants import Embedded
from anchorlm.evaluation.runs._recipe import CompareRecipe
from anchorlm.evaluation.runs._stored import Key


@dataclass(frozen=True, slots=True)
class Share:
    """Prompts of one defense on one target that a worker answers together. It needs no file of the run for that.

    Attributes:
        target: Name of the target.
        place: Of the defense among the contestants.
        keys: Which answers are wanted.
        old: What is there of them already: an answer that lacks a grade, or that an outage spoiled.
        tried: Whether the guard needs no probe, because it had one or another share brings it.
    """

    target: str
    place: int
    keys: tuple[Key, ...]
    old: tuple[Record, ...]
    tried: bool


Crew = Callable[[CompareRecipe, Path, Embedded | None, Sequence[Share]], Iterator[Sequence[Record]]]
"""Answers shares elsewhere, each with `answer_share`, and hands the records of each over as it is done."""


def cut(target: str, place: int, keys: Sequence[Key], old: Sequence[Record | None], size: int, *, tried: bool
        ) -> Iterator[Share]:  # fmt: skip
    """Shares of some answers of one defense, each as large as what is answered at once."""
    for start in range(0, len(keys), size):
        end = start + size
        known = tuple(one for one in old[start:end] if one is not None)
        yield Share(target, place, tuple(keys[start:end]), known, tried or start > 0)
