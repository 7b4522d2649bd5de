"""The plug-in in a vLLM that begins a step before it knows what the last one gave, and makes room for some requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_requests_that_are_scheduled_ahead_and_preempted_are_guided_as_alone(smollm2: Path, small_anchor: Path) -> None:
    environment = {**os.environ, "ANCHORLM_VLLM_ANCHOR": str(small_anchor), "VLLM_CPU_KVCACHE_SPACE": "1",
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # fmt: skip
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    script = Path(__file__).with_name("ahead_scenario.py")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(smollm2)], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("{"))
    found = json.loads(line)
    assert found["ahead"]
    assert found["preempted"] > 0
    assert found["together"] == found["alone"]
    assert "gets the refusal" not in ended.stderr
    guided = [n for n in range(8) if found["together"][n][:24] != found["plain"][n]]
    assert guided == [0, 1, 2, 4, 5, 6]
