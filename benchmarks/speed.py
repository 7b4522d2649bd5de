"""What safety and serving cost, each figure a ratio of two things that run in turn in one process, with its bar.

    python -m benchmarks.speed --json build/bench/speed.json             # what is in the file already is not run again
    python -m benchmarks.speed --only second-turn --only clients-64

Real models: `make real` first. A row that lacks something (models, data sets, another build) says what, and is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from anchorlm.records import AnchorLMError
from benchmarks import _speed_defenses, _speed_engine
from benchmarks._speed import Figure, Measure, Row

ROWS: dict[str, Row] = {row.name: row for row in (*_speed_engine.ROWS, *_speed_defenses.ROWS)}


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it is written. Low and high are the lowest and the highest ratio of the runs."""

    name: str
    ratio: float | None
    low: float | None
    high: float | None
    bar: float
    met: bool
    what: str
    runs: int
    clock: str
    threads: int
    note: str


def line(row: Row, measure: Measure) -> Line:
    """Measures one row."""
    try:
        figure = row.measure(measure)
    except (AnchorLMError, ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        figure = Figure([], str(error))
    ratios = figure.ratios
    middle = statistics.median(ratios) if ratios else None
    met = middle is not None and (middle <= row.bar if row.least else middle >= row.bar)
    return Line(
        name=row.name,
        ratio=middle,
        low=min(ratios, default=None),
        high=max(ratios, default=None),
        bar=row.bar,
        met=met,
        what=row.what,
        runs=len(ratios),
        clock=measure.clock_name,
        threads=torch.get_num_threads(),
        note=figure.note,
    )


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table(title="speed")
    for column in ("name", "ratio", "lowest", "highest", "bar", "met", "runs", "what", "note"):
        table.add_column(column)
    for one in lines:
        bar = f"{'<=' if ROWS[one['name']].least else '>='} {one['bar']:g}"
        figures = ["-" if one[key] is None else f"{one[key]:.3f}" for key in ("ratio", "low", "high")]
        table.add_row(
            one["name"], *figures, bar, "yes" if one["met"] else "no", str(one["runs"]), one["what"], one["note"]
        )
    Console(width=160).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing. 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Where the rows are kept, one object each.")
    parser.add_argument("--only", action="append", choices=sorted(ROWS), help="This row alone; may be repeated.")
    parser.add_argument("--again", action="store_true", help="Also measure what is in the file already.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, help="Of torch; by default its own choice.")
    parser.add_argument(
        "--clock", choices=["wall", "processor"], default="wall",
        help="`processor` counts the processor's time of this process: for a machine that is busy with other things.",
    )  # fmt: skip
    parser.add_argument("--against", type=Path, help="A checkout of another build, for the rows that compare with one.")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    clock: Callable[[], float] = perf_counter if given.clock == "wall" else process_time
    measure = Measure(given.runs, given.clock, clock, given.against)
    known: dict[str, dict[str, Any]] = {}
    if given.json is not None and given.json.exists():
        known = {one["name"]: one for one in json.loads(given.json.read_text("utf-8"))}
    wanted = given.only or list(ROWS)
    for name in wanted:
        there = known.get(name, {"ratio": None})
        if there["ratio"] is not None and there["bar"] == ROWS[name].bar and not given.again:
            continue
        known[name] = asdict(line(ROWS[name], measure))
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            rows = [known[each] for each in ROWS if each in known]
            given.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    show([known[name] for name in wanted])
    return 0 if all(known[name]["met"] for name in wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
