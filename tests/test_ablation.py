from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from anchorlm.records import wilson
from benchmarks._panels import panels
from benchmarks.ablation import END, START, insert, shares, verdict

DOCS = Path(__file__).resolve().parent.parent / "docs"


def measured(anchor: int, own: int, random: int) -> dict[str, Any]:
    """Figures in which so many of 100 prompts are refused with each kind of vector, at its better strength."""

    def curve(refused: int) -> dict[str, Any]:
        points = [
            {"alpha": alpha, **shares(["refused"] * hits + ["complied"] * (90 - hits) + ["broken"] * 10)}
            for alpha, hits in ((0.5, refused // 2), (1.0, refused))
        ]
        return {"layers": [0], "positions": "all", "points": points}

    curves = {"anchor": curve(anchor), "own": curve(own), "random 0": curve(0), "random 1": curve(random)}
    target = {"what": "tuned", "undefended": shares(["complied"] * 100), "cosines with own": [0.5], "curves": curves}
    return {"n": 100, "partition": "dev", "anchor": "a-chat", "targets": {"a-medicine": target}}


def test_shares_are_rates_with_their_intervals() -> None:
    found = shares(["refused", "broken", "refused", "complied"])
    assert {name: one["rate"] for name, one in found.items()} == {"refused": 0.5, "complied": 0.25, "broken": 0.25}
    assert (found["refused"]["low"], found["refused"]["high"]) == wilson(2, 4)


@pytest.mark.parametrize(
    ("anchor", "own", "random", "says"),
    [
        (80, 20, 10, ("the claim holds", "refuse more often than random")),
        (20, 80, 10, ("the claim does not hold", "refuse not surely more often than random")),
        (50, 45, 50, ("the figures do not decide", "refuse not surely more often than random")),
    ],
)
def test_the_verdict_says_what_the_intervals_say(anchor: int, own: int, random: int, says: tuple[str, str]) -> None:
    text = verdict(measured(anchor, own, random))
    assert all(words in text for words in says)
    for name, hits in (("the anchor's", anchor), ("its own", own), ("best random", random)):
        [row] = [line for line in text.splitlines() if f"| {name} |" in line]
        assert f"| 1 | {hits} (" in row


def test_the_verdict_takes_the_place_of_the_last_one() -> None:
    page = f"before\n{START}\nold\n{END}\nafter\n"
    once = insert(page, "new")
    assert once == f"before\n{START}\nnew\n{END}\nafter\n"
    assert insert(once, "new") == once


def test_the_picture_is_well_formed() -> None:
    root = ElementTree.fromstring(panels(measured(80, 20, 10)))
    assert root.tag.endswith("svg")


def test_the_page_says_what_the_figures_say() -> None:
    file, page = DOCS / "inferaligner-ablation.json", (DOCS / "inferaligner-measurements.md").read_text("utf-8")
    assert page.count(START) == page.count(END) == 1
    if file.is_file():
        assert insert(page, verdict(json.loads(file.read_text("utf-8")))) == page
