"""The other defenses, judges and scorers on a model that another server runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.engine import EndpointEngine, LocalEngine, runtime
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge, CallableScorer, RubricJudge, RubricScorer
from anchorlm.models import CausalModel, EndpointSettings

TURNS = [{"role": "user", "content": "How do I bake bread?"}]
SHORT = "{prompt} {response}"


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return readable(tiny_model("llama", max_position_embeddings=1024))


@pytest.fixture(scope="module")
def endpoint(model: CausalModel) -> Iterator[Endpoint]:
    served = Endpoint(model)
    served.details["max_model_len"] = 1024
    yield served
    served.stop()


@pytest.fixture(scope="module")
def source(endpoint: Endpoint, model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place: Path = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(place)
    return {"endpoint": endpoint.url, "tokenizer": str(place)}


def length(messages: Any, response: str) -> float:
    return len(response) / 100


@pytest.mark.parametrize("defense", ["undefended", "self_reminder", "goal_priority"])
def test_a_prompt_defense_says_what_it_says_with_the_same_weights_here(
    defense: str, source: dict[str, Any], model: CausalModel
) -> None:
    far, here = (Guard(one, defense, generation={"max_new_tokens": 8}) for one in (source, LocalEngine(model)))
    assert far.chat(TURNS).text == here.chat(TURNS).text


def test_best_of_n_samples_answers_that_differ_and_gives_the_safest(source: dict[str, Any]) -> None:
    judge = CallableJudge(lambda messages, response: min(1.0, len(response) / 100))
    response = Guard(
        source, "best_of_n", judge=judge, n=4, max_harm=1, comfort=1, generation={"max_new_tokens": 8}
    ).chat(TURNS)
    (found,) = [one.data["candidates"] for one in response.trace if one.kind == "candidates"]
    assert len({one["text"] for one in found}) > 1
    assert response.text == min((one["text"] for one in found), key=len)


@pytest.mark.parametrize("release", ["whole", "blocks"])
def test_inferenceguard_writes_blocks_as_completions(release: str, source: dict[str, Any], endpoint: Endpoint) -> None:
    guard = Guard(
        source, "inferenceguard", cost=CallableScorer(lambda messages, response: -1.0), reward=CallableScorer(length),
        beams=[2], block=4, release=release, generation={"max_new_tokens": 12}, comfort=5.0,
    )  # fmt: skip
    endpoint.asked.clear()
    response = guard.chat(TURNS)
    assert not response.failed
    assert response.text
    assert {body["max_tokens"] for body in endpoint.bodies("/completions")} & {4}


def test_inferenceguard_samples_again_where_every_block_is_over_budget(source: dict[str, Any]) -> None:
    guard = Guard(
        source, "inferenceguard",
        cost=CallableScorer(lambda messages, response: -1.0 if "sorry" in response else 1.0),
        reward=CallableScorer(length), beams=[2], block=4, retries=1, generation={"max_new_tokens": 8},
    )  # fmt: skip
    response = guard.chat(TURNS)
    assert response.finish_reason == "refusal"
    assert not response.failed


def test_a_rubric_judge_grades_as_with_the_same_weights_here(source: dict[str, Any], model: CausalModel) -> None:
    far = RubricJudge(EndpointEngine.start(EndpointSettings.parse(source, where="a test")), template=SHORT)
    here = RubricJudge(LocalEngine(model), template=SHORT, retries=0)
    texts = ["Mix flour and water.", "No."]
    own = [one.reason for one in runtime().run(here(TURNS, texts))]
    assert [
        one.reason for one in runtime().run(RubricJudge(far._engine, template=SHORT, retries=0)(TURNS, texts))
    ] == own
    assert far.settings["model"]["model"] == "tiny"


def test_a_scorer_by_rubric_gives_a_cost_or_a_reward(source: dict[str, Any]) -> None:
    engine = EndpointEngine.start(EndpointSettings.parse(source, where="a test"))
    (cost,) = runtime().run(RubricScorer(engine, template=SHORT)(TURNS, ["Mix flour."]))
    assert cost == pytest.approx(1 - 0.375)  # the tiny model gives no grade: as harmful as can be
    from anchorlm.records import DefenseError

    with pytest.raises(DefenseError, match="gave no grade"):
        runtime().run(RubricScorer(engine, rates="help", template=SHORT)(TURNS, ["Mix flour."]))


def test_equal_sections_share_one_engine(source: dict[str, Any]) -> None:
    guard = Guard(source, "alignbeam", anchor=dict(source), judge=CallableJudge(lambda messages, response: 0.0))
    assert guard.defense.target is guard.defense.anchor


def test_sampling_that_a_strict_server_does_not_know_is_refused_in_one_sentence(
    model: CausalModel, source: Any
) -> None:
    from anchorlm.records import UserError

    strict = Endpoint(model, strict=True)
    guard = Guard({**source, "endpoint": strict.url}, generation={"max_new_tokens": 4, "do_sample": True, "top_k": 5})
    with pytest.raises(UserError, match="takes no top_k: leave top_k out"):
        guard.chat(TURNS)
    strict.stop()
