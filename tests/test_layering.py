from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def test_imports_only_go_down() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_outside_the_zoo_and_the_command_line_knows_the_embedded_models() -> None:
    for file in (ROOT / "src/anchorlm").rglob("*.py"):
        room = file.relative_to(ROOT / "src/anchorlm").parts[0]
        if room not in ("zoo", "cli"):
            assert "anchorlm.zoo" not in file.read_text("utf-8"), file
