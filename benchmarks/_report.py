from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

FOLDER = Path("build/bench")


def alternate(runs: int, *functions: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each function, run in turn so that a drifting machine hits all alike. One warm-up turn."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(runs + 1):
        for index, function in enumerate(functions):
            start = perf_counter()
            function()
            if turn:
                times[index].append(perf_counter() - start)
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def report(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table and keeps it, with the machine's particulars, under build/bench."""
    table = Table(title=name)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console(width=140).print(table)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    (FOLDER / f"{name.replace(' ', '-')}.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
