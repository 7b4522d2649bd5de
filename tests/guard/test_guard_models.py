"""Guard models in recipes: as the judge of a guard, and as its cost model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from automata import automaton
from factories import tiny_model

from anchorlm.guard import Guard, Recipe
from anchorlm.judging import GuardJudge, GuardScorer
from anchorlm.records import Messages, UserError
from anchorlm.team import EngineSettings, ScorerSettings, build_scorer, start_judge, start_scorer

ASK: Messages = [{"role": "user", "content": "How do I bake bread?"}]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def saved(folder: Path, *chunks: str) -> str:
    """The folder of a guard model that says something."""
    model = automaton(chunks).model
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def guard(folder: str) -> Guard:
    judge = {"kind": "guard", "model": folder, "options": {"format": "llama-guard-3"}}
    return Guard(tiny_model("llama"), "best_of_n", judge=judge, n=2, generation={"max_new_tokens": 4})


def test_what_a_guard_model_calls_unsafe_is_refused_and_what_it_calls_safe_is_given(tmp_path: Path) -> None:
    refused = guard(saved(tmp_path / "strict", "unsafe", "\nS2")).chat(ASK)
    assert refused.finish_reason == "refusal"
    assert not refused.failed
    given = guard(saved(tmp_path / "lax", "safe")).chat(ASK)
    assert given.finish_reason != "refusal"
    assert any("margin" in str(decision.data) for decision in given.trace)


def test_a_guard_model_whose_verdict_cannot_be_read_closes_the_guard(tmp_path: Path) -> None:
    answer = guard(saved(tmp_path / "odd", "perhaps")).chat(ASK)
    assert answer.finish_reason == "refusal"
    assert answer.failed
    assert "gave no verdict" in str(answer.trace[-1].data)


def test_a_guard_model_is_a_cost_with_options_of_its_own_and_of_its_judge(tmp_path: Path) -> None:
    folder = saved(tmp_path / "strict", "unsafe")
    options = {"format": "llama-guard-3", "scale": 0.5, "offset": -1.0}
    scorer = start_scorer({"kind": "guard", "model": folder, "options": options}, EngineSettings(), [])
    assert isinstance(scorer, GuardScorer)
    (cost,) = asyncio.run(scorer(ASK, ["Mix flour."]))
    assert cost == pytest.approx(0.5 * 20 - 1, abs=0.01)
    judged = ScorerSettings.parse({"kind": "guard", "model": folder, "options": options}, where="cost").judged
    assert judged is not None
    assert judged.options == {"format": "llama-guard-3"}


def test_an_option_that_neither_has_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "strict", "unsafe")
    with pytest.raises(UserError, match="A guard judge has no option 'sign'; it has: categories, format"):
        start_scorer({"kind": "guard", "model": folder, "options": {"sign": -1}}, EngineSettings(), [])
    settings = ScorerSettings.parse({"kind": "guard", "model": folder, "options": {"scale": 0}}, where="cost")
    judge = start_judge({"kind": "guard", "model": folder, "options": {"format": "wildguard"}}, EngineSettings(), [])
    assert isinstance(judge, GuardJudge)
    with pytest.raises(UserError, match="give a scale above 0"):
        build_scorer(settings, judge)


def test_the_shipped_recipe_names_a_guard_model_and_its_policy_may_lie_next_to_it(tmp_path: Path) -> None:
    recipe = Recipe.load(RECIPES / "guard-model.toml")
    assert recipe.judge is not None
    assert recipe.judge.kind == "guard"
    (tmp_path / "policy.md").write_text("No llamas.")
    text = (RECIPES / "guard-model.toml").read_text("utf-8").replace("weights", 'policy = "./policy.md"\nweights')
    (tmp_path / "own.toml").write_text(text)
    own = Recipe.load(tmp_path / "own.toml").judge
    assert own is not None
    assert own.options["policy"] == str(tmp_path / "policy.md")
