from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anchorlm.evaluation import CompareRecipe, compare, figures, summary, write_report
from anchorlm.evaluation.runs._stored import ANSWERS

VOID = {"meta", "link", "br", "input", "hr", "img"}


class _Page(HTMLParser):
    """Whether every element is closed, and what scripts hold."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # SVG's

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


@pytest.fixture
def run(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    return compare(CompareRecipe.load(write_recipe(), limit=1), tmp_path / "run")


def test_a_report_is_one_small_file_that_needs_no_network(run: Path) -> None:
    text = write_report(run).read_text("utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(text) < 3_000_000
    assert not re.search(r"""(src|href)\s*=|@import|url\(|https?://""", text)
    assert "<!--put:" not in text
    assert len(json.loads(page.scripts[0])) == len((run / ANSWERS).read_text("utf-8").splitlines())
    assert summary(figures(run)).split(";")[0].split("%")[0] in text


@pytest.mark.parametrize(("kept", "told"), [("harmful", "No harmless prompts or tasks"), ("harmless", "No harmful")])
def test_a_run_that_asked_one_side_only_shows_no_trade_off(run: Path, kept: str, told: str) -> None:
    rows = [json.loads(line) for line in (run / ANSWERS).read_text("utf-8").splitlines()]
    assert "to show.</p>" not in write_report(run).read_text("utf-8")
    some = [row for row in rows if (row["kind"] == "harmful") == (kept == "harmful")]
    assert some
    (run / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in some), "utf-8")
    assert f"<p>{told}" in write_report(run).read_text("utf-8")


def test_what_models_say_cannot_leave_its_place(run: Path) -> None:
    evil = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)>"
    records = [json.loads(line) for line in (run / ANSWERS).read_text("utf-8").splitlines()]
    for record in records:
        record["text"] = evil
        record["prompt"][-1]["content"] = evil
        record["grades"] = {"refusal": "broken", "words": "refused"}  # so that they stand among the disagreements, too
    (run / ANSWERS).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    page = _Page()
    page.feed(write_report(run).read_text("utf-8"))
    assert page.open == []
    assert len(page.scripts) == 2
    assert {one["text"] for one in json.loads(page.scripts[0])} == {evil}


def test_a_report_of_a_large_run_stays_small_and_shows_every_cell(run: Path) -> None:
    records = [json.loads(line) for line in (run / ANSWERS).read_text("utf-8").splitlines()]
    with (run / ANSWERS).open("w", encoding="utf-8") as file:
        for number in range(40):
            for record in records:
                file.write(json.dumps(record | {"case": str(number), "text": "日本<" * 4000}) + "\n")
    path = write_report(run)
    assert path.stat().st_size < 3_000_000
    page = _Page()
    page.feed(path.read_text("utf-8"))
    shown = {(one["defense"], one["data"], one["attack"]) for one in json.loads(page.scripts[0])}
    assert shown == {(one["defense"], one["data"], one["attack"]) for one in records}
