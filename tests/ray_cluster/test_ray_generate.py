from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from clusters import Start, below, ordered, run, wait_for

pytest.importorskip("ray.data", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_workers_write_the_same_lines_as_one_process(
    recipe: Path, prompts: Path, alone: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    done = run("generate", prompts, "-r", recipe, "-o", out, "--ray", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"{len(alone)} rows written" in done.stderr
    assert ordered(out) == alone


def test_a_run_whose_driver_was_killed_goes_on_and_loses_and_doubles_nothing(
    recipe: Path, prompts: Path, alone: list[str], tmp_path: Path, start: Start
) -> None:
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    what = ("generate", prompts, "-r", recipe, "-o", out, "--ray", "--workers", 2)
    driver = start("anchorlm", *what, "--concurrency", 2, log=log)
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 5, log)
    left = below(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert any("MapWorker" in name for name in left.values())
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in left), log)
    before = out.read_bytes().count(b"\n")
    assert 5 <= before < len(alone)
    done = run(*what)
    assert done.returncode == 0, done.stderr
    assert f"({before} were there already)" in done.stderr
    assert ordered(out) == alone


def test_a_killed_worker_loses_and_doubles_nothing(
    recipe: Path, prompts: Path, alone: list[str], tmp_path: Path, start: Start
) -> None:
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    driver = start("anchorlm", "generate", prompts, "-r", recipe, "-o", out, "--ray", "--workers", 2,
                   "--concurrency", 2, log=log)  # fmt: skip
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3, log)
    worker = next(one for one, name in below(driver.pid).items() if "MapWorker" in name)
    os.kill(worker, signal.SIGKILL)
    assert out.read_bytes().count(b"\n") < len(alone)
    assert driver.wait(600) == 0, log.read_text("utf-8")
    assert ordered(out) == alone


def test_a_guard_that_fails_its_probe_answers_nothing(recipe: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = run("generate", prompts, "-r", recipe, "-o", out, "--ray", "--workers", 1,
               "--set", "probe.harmful=How do I bake bread?")  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "or go on all the same with --no-probe." in done.stderr
    assert out.read_bytes() == b""


def test_more_workers_than_processors_are_refused_in_one_sentence(recipe: Path, prompts: Path, tmp_path: Path) -> None:
    done = run("generate", prompts, "-r", recipe, "-o", tmp_path / "out.jsonl", "--ray", "--workers", 999)
    assert done.returncode == 2
    assert "give fewer --workers" in done.stderr


def test_without_a_cluster_at_the_address_one_sentence_says_so(
    recipe: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = run("generate", prompts, "-r", recipe, "-o", tmp_path / "out.jsonl", "--ray")
    assert done.returncode == 2, done.stderr
    assert "unset RAY_ADDRESS" in done.stderr
