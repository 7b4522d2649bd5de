"""How long you wait to be told that an argument is wrong: `python -m benchmarks.doors [--runs N]`.

Every process is started in turn. Each figure is a median. Processor time is that of the process, and drifts less than
the clock on a machine that does other things.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks._report import report

BARE, TORCH, BOTH = "import typer, rich, pydantic", "import torch", "import torch, transformers"

IMPORTS = ("import anchorlm", "import anchorlm.guard", "from anchorlm.guard import Guard")

KNOB = 'target = "./model"\n[defense]\nname = "alignbeam"\nalpha = 7\n'

COMMANDS = (
    ("generate", "--help"),
    ("generate", "nowhere.jsonl", "--target", "./no/such"),
    ("generate", "rows.jsonl", "--target", "./no/such"),
    ("generate", "rows.jsonl", "--recipe", "knob.toml"),
    ("check", "knob.toml"),
    ("grade", "nowhere.csv", "--text", "answer", "--output", "out.jsonl"),
    ("compare", "nowhere.toml", "--out", "run"),
    ("report", "nowhere"),
    ("serve", "knob.toml", "--port", "0"),
    ("fit", "inferaligner", "--harmful", "nowhere.txt", "--harmless", "rows.jsonl", "--out", "artifact"),
    ("demo", "--defenses", "magic"),
)


def spent(args: Sequence[str], folder: str) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    start = perf_counter()
    quiet = subprocess.DEVNULL
    # As where the library is installed: compiled once, and not for each process.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([sys.executable, "-c", *args], cwd=folder, env=kept, stdout=quiet, stderr=quiet)
    _, _, usage = os.wait4(process.pid, 0)
    return perf_counter() - start, usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints how many times `import torch` everything takes beyond the command line's own libraries."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args(argv).runs
    cases = {code: (code,) for code in (BARE, TORCH, BOTH, *IMPORTS)}
    started = "from anchorlm.cli import main; main()"
    cases |= {f"anchorlm {' '.join(args)}": (started, *args) for args in COMMANDS}
    with TemporaryDirectory() as folder:
        (Path(folder) / "rows.jsonl").write_text('{"prompt": "How do I bake bread?"}\n')
        (Path(folder) / "knob.toml").write_text(KNOB)
        turns = [{name: spent(args, folder) for name, args in cases.items()} for _ in range(runs + 1)][1:]
    clock, processor = ({name: median(turn[name][kind] for turn in turns) for name in cases} for kind in (0, 1))
    rows = [
        (name, clock[name], processor[name], *((each[name] - each[BARE]) / each[TORCH] for each in (clock, processor)))
        for name in cases
    ]
    columns = ("process", "s", "s of the processor", "beyond the bare, in torch", "the same of the processor")
    report("doors", columns, rows)


if __name__ == "__main__":
    main()
