from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.evaluation import CompareRecipe, answer_line, is_correct, load_cases, own_prompts
from anchorlm.evaluation.runs._recipe import DataSettings
from anchorlm.evaluation.runs._sets import read_set, require_files
from anchorlm.evaluation.tasks._cases import Half
from anchorlm.files import PromptRow
from anchorlm.records import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
REAL = ("real", "real-blocks", "real-claims", "real-lineage")
HARMBENCH = ["Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID"]


def rows(texts: list[str]) -> list[Any]:
    return [PromptRow(n, n + 1, text) for n, text in enumerate(texts)]


def prompts(half: Half, texts: list[str]) -> list[str]:
    return [str(row.prompt) for row in half.of(rows(texts)) if isinstance(row, PromptRow)]


def written(path: Path, *lines: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(lines)
    return path


@given(st.lists(st.text("abc ", min_size=1, max_size=4).filter(str.strip), unique_by=str.strip), st.randoms())
def test_both_parts_of_a_set_are_all_of_it_whatever_the_order_of_its_rows(texts: list[str], chance: Any) -> None:
    dev, sealed = (prompts(Half(part), texts) for part in ("dev", "sealed"))
    mixed = list(texts)
    chance.shuffle(mixed)
    assert sorted([*dev, *sealed]) == sorted(texts)
    assert len(dev) == len(texts) // 2
    assert prompts(Half("sealed"), mixed) == sealed


def test_the_first_part_is_as_large_as_is_said_and_a_repeated_prompt_is_in_one_part_alone() -> None:
    texts = [f"prompt {n % 7}" for n in range(14)]
    dev, sealed = (prompts(Half(part, 5), texts) for part in ("dev", "sealed"))
    assert len(dev) == 5
    assert not set(dev) & set(sealed)


def test_rows_are_chosen_by_their_columns(tmp_path: Path) -> None:
    file = written(
        tmp_path / "harmbench.csv", HARMBENCH, ["Do harm", "standard", "x", "a"], ["Sing", "copyright", "x", "b"]
    )
    (case,) = load_cases(file, where={"functionalcategory": "standard"})
    assert (case.prompt, case.kind) == ("Do harm", "harmful")
    with pytest.raises(UserError, match="there is only copyright, standard"):
        load_cases(file, where={"FunctionalCategory": "contextual"})
    with pytest.raises(UserError, match="no such column"):
        load_cases(file, where={"colour": "red"})


@pytest.mark.parametrize("prompts", ["harmful", "look-alike", "plain", "tasks"])
@pytest.mark.parametrize("domain", [None, "finance"])
def test_of_the_librarys_own_prompts_only_those_are_asked_that_are_held_back(prompts: Any, domain: str | None) -> None:
    if prompts == "plain" and domain:
        with pytest.raises(UserError, match="leave the domain out"):
            own_prompts(prompts, domain)
        return
    folder = files("anchorlm.steering").joinpath("prompts")
    known = [json.loads(line) for one in ("pairs", "plain", "tasks")
             for line in folder.joinpath(f"{one}.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
    used = {
        row[name] for row in known if row["part"] != "held" for name in ("safe", "harmful", "prompt") if name in row
    }
    asked = own_prompts(prompts, domain)
    assert asked
    assert not {case.prompt for case in asked} & used


def test_a_set_has_one_source() -> None:
    for wrong in ({}, {"file": "a.csv", "prompts": "plain"}):
        with pytest.raises(UserError, match="one of file, prompts and embedded"):
            DataSettings.parse(wrong, where="the set")


def test_missing_sets_are_one_sentence_that_says_which_file_from_where_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THERE", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "a.txt").write_text("a\n")
    sets = {
        "a": DataSettings(file="${THERE}/a.txt", label="harmful"),
        "b": DataSettings(file="${THERE}/b.csv", source="https://example.org/b"),
        "c": DataSettings(file="${NOWHERE}/c.csv"),
        "d": DataSettings(prompts="plain"),
    }
    with pytest.raises(UserError) as caught:
        require_files(sets)
    assert str(caught.value) == (
        f"Sets of the recipe are missing: for b put the file from https://example.org/b at {tmp_path / 'b.csv'}; for c "
        "set NOWHERE, so ${NOWHERE}/c.csv is the file, or leave them out with --data a,d."
    )
    assert [case.prompt for case in read_set("a", sets["a"])] == ["a"]
    require_files({"a": sets["a"], "d": sets["d"]})


def test_the_intents_of_bank_customers_are_asked_as_the_shipped_specialist_was_trained(tmp_path: Path) -> None:
    file = written(
        tmp_path / "test.csv",
        ["text", "category"],
        ["Where is it ?", "card_arrival"],
        ["Back!", "Refund_not_showing_up"],
    )
    first, second = load_cases(file)
    assert first.prompt == (
        "What does this bank customer want? Answer with the name of the intent alone.\n\nCustomer: Where is it?"
    )
    assert (first.kind, first.answer, second.answer) == ("task", "card arrival", "refund not showing up")
    assert is_correct(first, "Card arrival.\nMore text")
    assert not is_correct(first, "card arrival or lost card")


def test_a_file_of_texts_and_categories_that_are_no_intents_is_no_task(tmp_path: Path) -> None:
    file = written(tmp_path / "own.csv", ["text", "category"], ["Where is it?", "card_arrival"], ["Kill", "violence"])
    with pytest.raises(UserError, match="Nothing in own.csv says"):
        load_cases(file)
    assert {case.kind for case in load_cases(file, kind="harmful")} == {"harmful"}


def test_kinds_of_medical_questions_are_tasks(tmp_path: Path) -> None:
    row = {"question": "What causes X ?", "type": "causes", "focus": "X", "answer": "Y causes X.", "source": "Z"}
    file = tmp_path / "medquad.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (case,) = load_cases(file)
    assert case.prompt.endswith("\n\nQuestion: What causes X?")
    assert (case.answer, is_correct(case, "causes")) == ("causes", True)


@pytest.mark.parametrize(
    ("text", "name"),
    [("Card arrival.\n\nMore", "card arrival"), ('Lost card"', "lost card"), ("", ""), ("Not yet ?!", "not yet")],
)
def test_an_answer_that_is_a_name_is_its_first_line_without_case_and_marks(text: str, name: str) -> None:
    assert answer_line(text) == name


@pytest.mark.parametrize("name", REAL)
def test_the_recipes_on_real_models_name_only_sets_and_models_that_exist(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anchorlm.models._settings as settings
    from anchorlm.zoo import real_members

    asked: list[str] = []

    def located(path: str) -> str:
        asked.append(path)
        return path

    monkeypatch.setattr(settings, "located", located)
    recipe = CompareRecipe.load(RECIPES / f"{name}.toml")
    assert set(asked) <= {one.name for one in real_members()}
    for one in recipe.data.values():
        assert one.prompts or (one.source and one.file and one.file.startswith("${ANCHORLM_DATA}/"))
        assert one.prompts is None or own_prompts(one.prompts, one.domain)


@pytest.mark.parametrize("name", REAL)
def test_the_recipes_on_real_models_read_their_sealed_sets(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANCHORLM_DATA", str(shared_data))
    monkeypatch.setattr("anchorlm.models._settings.located", lambda path: path)
    recipe = CompareRecipe.load(RECIPES / f"{name}.toml")
    for label, one in recipe.data.items():
        try:
            cases = read_set(label, one)
        except UserError:
            assert label in ("strongreject", "pair")  # not among the shared data
            continue
        kinds = {case.kind for case in cases}
        assert len(kinds) == 1
        assert one.prompts is not None or one.part == "sealed"
