from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from factories import tiny_model
from scenes import furnish, prompts, staged

from anchorlm.guard import Guard

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text("utf-8"), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text("utf-8"))
    heads = re.findall(r"(?m)^#+ (.+)$", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


PARTS = ((1, (2, 3, 4)), (0, (5, 6)))
"""Of the demo's cells `refused/complied/broken`: the part, and the columns, of harmful and of harmless prompts."""


def rows(page: str) -> list[list[str]]:
    lines = re.findall(r"(?m)^\|(.*)\|$", (ROOT / page).read_text("utf-8"))
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def span(figures: list[str]) -> str:
    least, most = min(figures, key=float), max(figures, key=float)
    return least if least == most else f"{least} to {most}"


def test_the_defense_in_the_documentation_works() -> None:
    names: dict[str, Any] = {"__name__": "documented"}
    exec(blocks("docs/add-a-defense.md", "python")[0], names)
    guard = Guard(tiny_model("llama"), names["Polite"], generation={"max_new_tokens": 4})
    response = guard.chat([{"role": "user", "content": "bread"}], knobs={"opening": "Well, "})
    assert response.trace[0].data == {"opening": "Well, "}
    assert len(response.token_ids) <= 4


ELSEWHERE = {"docs/vllm.md", "docs/ray.md"}
"""Pages about what runs in an environment of its own: `make test-vllm` sends such requests to a vLLM server, and
`make test-ray` runs the blocks."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and blocks(page, "python")])
def test_the_python_blocks_of_a_page_run_one_after_another(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "documented", **prompts()}
    for block in blocks(page, "python"):
        with staged(block, tmp_path, names) as code:
            exec(compile(code, page, "exec", dont_inherit=True), names)
    if page == "README.md":
        said = re.findall(r"(?m)^print\(.*\) +# (.*)$", blocks(page, "python")[0])
        out = capsys.readouterr().out.splitlines()
        assert len(out) == len(said) == 2
        assert all(line.startswith(start) for line, start in zip(out, said, strict=True))


def test_every_link_between_our_pages_leads_to_a_page_and_a_heading() -> None:
    for page in (ROOT / name for name in PAGES):
        for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            place = page.parent / link if link else page
            assert place.exists(), f"{page.name}: {link}"
            assert not heading or heading in anchors(place), f"{page.name}: {link}#{heading}"


def test_the_readme_sums_up_the_table_of_the_demo() -> None:
    demo = [row for row in rows("docs/demo.md") if row[0].startswith("a-")]
    summed = {row[0]: row[1:5] for row in rows("README.md") if row[0] in {row[1] for row in demo}}
    assert list(summed) == ["`undefended`", "`alignbeam`", "`inferaligner`", "`inferenceguard`"]
    for name, cells in summed.items():
        own = [row for row in demo if row[1] == name]
        assert len(own) == 3
        complied, refused = ([row[at].split("/")[part] for row in own for at in some] for part, some in PARTS)
        accuracy, ratio = ([row[at] for row in own] for at in (7, 8))
        shares = [f"{span(figures)} %" for figures in (complied, refused, accuracy)]
        assert cells == [*shares, "1" if name == "`undefended`" else f"{span(ratio)} times"]
