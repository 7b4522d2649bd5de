"""No instrument may choose and grade, and a guard that fails its probe is a result."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fitting.conftest import HARMFUL, HARMLESS

from anchorlm.defenses.inferaligner import fit_inferaligner, save_artifact
from anchorlm.evaluation import CompareRecipe, compare, figures
from anchorlm.evaluation.reports._tables import notes
from anchorlm.evaluation.runs._contestants import Contestant, Pool
from anchorlm.evaluation.runs._exclusion import _is_among, chosen_by
from anchorlm.guard import Guard
from anchorlm.records import UserError

pytestmark = pytest.mark.slow

Write = Callable[..., Path]


# --- what chose does not grade ----------------------------------------------------------------------------------------


def steered(write_recipe: Write, folder: Path, graders: str) -> CompareRecipe:
    file = write_recipe(
        **{
            'name = "self_reminder"': f'name = "inferaligner"\nartifact = "{folder}"',
            '["refusal", "words"]': graders,
            'judge = { kind = "refusal", options = { partial = "refused" } }':
                'judge = { kind = "rubric", model = "{targets}" }'.replace("{targets}", str(folder.parent / "judge")),
        }
    )  # fmt: skip
    return CompareRecipe.load(file, limit=1, timed=0, attacks=["none"])


@pytest.fixture
def artifact(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """An artifact for the recipe's target that says, or does not say, what it was made with."""
    made = fit_inferaligner(str(model), str(model), HARMFUL, HARMLESS)

    def save(instruments: dict[str, str] | None) -> Path:
        data = {name: one for name, one in made.data.items() if name != "instruments"}
        data |= {} if instruments is None else {"instruments": instruments}
        return save_artifact(replace(made, data=data), tmp_path / "fitted" / "a")

    return save


def test_what_fitted_or_calibrated_a_defense_does_not_grade_it(
    write_recipe: Write, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    judge = tmp_path / "fitted" / "judge"
    judge.mkdir(parents=True)
    for number, made in enumerate(
        (None, {"sign": "refusal-matcher"}, {"sign": "refusal-openings", "calibration": "refusal-matcher"})
    ):
        recipe = steered(write_recipe, artifact(made), '["refusal"]')
        with pytest.raises(UserError, match="No one may grade reminded.*nor what its artifacts were made with.*judge"):
            compare(recipe, tmp_path / f"run{number}")
    recipe = steered(write_recipe, artifact({"calibration": f"judge:rubric:{judge}/"}), '["words"]')
    with pytest.raises(UserError, match="No one may grade reminded"):
        compare(recipe, tmp_path / "other")


@pytest.mark.parametrize("grader", ["english", "harm"])
def test_a_grader_with_the_refusal_matcher_in_it_does_not_grade_what_that_chose(
    write_recipe: Write, artifact: Callable[..., Path], tmp_path: Path, grader: str
) -> None:
    (tmp_path / "fitted" / "judge").mkdir(parents=True)
    for number, made in enumerate(({"sign": "refusal-matcher"}, {"calibration": "judge:english"})):
        recipe = steered(write_recipe, artifact(made), f'["{grader}"]')
        with pytest.raises(UserError, match="No one may grade reminded"):
            compare(recipe, tmp_path / f"run{number}")
    folder = compare(steered(write_recipe, artifact({"sign": "refusal-openings"}), f'["{grader}"]'), tmp_path / "run")
    assert {row.grader for row in figures(folder).rows} == {grader}


def test_a_fit_as_it_is_now_leaves_the_refusal_matcher_to_grade_and_the_run_says_what_chose(
    write_recipe: Write, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    folder = compare(steered(write_recipe, artifact({"sign": "refusal-openings"}), '["refusal"]'), tmp_path / "run")
    about = json.loads((folder / "recipe.json").read_text())
    assert about["instruments"] == {"undefended": [], "reminded": ["refusal-openings"]}
    found = figures(folder)
    assert found.biased == []
    about.pop("instruments")  # as an older run
    (folder / "recipe.json").write_text(json.dumps(about))
    assert figures(folder).biased == ["reminded"]
    assert any("also chose when its artifact was made" in note for note in notes(figures(folder)))


# --- guards are tried -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_guard_that_fails_its_probe_is_a_result_and_no_end(
    write_recipe: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    caplog.set_level(logging.WARNING)
    recipe = CompareRecipe.load(write_recipe(**{"run = false": "run = true"}), limit=1, timed=0, attacks=["none"])
    folder = compare(recipe, tmp_path / "run", workers=workers)
    found = figures(folder)
    assert found.done == found.expected
    assert [(one["target"], one["defense"]) for one in found.probes] == [("small", "reminded"), ("small", "undefended")]
    assert any(note.startswith("Probe: reminded on small does not refuse its harmful probe") for note in notes(found))
    assert not any("Probe: undefended" in note and "harmful" in note for note in notes(found))
    assert any("reminded on small does not refuse" in record.getMessage() for record in caplog.records)
    before = (folder / "probes.jsonl").read_bytes()
    compare(recipe, folder, workers=workers)
    assert (folder / "probes.jsonl").read_bytes() == before, "nothing was left to answer, so no one is tried again"


def test_whether_guards_are_tried_changes_no_answer(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe()
    assert CompareRecipe.load(file).digest == CompareRecipe.load(file, probe={"harmful": "Other words"}).digest


def test_a_guard_names_all_that_has_decided_for_it(model: Path, artifact: Callable[..., Path]) -> None:
    folder = str(artifact({"sign": "refusal-openings", "calibration": "judge:rubric:org/judge"}))
    assert chosen_by(Guard(str(model), "inferaligner", artifact=folder)) == ["refusal-openings", "rubric:org/judge"]
    assert chosen_by(Guard(str(model), "best_of_n", judge="refusal")) == ["refusal-matcher"]
    assert chosen_by(Guard(str(model))) == []


def test_a_model_that_chose_does_not_grade_under_an_adapter_either() -> None:
    assert _is_among("model base", {"model base"})
    assert _is_among("model base adapter", {"model base"})
    assert not _is_among("model base2", {"model base"})
    assert not _is_among("refusal", {"model base"})


def test_artifacts_that_a_gate_finds_beside_its_target_are_known_as_those_that_are_named(
    write_recipe: Write, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = CompareRecipe.load(write_recipe(), limit=1)
    model = Path(next(iter(recipe.targets.values())).path)
    pool, home = Pool(recipe, tmp_path), model / "inferaligner"
    guided = Contestant("guided", "alignbeam", {}, None, None)
    assert pool.fitted(guided) == []
    shutil.copytree(artifact({"sign": "refusal-openings"}), home)
    try:
        assert pool.fitted(guided) == [str(home)]
        assert pool.fitted(replace(guided, knobs={"gate": "always"})) == []
        assert pool.fitted(replace(guided, knobs={"artifact": "./mine"})) == ["./mine"]
    finally:
        shutil.rmtree(home)
