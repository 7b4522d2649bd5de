"""Programs that run a Ray, and what they have started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Start = Callable[..., "subprocess.Popen[str]"]


def command(name: object, *args: object) -> Sequence[str]:
    return [str(Path(sys.executable).with_name(str(name))), *map(str, args)]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command("anchorlm", *args), capture_output=True, text=True, timeout=600)


def ordered(file: Path) -> list[str]:
    """The lines of a file of answers in the order of the prompts: they are written in the order in which they come."""
    return sorted(file.read_text("utf-8").splitlines(), key=lambda line: int(json.loads(line)["index"]))


def wait_for(what: Callable[[], Any], log: Path, seconds: float = 240.0) -> Any:
    """What is found at last, unless a program has failed before."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, log.read_text("utf-8")[-3_000:]
        time.sleep(0.2)
    return found


def below(process: int) -> dict[int, str]:
    """What a process started, and what these started, by their numbers, with their names."""
    found: dict[int, str] = {}
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ").strip()

    def belongs(one: int) -> bool:
        while one in parents and one != process:
            one = parents[one]
        return one == process

    return {one: name for one, name in found.items() if one != process and belongs(one)}
