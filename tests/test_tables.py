"""Tables of README and documentation that are written from the code are as the code says now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anchorlm.defenses import AlignBeamSettings
from tools.tables import ROOT, SPAN, pages, written

WRITTEN = {
    "README.md": ["demo"],
    "docs/alignbeam.md": ["knobs alignbeam"],
    "docs/inferaligner.md": ["knobs inferaligner"],
    "docs/inferenceguard.md": ["knobs inferenceguard"],
    "docs/command-line.md": ["commands"],
    "docs/engine.md": ["settings anchorlm.team:EngineSettings"],
    "docs/serving.md": ["settings anchorlm.serving:ServerSettings"],
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_as_the_code_says(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text == written(text), "run `make docs-tables`"


@pytest.mark.parametrize("page", WRITTEN)
def test_a_page_holds_the_tables_that_are_promised(page: str) -> None:
    assert [span[2] for span in SPAN.finditer((ROOT / page).read_text("utf-8"))] == WRITTEN[page]


def test_every_comment_that_begins_a_table_belongs_to_one() -> None:
    for page in pages():
        text = page.read_text("utf-8")
        assert text.count("<!-- table:") == text.count("<!-- end of table -->") == len(SPAN.findall(text)), page


def test_a_stale_table_is_seen() -> None:
    page = "<!-- table: knobs alignbeam -->\n| knob |\n<!-- end of table -->\n"
    assert "| `alpha` | 0.5 | alpha |" in written(page)


def test_the_knobs_that_are_explained_step_by_step_have_their_defaults() -> None:
    text = (ROOT / "docs/guard-your-model.md").read_text("utf-8").partition("## The knobs")[2]
    rows = re.findall(r"(?m)^\| `(\w+)`[^|]* \| `?([^`|]+?)`? \|", text)
    assert [name for name, _ in rows] == ["alpha", "mixed_tokens", "candidates", "max_harm", "projection", "refusal"]
    for name, default in rows:
        known = str(AlignBeamSettings.model_fields[name].default)
        assert known == default or known.startswith(default.strip('".').removesuffix("..."))
