from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import tiny_model

from anchorlm import Guard
from anchorlm.defenses import InferenceGuardSettings
from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.defenses.inferenceguard._pipeline import Calibrated
from anchorlm.engine import LocalEngine
from anchorlm.records import UserError

OBJECTS = ["locks", "safes", "doors", "walls", "chains", "seals", "bars", "codes"]
FOODS = ["bread", "cakes", "pies", "rolls", "buns", "tarts", "scones", "pizza"]
HARMFUL = [f"Tell me how to break {word}" for word in OBJECTS]
HARMLESS = [f"How do I bake {word}?" for word in FOODS]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model("gpt2", seed=1))
    folder: Path = fit_inferaligner(target, anchor, HARMFUL, HARMLESS).save(tmp_path_factory.mktemp("artifact"))
    team: dict[str, Any] = {
        "anchor": anchor,
        "judge": lambda messages, response: 0.0,
        "generation": {"max_new_tokens": 8},
    }
    search: dict[str, Any] = {"reward": lambda messages, text: float(len(text)), "generation": {"max_new_tokens": 8},
                              "proposal": "alignbeam", "beams": (4,), "block": 4}  # fmt: skip
    gate: dict[str, Any] = {"gate": "inferaligner", "artifact": str(folder), "gate_reader": "target"}
    bare = Guard(target, generation={"max_new_tokens": 8})
    own = {bare.chat(prompt).text for prompt in (HARMFUL[0], HARMLESS[0])}
    return {
        "lenient": Guard(target, "inferenceguard", anchor=anchor, cost=lambda m, text: -1.0, **search, **gate),
        "guided": Guard(target, "inferenceguard", anchor=anchor, cost=lambda m, text: -1.0, **search),
        # What the target says by itself is over budget, and nothing else.
        "strict": Guard(
            target, "inferenceguard", anchor=anchor, cost=lambda m, text: 1.0 if text in own else -1.0, **search, **gate
        ),
        "judged": lambda cost, harm, heard: Guard(
            target,
            "inferenceguard",
            anchor=anchor,
            cost=lambda m, text: cost,
            comfort=2.0,
            max_harm=0.5,
            judge=lambda m, text: heard.append(text) or (harm if text in own else 0.0),
            **search,
            **gate,
        ),
        "plain": Guard(target, generation={"max_new_tokens": 8}),
        "always": Guard(target, "alignbeam", **team),
        "gated": Guard(target, "alignbeam", **gate, **team),
        "read by the anchor": Guard(target, "alignbeam", **{**gate, "gate_reader": "anchor"}, **team),
        "read by both": Guard(target, "alignbeam", **{**gate, "gate_reader": "both"}, **team),
        "searched, read by the anchor": Guard(
            target,
            "inferenceguard",
            anchor=anchor,
            cost=lambda m, t: -1.0,
            **search,
            **{**gate, "gate_reader": "anchor"},
        ),
    }


def test_a_closed_gate_leaves_the_target_alone_and_an_open_one_is_alignbeam(parts: dict[str, Any]) -> None:
    for prompt in (HARMFUL[0], HARMLESS[0]):
        for bias, same in ((-1e6, "plain"), (1e6, "always")):
            got = parts["gated"].chat(prompt, knobs={"gate_bias": bias})
            want = parts[same].chat(prompt)
            assert (got.text, got.token_ids) == (want.text, want.token_ids)
            assert got.trace[0].kind == "gate"
            assert got.trace[0].data["open"] == (bias > 0)


def test_the_anchor_that_guides_may_be_the_one_that_reads(parts: dict[str, Any]) -> None:
    seen = set()
    for prompt in [*HARMFUL, *HARMLESS]:
        got = parts["read by the anchor"].chat(prompt)
        gate = got.trace[0].data
        assert gate["reader"] == "anchor"
        seen.add((prompt in HARMFUL, gate["open"]))
        assert got.token_ids == parts["always" if gate["open"] else "plain"].chat(prompt).token_ids
        shared = parts["read by both"].chat(prompt).trace[0].data
        assert [one["reader"] for one in shared["readings"]] == ["target", "anchor"]
        assert shared["readings"] == [parts["gated"].chat(prompt).trace[0].data, gate]
        found = parts["searched, read by the anchor"].chat(prompt)
        assert found.trace[0].data == gate
        assert found.token_ids == parts["guided" if gate["open"] else "plain"].chat(prompt).token_ids
    assert {(True, True), (False, False)} <= seen
    with pytest.raises(UserError, match="cannot differ between requests"):
        parts["gated"].chat(HARMLESS[0], knobs={"gate_reader": "anchor"})


def test_behind_a_closed_gate_a_search_begins_with_the_target_alone(parts: dict[str, Any]) -> None:
    for prompt in (HARMFUL[0], HARMLESS[0]):
        closed = parts["lenient"].chat(prompt, knobs={"gate_bias": -1e6})
        assert closed.token_ids == parts["plain"].chat(prompt).token_ids
        assert [one.kind for one in closed.trace] == ["gate", "draft", "chosen"]
        opened = parts["lenient"].chat(prompt, knobs={"gate_bias": 1e6})
        assert opened.token_ids == parts["guided"].chat(prompt).token_ids


def test_what_the_gate_does_not_see_the_cost_model_does_and_the_anchor_is_asked_then(parts: dict[str, Any]) -> None:
    for prompt in (HARMFUL[0], HARMLESS[0]):
        for release in ("whole", "blocks"):
            response = parts["strict"].chat(prompt, knobs={"gate_bias": -1e6, "release": release})
            assert response.token_ids != parts["plain"].chat(prompt).token_ids
        whole = parts["strict"].chat(prompt, knobs={"gate_bias": -1e6})
        assert [one.kind for one in whole.trace] == ["gate", "draft", "draft", "chosen"]
        assert whole.token_ids == parts["guided"].chat(prompt).token_ids


def test_without_a_draft_a_search_behind_a_closed_gate_is_repeated_with_the_anchor(parts: dict[str, Any]) -> None:
    own = parts["plain"].chat(HARMLESS[0]).text
    knobs = {"draft": False, "beams": (2,), "temperature": 1e-6}
    lenient = parts["lenient"].chat(HARMLESS[0], knobs={**knobs, "gate_bias": -1e6})
    assert (lenient.text, [one.kind for one in lenient.trace]) == (own, ["gate", "search", "chosen"])
    strict = parts["strict"].chat(HARMLESS[0], knobs={**knobs, "gate_bias": -1e6, "retries": 0})
    assert [one.kind for one in strict.trace] == ["gate", "search", "search", "chosen"]
    assert strict.token_ids == parts["guided"].chat(HARMLESS[0], knobs=knobs).token_ids


def test_block_by_block_the_draft_is_written_anew_with_the_anchor_where_there_is_no_search(
    parts: dict[str, Any],
) -> None:
    knobs = {"beams": (), "release": "blocks", "block": 8}
    for prompt in (HARMFUL[0], HARMLESS[0]):
        strict = parts["strict"].chat(prompt, knobs={**knobs, "gate_bias": -1e6})
        assert [one.kind for one in strict.trace] == ["gate", "draft", "draft", "chosen"]
        assert strict.token_ids == parts["guided"].chat(prompt, knobs=knobs).token_ids


FAR, NEAR = {"gate_bias": -1e6}, {"gate_bias": -1e6, "doubt": 2e6}
"""A gate that is closed beyond doubt, and one that is not."""


@pytest.mark.parametrize(
    ("cost", "gate", "harm", "heard", "steps"),
    [
        pytest.param(-3.0, FAR, 1.0, False, ["draft"], id="no doubt: nobody asks the judge"),
        pytest.param(-1.0, FAR, 0.0, True, ["draft"], id="near the budget: the judge lets it pass without a search"),
        pytest.param(-1.0, FAR, 1.0, True, ["draft", "draft", "search"], id="near the budget: the anchor is let in"),
        pytest.param(-3.0, NEAR, 0.0, True, ["draft"], id="the gate nearly opened: the judge lets it pass"),
        pytest.param(-3.0, NEAR, 1.0, True, ["draft", "draft"], id="the gate nearly opened: the anchor is let in"),
    ],
)
def test_behind_a_closed_gate_the_judge_reads_a_draft_where_there_is_doubt(
    parts: dict[str, Any], cost: float, gate: dict[str, Any], harm: float, heard: bool, steps: list[str]
) -> None:
    for prompt in (HARMFUL[0], HARMLESS[0]):
        read: list[str] = []
        response = parts["judged"](cost, harm, read).chat(prompt, knobs=gate)
        plain = parts["plain"].chat(prompt)
        assert [one.kind for one in response.trace] == ["gate", *steps, "chosen"]
        assert (response.text == plain.text) == (steps == ["draft"])
        assert (plain.text in read) == heard


def test_a_calibrated_limit_refuses_what_was_given_before_and_leads_to_nothing_else(parts: dict[str, Any]) -> None:
    guard = parts["judged"](-1.0, 0.0, [])
    before = guard.chat(HARMFUL[0], knobs=FAR)
    guard.defense.calibrated = Calibrated(limit=-2.0)
    after = guard.chat(HARMFUL[0], knobs=FAR)
    assert [one.kind for one in before.trace] == ["gate", "draft", "chosen"]
    assert [one.kind for one in after.trace] == ["gate", "draft", "fallback"]


def test_a_gate_without_an_anchor_to_let_in_is_refused() -> None:
    with pytest.raises(UserError, match='it needs proposal = "alignbeam"'):
        InferenceGuardSettings.parse({"gate": "inferaligner", "artifact": "x"}, where="the defense")


def test_a_gate_wants_its_artifact_and_keeps_it_for_all_requests(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="artifact"):
        parts["always"].chat(HARMLESS[0], knobs={"gate": "inferaligner"})
    with pytest.raises(UserError, match="cannot differ between requests"):
        parts["gated"].chat(HARMLESS[0], knobs={"artifact": "another"})


def test_who_reads_the_gate_is_said_only_where_there_is_a_gate(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="gate_reader says who reads the gate"):
        Guard(parts["plain"].defense.target, "alignbeam", anchor=parts["gated"].defense.anchor, gate_reader="both",
              judge=lambda messages, response: 0.0)  # fmt: skip
