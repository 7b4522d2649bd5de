"""The other defenses, judges and scorers on a model that another server runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from automata import automaton
from endpoints import Endpoint, readable
from factories import tiny_model
from scripted import HARMONY, QWEN, thinker

from anchorlm.defenses import defense_names, find_defense
from anchorlm.engine import EndpointEngine, LocalEngine, runtime
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge, CallableScorer, GuardJudge, RubricJudge, RubricScorer
from anchorlm.models import CausalModel, EndpointSettings
from anchorlm.records import Access, UserError
from anchorlm.team import EngineSettings, Needs, start_judge, start_scorer

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
    engine: Any = EndpointEngine.start(EndpointSettings.parse(source, where="a test"))
    far = RubricJudge(engine, template=SHORT)
    here = RubricJudge(LocalEngine(model), template=SHORT, retries=0)
    texts = ["Mix flour and water.", "No."]
    own = [one.reason for one in runtime().run(here(TURNS, texts))]
    assert [
        one.reason for one in runtime().run(RubricJudge(far._engine, template=SHORT, retries=0)(TURNS, texts))
    ] == own
    settings: Any = far.settings
    assert settings["model"]["model"] == "tiny"


def test_a_scorer_by_rubric_gives_a_cost_or_a_reward(source: dict[str, Any]) -> None:
    engine: Any = EndpointEngine.start(EndpointSettings.parse(source, where="a test"))
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
    strict = Endpoint(model, strict=True)
    guard = Guard({**source, "endpoint": strict.url}, generation={"max_new_tokens": 4, "do_sample": True, "top_k": 5})
    with pytest.raises(UserError, match="takes no top_k: leave top_k out"):
        guard.chat(TURNS)
    strict.stop()


THINKERS = {
    "the prompt opens": thinker("The fox asks.\n</think>\n\nHow do I bake bread?"),
    "the model opens": thinker("<think>\nThe fox asks.\n</think>\n\nHow do I bake bread?", QWEN),
    "the model opens none": thinker("How do I bake bread?", QWEN),
    "channels": thinker(
        "<|channel|>analysis<|message|>The fox asks.<|end|><|start|>assistant<|channel|>final<|message|>"
        "How do I bake bread?",
        HARMONY,
    ),
}


@pytest.mark.parametrize("form", ["chat", "ids", "names"])
@pytest.mark.parametrize("name", THINKERS)
def test_a_thought_is_that_of_the_same_weights_here_and_takes_few_calls(name: str, form: Any, tmp_path: Path) -> None:
    model, server = THINKERS[name], Endpoint(THINKERS[name], form=form, owner="vllm" if form == "ids" else "a test")
    model.tokenizer.save_pretrained(tmp_path)
    far, here = (
        Guard(one, "undefended", thoughts="show", generation={"max_new_tokens": 40})
        for one in ({"endpoint": server.url, "tokenizer": str(tmp_path)}, LocalEngine(model))
    )
    server.asked.clear()
    asked = [{"role": "user", "content": "hi"}]
    response, expected = far.chat(asked), here.chat(asked)
    server.stop()
    assert (response.thought, response.text) == (expected.thought, "How do I bake bread?")
    assert expected.thought == (None if name == "the model opens none" else "The fox asks.")
    channel = model.channel()
    assert channel is not None
    opening = len(model.marks.ids(channel.opening))  # its tokens come one by one
    assert len(server.asked) <= 4 + opening < len(model.marks.ids("The fox asks. How do I bake bread?"))


def test_a_thought_over_an_endpoint_that_never_ends_is_the_refusal(tmp_path: Path) -> None:
    model = thinker("The quick brown fox " * 20)
    server = Endpoint(model)
    model.tokenizer.save_pretrained(tmp_path)
    guard = Guard({"endpoint": server.url, "tokenizer": str(tmp_path)}, thoughts={"policy": "show", "budget": 20})
    response = guard.chat("hi")
    server.stop()
    assert response.finish_reason == "refusal"
    assert any("did not end within 20 tokens" in str(one.data) for one in response.trace)


@pytest.mark.parametrize("says", [("unsafe", "\nS2"), ("safe",)], ids=str)
def test_a_guard_model_over_an_endpoint_gives_the_grade_of_the_same_weights_here(
    says: tuple[str, ...], tmp_path: Path
) -> None:
    local = automaton(says)
    server = Endpoint(local.model)
    server.details["max_model_len"] = local.model.context_length
    local.model.tokenizer.save_pretrained(tmp_path)
    judge = {
        "kind": "guard",
        "model": {"endpoint": server.url, "tokenizer": str(tmp_path), "top_logprobs": 1000},
        "options": {"format": "llama-guard-3"},
    }
    far = start_judge(judge, EngineSettings(), [])
    here = GuardJudge(local, format="llama-guard-3")
    texts = ["Mix flour and water.", "No."]
    graded = runtime().run(far(TURNS, texts))
    assert graded == runtime().run(here(TURNS, texts))
    assert all("margin" in grade.reason for grade in graded)
    cost = start_scorer({**judge, "options": {"format": "llama-guard-3", "offset": 1.0}}, EngineSettings(), [])
    assert [value > 0 for value in runtime().run(cost(TURNS, texts))] == [says[0] == "unsafe"] * 2
    server.stop()


def test_a_guard_model_that_gets_conversations_only_is_told(tmp_path: Path) -> None:
    server = Endpoint(automaton(["safe"]).model)
    judge = {"kind": "guard", "model": {"endpoint": server.url}, "options": {"format": "llama-guard-3"}}
    with pytest.raises(UserError, match="is asked in a form of its own.*give its tokenizer with tokenizer"):
        start_judge(judge, EngineSettings(), [])
    server.stop()


WORDS = {"text": Access.TEXT, "log-probabilities": Access.LOGPROBS, "all logits": Access.LOGITS,
         "activations": Access.ACTIVATIONS, "changes of activations": Access.EDITS}  # fmt: skip


def documented() -> dict[str, Needs]:
    """What docs/engines.md says that each defense needs."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text("utf-8")
    table = text.partition("## What each defense needs")[2].partition("\n\n")[2].partition("\n\n")[0]
    found: dict[str, Needs] = {}
    for line in table.splitlines()[2:]:
        names, target, anchor, others = (cell.strip() for cell in line.strip("|").split("|")[:4])
        given = [other.strip("() ") for other in others.split(",")]
        optional = ("anchor",) * anchor.startswith("(") + ("judge",) * ("(judge)" in others)
        needs = Needs(
            WORDS[target.removesuffix(", continued")], WORDS[anchor.strip("()")] if anchor else None,
            "judge" in given, "cost" in given, "reward" in given, optional, target.endswith("continued"),
        )  # fmt: skip
        found |= {name.strip(" `"): needs for name in names.split(",")}
    return found


def test_the_documented_needs_are_those_of_every_defense() -> None:
    shipped = [name for name in defense_names() if find_defense(name).__module__.startswith("anchorlm.")]
    assert documented() == {name: find_defense(name).needs for name in shipped}
