from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "anchorlm"


@pytest.mark.slow
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


MOST = {"alignbeam": 6, "inferaligner": 10, "inferenceguard": 10}
"""Files that you read from the settings of a method to its answer."""


@pytest.mark.parametrize("method", MOST)
def test_the_architecture_names_every_file_of_a_method_and_few_for_its_answer(method: str) -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    row = re.search(rf"(?m)^\| `anchorlm\.defenses\.{method}` \| (.*) \| (.*) \|$", text)
    assert row is not None
    answer, fitting = (set(re.findall(r"`(\w+)`", cell)) for cell in row.groups())
    folder = SOURCES / "defenses" / method
    assert answer | fitting == {file.stem for file in folder.glob("_[a-z]*.py")}
    assert len(answer) <= MOST[method]


def imports() -> dict[str, set[str]]:
    """The modules that each module imports, for types too; packages give names on, and do not count."""
    files = {".".join(("anchorlm", *file.relative_to(SOURCES).with_suffix("").parts)): file for file in
             SOURCES.rglob("*.py") if file.name != "__init__.py"}  # fmt: skip
    return {
        name: {
            node.module
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module in files
        }
        for name, file in files.items()
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = imports()
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, sorted(left)


def test_the_package_holds_no_code_that_trains_the_embedded_models_and_no_log_of_it() -> None:
    assert not list(SOURCES.rglob("build_log*"))
    for file in SOURCES.rglob("*.py"):
        text = file.read_text("utf-8")
        assert "import tools" not in text, file
        assert "from tools" not in text, file
    for file in (SOURCES / "zoo").rglob("*.py"):
        assert "torch" not in file.read_text("utf-8"), file
