"""The pages for those who change the code: names, links, and what the checks of a commit are."""

from __future__ import annotations

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from tools.site import DOCS, within

ROOT = Path(__file__).resolve().parent.parent

PAGES = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")),
    *(DOCS / name for name in ("index.md", "architecture.md")),
    *sorted((DOCS / "decisions").glob("*.md")),
]


def resolved(name: str) -> object:
    """What a dotted name stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(name)


def names() -> list[str]:
    return sorted({name for page in PAGES for name in re.findall(r"`(anchorlm\.[\w.]+)`", page.read_text("utf-8"))})


def test_there_are_names_to_check() -> None:
    assert len(names()) > 60


@pytest.mark.parametrize("name", names())
def test_a_name_in_the_architecture_or_a_decision_exists(name: str) -> None:
    if name == "anchorlm.defenses":  # the entry-point group, too
        assert f'entry-points."{name}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert resolved(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_every_source_file_that_a_page_names_exists() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    named = {file for page in pages for file in re.findall(r"`(src/anchorlm/[\w/]+\.py)`", page.read_text("utf-8"))}
    assert named
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []


def test_every_page_stands_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_links_out_of_the_documentation_are_words_on_the_site_and_broken_ones_stay() -> None:
    page = DOCS / "decisions" / "slots.md"
    text = (
        "[all](../../README.md#top) [in](../engine.md) [`README.md`](../../README.md) [no](../../NO.md) ![p](../p.png)"
    )
    assert within(text, page) == "all (`README.md`) [in](../engine.md) `README.md` [no](../../NO.md) ![p](../p.png)"


def test_pre_commit_and_the_workflow_run_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert recipe is not None
    linted = [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert hooks == linted
    workflow = (ROOT / ".github/workflows/test.yml").read_text("utf-8")
    assert re.findall(r"- run: (.+)", workflow) == ["make lint", "make test", "make docs"]


def test_the_workflow_tests_every_python_that_the_package_names() -> None:
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert re.findall(r'"(3\.\d+)"', (ROOT / ".github/workflows/test.yml").read_text("utf-8"))[: len(named)] == named
