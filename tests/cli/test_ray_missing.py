"""What you are told where Ray is not installed, or not asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOLD = "Ray is not installed, and this needs it: pip install 'anchorlm[ray]'."

WITHOUT = "import sys\nsys.modules['ray'] = None\n"
"""As Python marks a module that is not there."""


def without_ray(code: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = f"{WITHOUT}sys.argv[0] = 'anchorlm'\n{code}"
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ("generate", "rows.jsonl", "--target", "./model", "--defense", "undefended", "--ray"),
        ("compare", "--out", "run", "--ray"),
    ],
    ids=lambda args: args[0],
)
def test_a_command_that_needs_ray_names_the_command_that_installs_it(args: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "How do I bake bread?"}\n')
    found = without_ray("from anchorlm.cli import main; main()", *args, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (2, f"anchorlm: {TOLD}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_ray_what_is_for_ray_names_the_command_that_installs_it(tmp_path: Path) -> None:
    code = (
        "from anchorlm.records import UserError\n"
        "try:\n    from anchorlm.ray import app\nexcept UserError as error:\n    print(error)"
    )
    found = without_ray(code, cwd=tmp_path)
    assert found.stdout.strip() == TOLD, found.stderr


@pytest.mark.slow
def test_workers_without_ray_are_refused(tmp_path: Path) -> None:
    code = "from anchorlm.cli import main; main()"
    args = ("generate", "rows.jsonl", "--target", "./model", "--defense", "undefended", "--workers", "2")
    found = without_ray(code, *args, cwd=tmp_path)
    assert found.returncode == 2
    assert "--workers goes with --ray" in found.stderr


@pytest.mark.slow
def test_a_ray_without_its_parts_names_the_command_that_installs_them(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    code = (
        "from anchorlm.ray._pool import shared\n"
        "from anchorlm.records import UserError\n"
        "try:\n    next(shared([1], None, None))\nexcept UserError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    told = "Ray lacks parts that this needs (No module named 'ray.data'): pip install 'anchorlm[ray]'."
    assert found.stdout.strip() == told, found.stderr
