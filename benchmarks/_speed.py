from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """What a row came to.

    Attributes:
        ratios: Of neighboring turns.
        note: What else was seen: how many texts are equal, or why nothing was measured.
    """

    ratios: list[float]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """How to measure.

    Attributes:
        runs: How often each side runs, after a warm-up.
        clock_name: What the clock counts.
        clock: In seconds.
        against: A checkout of another build, if there is one.
    """

    runs: int
    clock_name: str
    clock: Callable[[], float]
    against: Path | None = None

    def ratios(self, over: Callable[[], Any], under: Callable[[], Any]) -> list[float]:
        """Time of the one over time of the other, run in turn, so that a drifting machine hits both alike."""
        found = []
        for turn in range(self.runs + 1):
            times = []
            for function in (over, under):
                start = self.clock()
                function()
                times.append(self.clock() - start)
            if turn:
                found.append(times[0] / times[1])
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """One figure that must hold.

    Attributes:
        name: What `--only` takes.
        what: It, in one line.
        bar: What the median must reach.
        least: Whether it may be at most the bar, or must be at least it.
        measure: Measures it.
    """

    name: str
    what: str
    bar: float
    least: bool
    measure: Callable[[Measure], Figure]
