from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from clusters import Start, below, run, wait_for

pytest.importorskip("ray.data", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

SMALL = ("--targets", "a-finance", "--defenses", "undefended,self_reminder,alignbeam", "--data",
         "harmful-plain,harmless", "--limit", 8)  # fmt: skip


def answers(folder: Path) -> list[dict[str, Any]]:
    """Every line, sorted. The last digits of probabilities in a trace depend on what else was in the batch."""
    lines = (folder / "answers.jsonl").read_text("utf-8").splitlines()
    found = [{name: value for name, value in json.loads(line).items() if name != "trace"} for line in lines]
    return sorted(found, key=str)


def tables(folder: Path) -> list[bytes]:
    """What depends on the answers alone, and not on the time that they took."""
    return [(folder / name).read_bytes() for name in ("tables.json", "tables.md", "tables.tex")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "alone"
    done = run("compare", "--out", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_workers_come_to_the_same_answers_and_tables_as_one_process(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    done = run("compare", "--out", folder, *SMALL, "--ray", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert answers(folder) == answers(alone)
    assert tables(folder) == tables(alone)


def test_a_comparison_whose_driver_was_killed_goes_on_and_loses_and_doubles_nothing(
    alone: Path, tmp_path: Path, start: Start
) -> None:
    folder, log = tmp_path / "ray", tmp_path / "log"
    what = ("compare", "--out", folder, *SMALL, "--ray", "--workers", 2)
    driver = start("anchorlm", *what, log=log)
    file = folder / "answers.jsonl"
    wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") >= 4, log)
    left = below(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in left), log)
    before = file.read_bytes()
    assert 4 <= before.count(b"\n") < len(answers(alone))
    done = run(*what)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes().startswith(before)
    assert answers(folder) == answers(alone)
    probes = [json.loads(line)["defense"] for line in (folder / "probes.jsonl").read_text("utf-8").splitlines()]
    assert len(probes) == len(set(probes))
