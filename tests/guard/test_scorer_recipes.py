from __future__ import annotations

from pathlib import Path

import pytest
from factories import tiny_model

from anchorlm.defenses import BeamSearch, InferenceGuard, Undefended
from anchorlm.guard import Guard, Recipe, gaps, put
from anchorlm.judging import CallableJudge, JudgeScorer, RefusalMatcher, RemoteScorer
from anchorlm.records import Access, Messages, UserError
from anchorlm.team import ScorerSettings, build_scorer


def cost(messages: Messages, text: str) -> float:
    return -1.0


def write(folder: Path, cost: str) -> Path:
    file = folder / "my.toml"
    file.write_text(f'target = "./target"\n{cost}\n[defense]\nname = "inferenceguard"\ncritic = "./critic"\n')
    return file


def test_a_scorer_in_a_recipe_is_a_path_a_judge_or_an_address(tmp_path: Path) -> None:
    plain = Recipe.load(write(tmp_path, 'cost = "./scores"\nreward = "org/reward"'))
    assert plain.cost is not None
    assert plain.cost.model is not None
    assert plain.cost.model.path == str(tmp_path / "scores")
    assert plain.reward is not None
    assert plain.reward.model is not None
    assert plain.reward.model.path == "org/reward"
    assert plain.defense["critic"] == str(tmp_path / "critic")

    judged = Recipe.load(
        write(tmp_path, '[cost]\nkind = "judge"\noptions = {max_harm = 0.2}\n[cost.judge]\nkind = "refusal"')
    )
    assert judged.cost is not None
    scorer = build_scorer(judged.cost, RefusalMatcher())
    assert isinstance(scorer, JudgeScorer)
    assert scorer.settings["max_harm"] == 0.2

    remote = Recipe.load(
        write(tmp_path, '[cost]\nkind = "remote"\nurl = "http://localhost:1/x"\noptions = {timeout = 3}')
    )
    assert remote.cost is not None
    assert isinstance(build_scorer(remote.cost), RemoteScorer)


def test_single_values_open_a_section_that_was_a_path(tmp_path: Path) -> None:
    data = {"cost": "org/cost"}
    put(data, "cost.options.scale", -1)
    assert ScorerSettings.parse(data["cost"], where="cost").options == {"scale": -1}  # type: ignore[arg-type]


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    for section in ('[cost]\nkind = "remote"', '[cost]\nmodel = "x"\nurl = "http://x"', '[cost]\nkind = "judge"'):
        with pytest.raises(UserError, match="needs a model, a judge a judge"):
            Recipe.load(write(tmp_path, section))
    with pytest.raises(UserError, match="has no option 'sign'; it has: label, layout"):
        build_scorer(ScorerSettings.parse({"model": "x", "options": {"sign": -1}}, where="cost"))
    with pytest.raises(UserError, match="A int is no cost or reward model"):
        Guard(tiny_model("llama"), InferenceGuard, cost=5, reward=cost)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="wrong type"):
        build_scorer(
            ScorerSettings.parse({"kind": "remote", "url": "http://x", "options": {"timeout": "a"}}, where="c")
        )


def test_gaps_name_scorers_that_are_missing_or_superfluous() -> None:
    bare = {"target": Access.ACTIVATIONS, "anchor": None, "judge": False}
    assert len(gaps(InferenceGuard, **bare)) == 2  # type: ignore[arg-type]
    assert gaps(InferenceGuard, **bare, cost=True, reward=True) == []  # type: ignore[arg-type]
    assert gaps(InferenceGuard, **{**bare, "anchor": Access.LOGITS}, cost=True, reward=True) == []  # type: ignore[arg-type]
    assert "no use for an anchor" in gaps(BeamSearch, **{**bare, "anchor": Access.LOGITS}, cost=True, reward=True)[0]  # type: ignore[arg-type]
    assert "no use for a cost model" in gaps(Undefended, **bare, cost=True)[0]  # type: ignore[arg-type]


def test_a_judge_or_a_function_serves_as_a_cost() -> None:
    target = tiny_model("llama")
    for given in (cost, CallableJudge(lambda messages, text: 0.0)):
        guard = Guard(target, InferenceGuard, cost=given, reward=cost, generation={"max_new_tokens": 3})
        assert guard.chat("Hello?").finish_reason != "refusal"
