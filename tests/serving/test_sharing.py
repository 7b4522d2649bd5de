from __future__ import annotations

from pathlib import Path

import pytest
from factories import tiny_tokenizer, tiny_weights

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard, Recipe
from anchorlm.team import EngineSettings, Started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_weights("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_guards_that_start_together_load_equal_models_once(folder: Path) -> None:
    started: Started = []
    recipe = {"target": str(folder), "defense": "undefended", "generation": {"max_new_tokens": 6}}
    first = Guard.from_recipe(Recipe.parse(recipe, where="a test"), started=started)
    guided = recipe | {"defense": "alignbeam", "anchor": str(folder), "judge": {"kind": "refusal"}}
    second = Guard.from_recipe(Recipe.parse(guided, where="a test"), started=started)
    roomier = Guard.from_recipe(Recipe.parse(recipe | {"engine": {"max_rows": 3}}, where="a test"), started=started)
    apart = Guard.from_recipe(Recipe.parse(recipe, where="a test"))
    assert first.defense.target is second.defense.target is second.defense.anchor
    engine = roomier.defense.target
    assert isinstance(engine, LocalEngine)
    assert engine is not first.defense.target
    assert engine.max_rows == 3
    assert engine.model is first.defense.target.model, "other limits, the same weights"
    assert apart.defense.target.model is not first.defense.target.model
    assert first.chat("bread").text == roomier.chat("bread").text == apart.chat("bread").text
    assert [limits for _, limits, _ in started] == [EngineSettings(), EngineSettings(max_rows=3)]
