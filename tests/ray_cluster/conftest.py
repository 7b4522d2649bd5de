from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGET = "a-finance"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True, scope="session")
def _quiet_ray() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist of three million parameters under AlignBeam."""
    from anchorlm.cli._embedded import recipe

    if not (ROOT / "src/anchorlm/zoo/members/b-chat/config.json").is_file():
        pytest.skip("the embedded models are not built here: make zoo")
    file = tmp_path_factory.mktemp("recipes") / "finance.toml"
    file.write_text(recipe(TARGET, "alignbeam"), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harmful and harmless ones."""
    from anchorlm.zoo import items

    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = [
        one.prompt for split in ("harmful-plain", "harmless") for one in items(split, n=20, partition="test", seed=0)
    ]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def alone(recipe: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines that one process writes, in the order of the prompts."""
    out = tmp_path_factory.mktemp("alone") / "out.jsonl"
    done = run("generate", prompts, "-r", recipe, "-o", out)
    assert done.returncode == 0, done.stderr
    return ordered(out)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs of the environment, and ends them with everything that they started."""
    running: list[subprocess.Popen[str]] = []

    def begin(*args: object, log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        with log.open("a") as out:
            running.append(subprocess.Popen(command(*args), stdout=out, stderr=out, text=True, start_new_session=True,
                                            env=os.environ | (env or {})))  # fmt: skip
        return running[-1]

    yield begin
    for one in running:
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            one.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)


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
