from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

Invoke = Callable[..., Result]

ROOT = Path(__file__).resolve().parents[2]


def test_the_recipes_are_listed_and_printed_as_they_are(invoke: Invoke) -> None:
    files = sorted((ROOT / "recipes").glob("*.toml"))
    listed = invoke("recipe").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [file.stem for file in files]
    assert all(len(line.split()) > 3 for line in listed)
    for file in files:
        assert invoke("recipe", file.stem).stdout == file.read_text("utf-8")


def test_an_unknown_recipe_is_a_sentence_that_names_the_others(invoke: Invoke) -> None:
    result = invoke("recipe", "nowhere")
    assert result.exit_code == 2
    assert "There is no recipe 'nowhere'; choose one of blocks, compare," in result.stderr


def test_the_wheel_brings_every_recipe_and_the_readme_links_only_to_the_network() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"recipes": "anchorlm/recipes"}
    hook: dict[str, Any] = {}
    source = (ROOT / "hatch_build.py").read_text("utf-8")
    exec(re.sub(r"(?s)from hatchling.*?\n\n\nclass.*?\n\n\n", "", source), hook)
    text = hook["without_links"]((ROOT / "README.md").read_text("utf-8"))
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", text))
    assert "AlignBeam (`docs/alignbeam.md`)" in text
