from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clusters import ROOT, Start, command, ordered, run

TARGET = "a-finance"


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
