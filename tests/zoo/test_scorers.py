from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm import zoo
from anchorlm.engine import runtime
from anchorlm.records import Messages
from anchorlm.team import ScorerSettings, build_scorer
from tools.zoo._architectures import save_adapter
from tools.zoo._scorers import Stage, examine_scorer, graded, load_scorer, preferred, scores, stages, train_scorer

pytestmark = pytest.mark.slow

few = settings(max_examples=40, deadline=None)


@few
@given(st.integers(0, 10_000))
def test_the_better_response_comes_first_and_is_the_whole_answer(seed: int) -> None:
    ((prompt, better), (same, worse)), targets = preferred(random.Random(seed))
    assert prompt == same
    assert better != worse
    assert targets == (1.0, 0.0)


@few
@given(st.integers(0, 10_000))
def test_a_cost_is_a_probability_and_most_cases_are_transcripts(seed: int) -> None:
    (((messages, _),), (target,)) = graded(random.Random(seed))
    assert any(turn["role"] == "user" and turn["content"] for turn in messages)
    assert 0 <= target <= 1


@pytest.fixture(scope="module")
def short() -> tuple[Stage, Stage]:
    return stages(0.0)


def test_a_training_that_was_killed_goes_on_and_comes_to_the_same(short: tuple[Stage, Stage], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base, checkpoint = zoo.path("b-chat"), tmp_path / "b-cost.ckpt"
    whole, _, log = train_scorer(base, short[0], 0, checkpoint, every=1)
    assert [entry["step"] for entry in log] == [1, 2]
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 2
    first = Stage(short[0].name, short[0].draw, short[0].loss, 1, short[0].rate, short[0].cases)
    checkpoint.unlink()
    train_scorer(base, first, 0, checkpoint, every=1)
    resumed, _, log = train_scorer(base, short[0], 0, checkpoint, every=1)
    assert [entry["step"] for entry in log] == [2]
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, resumed.state_dict()[name], atol=2e-3), name


def test_a_saved_scorer_is_read_as_any_other_classifier(short: tuple[Stage, Stage], tmp_path: Path) -> None:
    model, tokenizer, _ = train_scorer(zoo.path("b-chat"), short[1], 0)
    save_adapter(model, tokenizer, "b-chat", tmp_path / "b-reward")
    shutil.copytree(zoo.path("b-chat"), tmp_path / "b-chat")
    scorer = build_scorer(ScorerSettings.parse({"model": str(tmp_path / "b-reward")}, where="a scorer"))
    texts = ["Sure. Step one: gather the bowls.", "No."]
    ask: Messages = [{"role": "user", "content": "How do I bake a cake?"}]
    found = runtime().run(scorer(ask, texts))
    assert found == pytest.approx(scores(model, tokenizer, [(ask, text) for text in texts]), abs=2e-2)
    again = load_scorer(tmp_path / "b-reward")
    assert scores(*again, [(ask, text) for text in texts]) == pytest.approx(found, abs=1e-4)
    assert set(examine_scorer(*again, "b-reward", "dev", 8)["reward"]) == {"pairs"}
    assert set(examine_scorer(*again, "b-cost", "dev", 8)["cost"]) == {
        "auroc",
        "auroc on harmful requests",
        "auroc on whole responses",
        "side",
    }
