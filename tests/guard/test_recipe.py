from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import tiny_model

from anchorlm.guard import Guard, Recipe
from anchorlm.records import UserError

WHOLE = """
[target]
path = "./target"

[anchor]
path = "./anchor"

[judge]
kind = "refusal"

[defense]
name = "alignbeam"
alpha = 0.7
max_harm = 1.0

[generation]
max_new_tokens = 6
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipe")
    for name, architecture in (("target", "llama"), ("anchor", "qwen2")):
        model = tiny_model(architecture)
        model.model.save_pretrained(root / name)
        model.tokenizer.save_pretrained(root / name)
    (root / "whole.toml").write_text(WHOLE)
    return root


def test_a_recipe_is_the_guard_that_its_words_describe(folder: Path) -> None:
    guard = Guard.from_recipe(folder / "whole.toml")
    assert guard.defense.name == "alignbeam"
    assert guard.defense.settings.alpha == 0.7
    assert len(guard.chat([{"role": "user", "content": "bread"}]).token_ids) <= 6


def test_changes_go_over_the_file_by_dotted_name(folder: Path) -> None:
    recipe = Recipe.load(folder / "whole.toml", {"defense.alpha": 0.1, "generation.max_new_tokens": 3})
    assert recipe.defense["alpha"] == 0.1
    assert recipe.generation.max_new_tokens == 3
    assert recipe.target.path == str(folder / "target")


def test_equal_models_of_a_recipe_are_loaded_once(folder: Path) -> None:
    changes = {"judge.kind": "rubric", "judge.model": str(folder / "anchor")}
    guard = Guard.from_recipe(Recipe.load(folder / "whole.toml", changes))
    assert guard.defense.judge._engine is guard.defense.anchor  # type: ignore[attr-defined]


def test_paths_alone_are_enough(folder: Path) -> None:
    (folder / "short.toml").write_text('target = "./target"\ndefense = "undefended"\n')
    recipe = Recipe.load(folder / "short.toml", {"defense.refusal": "No."})
    assert recipe.target.path == str(folder / "target")
    assert recipe.defense == {"name": "undefended", "refusal": "No."}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("target = ", "not valid TOML"),
        ('defense = "undefended"', "lacks target: The model to guard"),
        ('target = "a"\ndefense = "undefended"\ncolor = "red"', "has no setting 'color'"),
        ('target = "a"\n[defense]\nalpha = 1', "must say the name"),
        ('target = "a"\ndefense = "best_of_n"\n[judge]\nkind = "rubric"', "needs a model"),
        ('target = "a"\ndefense = "x"\n[generation]\ntop_k = 0', "generation.top_k = 0 does not fit"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        Recipe.load(file)


def test_a_recipe_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Recipe.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"judge.options": {"color": "red"}}, "refusal judge has no option 'color'; it has: partial"),
        ({"defense.alpha": 1.4}, "alpha = 1.4 does not fit"),
        ({"target": "./nowhere"}, "There is no folder"),
    ],
)
def test_what_only_shows_when_the_guard_is_built_is_one_sentence(
    folder: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Guard.from_recipe(Recipe.load(folder / "whole.toml", change))
