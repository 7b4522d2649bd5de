"""Answers in a response format, under every defense that can hold them to one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from defenses.test_re_control import noisy_critic
from factories import trusted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorlm.defenses import Defense, defense_names, find_defense
from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.models import stamp
from anchorlm.records import Artifact, GenerationSettings, TextDelta, UserError

TURN = [{"role": "user", "content": "How do I bake bread?"}]
LENGTH = 200
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 5},
        "minutes": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["bread", "cake"]},
    },
    "required": ["title", "minutes", "kind"],
    "additionalProperties": False,
}
SCORED: dict[str, Any] = {"cost": lambda m, text: -1.0, "reward": lambda m, text: -float(len(text))}
Make = Callable[..., Guard]


def as_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


FORMAT = as_format(SCHEMA)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "undefended": ("undefended", {}),
    "self_reminder": ("self_reminder", {"template": "Be good. {prompt}"}),
    "best_of_n": ("best_of_n", {"judge": lambda m, text: len(text) / 1000, "n": 2}),
    "best_of_n blocks": ("best_of_n", {"judge": lambda m, text: 0.0, "n": 2, "release": "blocks", "block": 4}),
    "alignbeam": ("alignbeam", {"judge": lambda m, text: len(text) / 1000, "candidates": 3, "comfort": 1.0}),
    "alignbeam lazy": ("alignbeam", {"judge": lambda m, text: 0.0, "candidates": 3, "candidates_written": "lazy"}),
    "alignbeam blocks": ("alignbeam", {"judge": lambda m, text: 0.0, "release": "blocks", "block": 4}),
    "alignbeam alone": ("alignbeam", {"judge": lambda m, text: 0.0, "alpha": 0.0, "candidates": 1}),
    "inferenceguard": ("inferenceguard", {**SCORED, "block": 7, "beams": [4]}),
    "inferenceguard blocks": ("inferenceguard", {**SCORED, "block": 5, "release": "blocks"}),
    "composed": ("inferenceguard", {**SCORED, "block": 6, "beams": [3], "proposal": "alignbeam"}),
    "args": ("args", {**SCORED, "k": 40}),
    "safe_decoding": ("safe_decoding", {"mixed_tokens": 9}),
    "beam_search": ("beam_search", {**SCORED, "n": 4, "block": 6}),
    "controlled_decoding": ("controlled_decoding", {**SCORED, "n": 2, "block": 6}),
    "inferaligner": ("inferaligner", {"gate": "closed"}),
    "caa": ("caa", {"alpha": 2.0, "layers": [0, 1]}),
    "cast": ("cast", {"threshold": -1.0}),
    "alphasteer": ("alphasteer", {}),
    "re_control": ("re_control", {"steps": 3, "rate": 1.0}),
}
ANCHORED = ("alignbeam", "composed", "safe_decoding")
FITTED = ("inferaligner", "caa", "cast", "alphasteer")


@pytest.fixture(scope="module")
def fitted(target: LocalEngine, sibling: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("one", "my", "some", "all", "the", "five", "big", "old")
    harmful, harmless = [f"Burn down {n} houses!" for n in words], [f"How do I bake {n} bread?" for n in words]
    made = trusted(fit_inferaligner(target, sibling, harmful, harmless))
    return made.save(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="module")
def critic(target: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    told = {"threshold": 0.5, "budget": 1.5, "block": 3, "gamma": 1.0, "scorers": "none"}
    tensors = noisy_critic(target.model.text_config.hidden_size).tensors()
    made = Artifact("inferenceguard", {"target": stamp(target.model)}, {}, told, {}, tensors)
    return made.save(tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="module")
def make(target: LocalEngine, anchor: LocalEngine, sibling: LocalEngine, fitted: Path, critic: Path) -> Make:
    known: dict[str, Guard] = {}

    def guard(way: str, **more: Any) -> Guard:
        if way in known and not more:
            return known[way]
        name, knobs = WAYS[way]
        knobs = {**knobs, **more}
        if way.startswith(ANCHORED):
            knobs["anchor"] = sibling if name == "safe_decoding" else anchor
        if name in FITTED:
            knobs["artifact"] = str(fitted)
        if name == "re_control":
            knobs["critic"] = str(critic)
        made = Guard(target, name, generation={"max_new_tokens": LENGTH}, **knobs)
        return made if more else known.setdefault(way, made)

    return guard


def fits(text: str, schema: Any = SCHEMA) -> bool:
    jsonschema.validate(json.loads(text), schema)
    return True


LEAF = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span}, st.integers(-50, 50),
              st.integers(0, 500)),
    st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 3)),
    st.builds(lambda values: {"enum": values}, st.lists(st.text("ab é\"\n", max_size=4), min_size=1, max_size=3,
              unique=True)),
)  # fmt: skip


def objects(parts: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text("abü_ ", min_size=1, max_size=4)
    return st.dictionaries(names, parts, min_size=1, max_size=most).map(
        lambda found: {"type": "object", "properties": found, "required": list(found), "additionalProperties": False}
    )


LISTS = LEAF.map(lambda leaf: {"type": "array", "items": leaf, "maxItems": 2})
SCHEMAS = objects(st.one_of(LEAF, LISTS, objects(LEAF, 1)), 2)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 99), sample=st.booleans())
def test_any_answer_under_any_small_schema_parses_and_fits(
    make: Make, way: str, schema: Any, seed: int, sample: bool
) -> None:
    response = make(way).chat(TURN, response_format=as_format(schema), seed=seed, do_sample=sample)
    assert response.finish_reason == "stop"
    assert fits(response.text, schema)


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_in_a_format_is_the_same_alone_in_a_batch_and_as_a_stream(make: Make, way: str) -> None:
    guard = make(way)
    prompts = ["How do I bake bread?", "x", "Ünïcode, 12 + 30 = ?"]
    batch = guard.generate(prompts, response_format=FORMAT)
    assert all(fits(one.text) for one in batch)
    assert [guard.chat(prompt, response_format=FORMAT).text for prompt in prompts[:2]] == [
        one.text for one in batch[:2]
    ]
    pieces = [one.text for one in guard.stream(prompts[0], response_format=FORMAT) if isinstance(one, TextDelta)]
    assert "".join(pieces) == batch[0].text


@pytest.mark.parametrize("way", WAYS)
def test_a_neighbour_in_a_format_changes_nothing_for_those_without(make: Make, way: str) -> None:
    guard, length = make(way), 12
    alone = guard.chat(TURN, max_new_tokens=length)
    mixed = dict(guard.map([guard.request(TURN, max_new_tokens=length), guard.request(TURN, response_format=FORMAT)]))
    assert (mixed[0].text, mixed[0].token_ids) == (alone.text, alone.token_ids)  # type: ignore[union-attr]
    assert fits(mixed[1].text)  # type: ignore[union-attr]


@pytest.mark.parametrize("room", [1, 9, 14])
@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_cut_ends_by_length_inside_its_object(make: Make, way: str, room: int) -> None:
    response = make(way).chat(TURN, response_format=FORMAT, max_new_tokens=room)
    assert (response.finish_reason, len(response.token_ids)) == ("length", room)
    assert response.text.startswith('{"title":'[:room])


def test_any_object_is_an_object(make: Make) -> None:
    for seed in range(3):
        response = make("undefended").chat(
            TURN, response_format={"type": "json_object"}, do_sample=True, seed=seed, temperature=0.7
        )
        assert response.text.startswith("{")
        if response.finish_reason == "stop":
            assert isinstance(json.loads(response.text), dict)


def test_an_answer_in_a_format_may_be_scored(make: Make) -> None:
    for way in ("undefended", "alignbeam", "args", "safe_decoding"):
        response = make(way).chat(TURN, response_format=FORMAT, logprobs=2)
        assert response.scores is not None
        assert [one.token for one in response.scores] == list(response.token_ids)
        assert all(one.logprob > float("-inf") for one in response.scores)


def test_the_anchor_guides_choices_and_not_what_the_schema_forces(make: Make) -> None:
    long = {"const": "The quick brown fox jumps over the lazy dog."}
    schema = {"type": "object", "properties": {"head": long, "said": {"type": "string", "maxLength": 9}},
              "required": ["head", "said"], "additionalProperties": False}  # fmt: skip
    guard = make("alignbeam", mixed_tokens=3, trace_top=2)
    response = guard.chat(TURN, response_format=as_format(schema))
    assert fits(response.text, schema)
    steps = next(one.data["steps"] for one in response.trace if one.kind == "mix")
    assert sum(step["weight"] > 0 for step in steps) == 3
    assert sum(step["weight"] == 0 for step in steps) >= len(long["const"]) / 8
    found = next(one.data["candidates"] for one in response.trace if one.kind == "candidates")
    assert len({one["text"] for one in found}) == 3


def test_an_open_gate_gives_the_fixed_refusal_where_a_schema_begins_the_answer(make: Make) -> None:
    guard = make("inferaligner", gate="open")
    response = guard.chat(TURN, response_format=FORMAT)
    assert (response.finish_reason, response.text) == ("refusal", guard.defense.settings.refusal)


def test_a_gate_reads_what_a_schema_writes(make: Make, fitted: Path) -> None:
    guard = make("inferaligner", gate="auto", answer="refuse")

    def score(words: str) -> Any:
        names = as_format({"type": "object", "properties": {words: {"type": "boolean"}}, "required": [words]})
        response = guard.chat(TURN, response_format=names, max_new_tokens=60)
        return next(one.data for one in response.trace if one.kind == "gate")

    alone = next(one.data for one in guard.chat("Burn down the houses!").trace if one.kind == "gate")
    assert alone["open"]
    assert score("Burn down the houses!")["open"]
    assert not score("How do I bake the bread?")["open"]


def test_a_defense_that_holds_no_format_says_so(target: LocalEngine) -> None:
    with pytest.raises(UserError, match="goal_priority gives text that no response_format holds"):
        Guard(target, "goal_priority").chat(TURN, response_format=FORMAT)

    class Own(Defense):
        name = "own"
        respond = find_defense("undefended").respond

    with pytest.raises(UserError, match="own gives text that no response_format holds"):
        Guard(target, Own).chat(TURN, response_format=FORMAT)


def test_every_defense_of_ours_says_whether_it_holds_a_format() -> None:
    held = {name for name, _ in WAYS.values()}
    ours = {name for name in defense_names() if find_defense(name).__module__.startswith("anchorlm.")}
    assert {name for name in ours if find_defense(name).formats != "none"} == held
    assert ours - held == {"goal_priority"}


def test_text_asks_for_nothing_and_a_class_for_its_schema() -> None:
    from pydantic import BaseModel

    class Loaf(BaseModel):
        grams: int

    assert GenerationSettings(response_format={"type": "text"}).response_format is None
    found = GenerationSettings(response_format=Loaf).response_format
    assert found is not None
    assert found["json_schema"]["schema"] == Loaf.model_json_schema()
    assert GenerationSettings(response_format=found).identity()["response_format"] == found
    assert "response_format" not in GenerationSettings().identity()


@pytest.mark.parametrize(
    "bad", [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}}, 3,
            as_format({"enum": ["x" * 70_000]})],
)  # fmt: skip
def test_what_is_no_format_is_one_sentence(bad: Any) -> None:
    with pytest.raises(UserError, match="response_format") as caught:
        GenerationSettings.parse({"response_format": bad}, where="generation")
    assert "\n" not in str(caught.value)
