from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from factories import heard, tiny_model, tiny_tokenizer, tiny_weights, trusted
from torch import Tensor

from anchorlm.defenses import InferAligner
from anchorlm.defenses.inferaligner import Aligner, fit_inferaligner
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.models import CausalModel
from anchorlm.records import Artifact, DefenseError, Response, UserError
from anchorlm.steering import own_start

HARMFUL = [f"Burn down {n} houses!" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
HARMLESS = [f"How do I bake {n} bread?" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
PROMPTS = [*HARMFUL[:4], "x", *HARMLESS[:4], "Ünïcode, 12 + 30 = ?"]
NEW = 12
STRONG = {"alpha": 3.0, "layers": [0, 1], "positions": "all"}


@pytest.fixture(scope="module")
def folder(target: LocalEngine, sibling: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = trusted(fit_inferaligner(target, sibling, HARMFUL, HARMLESS))
    return made.save(tmp_path_factory.mktemp("inferaligner"))


def guard(target: LocalEngine, folder: Path, **knobs: Any) -> Guard:
    return Guard(target, "inferaligner", artifact=str(folder), generation={"max_new_tokens": NEW}, **knobs)


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def undefended(target: LocalEngine, prompt: str, **generation: Any) -> tuple[int, ...]:
    return Guard(target, "undefended", generation={"max_new_tokens": NEW}).chat(said(prompt), **generation).token_ids


def decision(response: Response, kind: str) -> Mapping[str, Any]:
    [found] = [each.data for each in response.trace if each.kind == kind]
    return found


def by_hand(model: CausalModel, prompt: str, shifts: Mapping[int, Tensor], positions: str) -> tuple[int, ...]:
    """Greedy text with the shifts (H,) added by plain hooks, every token by one cache-free forward of everything."""
    start = model.encode(said(prompt))
    ids = list(start)

    def change(shift: Tensor) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[:, : len(start) if positions == "prompt" else None] += shift
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    handles = [model.blocks[layer].register_forward_hook(change(shift)) for layer, shift in shifts.items()]
    try:
        while len(ids) < len(start) + NEW:
            with torch.inference_mode():
                token = int(heard(model, model.model(torch.tensor([ids]), use_cache=False).logits[0, -1]).argmax())
            if token in model.stop_ids:
                break
            ids.append(token)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(ids[len(start) :])


@pytest.mark.parametrize("knobs", [{"gate": "closed"}, {"bias": -1e9}, {"gate": "open", "alpha": 0}])
def test_a_closed_gate_or_no_strength_is_the_undefended_target_token_for_token(
    target: LocalEngine, folder: Path, knobs: dict[str, Any]
) -> None:
    quiet = guard(target, folder, **{**STRONG, **knobs})
    for prompt in PROMPTS:
        assert quiet.chat(said(prompt)).token_ids == undefended(target, prompt)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "seed": 4}
    assert quiet.chat(said("x"), **sampling).token_ids == undefended(target, "x", **sampling)
    assert quiet.chat("raw text").token_ids == Guard(target).chat("raw text", max_new_tokens=NEW).token_ids


@pytest.mark.parametrize("positions", ["prompt", "all"])
@pytest.mark.parametrize(("units", "vector"), [("natural", "anchor"), ("absolute", "anchor"), ("natural", "random")])
def test_steered_text_is_that_of_plain_hooks_and_full_forwards(
    target: LocalEngine, folder: Path, positions: str, units: str, vector: str
) -> None:
    t = Artifact.load(folder, "inferaligner").tensors
    name = {"anchor": "shift", "random": "random"}[vector]
    lengths = t["shift.length"] if units == "natural" else torch.ones(2)
    shifts = {layer: 3.0 * lengths[layer] * t[f"{name}.unit"][layer] for layer in (0, 1)}
    knobs = {**STRONG, "positions": positions, "units": units, "vector": vector}
    steered = guard(target, folder, gate="open", **knobs)
    changed = 0
    for prompt in PROMPTS[:5]:
        response = steered.chat(said(prompt))
        assert response.token_ids == by_hand(target.model, prompt, shifts, positions)
        assert decision(response, "gate") == {"open": True, "why": "the request says open"}
        assert decision(response, "steer") == {"layers": [0, 1], "alpha": 3.0}
        changed += response.token_ids != undefended(target, prompt)
    assert changed


@pytest.fixture(scope="module")
def halfway(target: LocalEngine, folder: Path) -> float:
    """A bias at which the gate opens for half of the prompts, and no score lies near its threshold."""
    auto = guard(target, folder)
    scores = sorted(decision(auto.chat(said(prompt), max_new_tokens=1), "gate")["score"] for prompt in PROMPTS)
    _, low = max((high - low, low) for low, high in pairwise(scores[2:-2]))
    high = min(score for score in scores if score > low)
    assert high - low > 0.01
    return float(-(low + high) / 2)


def test_rows_of_a_mixed_batch_get_what_each_gets_alone(target: LocalEngine, folder: Path, halfway: float) -> None:
    mixed = guard(target, folder, bias=halfway, **STRONG)
    together = mixed.generate(PROMPTS * 2)
    opened = [decision(response, "gate")["open"] for response in together]
    assert {True, False} == set(opened)
    t = Artifact.load(folder, "inferaligner").tensors
    shifts = {layer: 3.0 * t["shift.length"][layer] * t["shift.unit"][layer] for layer in (0, 1)}
    for prompt, response, was_open in zip(PROMPTS * 2, together, opened, strict=True):
        alone = mixed.chat(said(prompt))
        assert (response.text, response.token_ids) == (alone.text, alone.token_ids)
        want = by_hand(target.model, prompt, shifts, "all") if was_open else undefended(target, prompt)
        assert response.token_ids == want
        assert len([each for each in response.trace if each.kind == "steer"]) == was_open


def test_rows_that_come_and_go_at_different_times_do_not_touch_one_another(target: LocalEngine, folder: Path) -> None:
    """Some are read and steered while others, steered at their prompt only, are long past it."""
    crowded = guard(LocalEngine(target.model, max_rows=3), folder, gate="open", **{**STRONG, "positions": "prompt"})
    alone = guard(target, folder, gate="open", **{**STRONG, "positions": "prompt"})
    lengths = [2 + 5 * index % 11 for index in range(len(PROMPTS))]
    requests = [
        crowded.request(said(prompt), max_new_tokens=length) for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]
    for index, response in crowded.map(requests):
        assert isinstance(response, Response)
        assert response.token_ids == alone.chat(said(PROMPTS[index])).token_ids[: lengths[index]]


@pytest.mark.parametrize("knobs", [{"gate": "open"}, {"gate": "closed"}, {"gate": "open", "answer": "refuse"}])
def test_streamed_is_whole(target: LocalEngine, folder: Path, knobs: dict[str, Any]) -> None:
    one = guard(target, folder, **STRONG)
    for prompt in PROMPTS[:3]:
        events = list(one.stream(said(prompt), knobs=knobs))
        whole = one.chat(said(prompt), knobs=knobs)
        assert "".join(event.text for event in events if hasattr(event, "text")) == whole.text
        ids = [token for event in events if hasattr(event, "token_ids") for token in event.token_ids]
        assert tuple(ids) == whole.token_ids


def test_the_trace_holds_what_the_gate_read_and_decided(target: LocalEngine, folder: Path) -> None:
    artifact = Artifact.load(folder, "inferaligner")
    [layer] = artifact.settings["gate_layers"]
    auto = guard(target, folder)
    opened = set()
    for prompt in PROMPTS:
        gate = decision(auto.chat(said(prompt)), "gate")
        assert gate.keys() == {"reader", "layers", "scores", "score", "threshold", "open"}
        assert (gate["reader"], gate["layers"]) == ("target", [layer])
        assert len(gate["scores"]) == 2
        assert gate["score"] == gate["scores"][layer]
        assert gate["threshold"] == 0
        assert gate["open"] == (gate["score"] > 0)
        opened.add((prompt in HARMFUL, gate["open"]))
    assert {(True, True), (False, False)} <= opened


def test_requests_carry_their_own_knobs(target: LocalEngine, folder: Path) -> None:
    one = guard(target, folder, **STRONG)

    def text(prompt: str = "x", **knobs: Any) -> tuple[int, ...]:
        return one.chat(said(prompt), knobs=knobs).token_ids

    plain = undefended(target, "x")
    assert text(gate="closed") == plain
    assert text(gate="open", alpha=0) == plain
    assert text(bias=-1e9) == plain
    assert text(bias=1e9) == text(gate="open") != plain
    assert (
        text(gate="open", alpha=3.0, layers=[0], positions="prompt", vector="own")
        == guard(target, folder, gate="open", alpha=3.0, layers=[0], positions="prompt", vector="own")
        .chat(said("x"))
        .token_ids
    )
    gate = decision(one.chat(said("x"), knobs={"gate_layers": [0, 1], "bias": 0.25}), "gate")
    assert gate["score"] == pytest.approx(sum(gate["scores"]) / 2, abs=2e-3)
    assert gate["threshold"] == -0.25
    assert text() == text(gate="auto")


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"alpha": -1}, "alpha = -1 does not fit"),
        ({"alpha": float("nan")}, "alpha = nan does not fit"),
        ({"bias": float("nan")}, "bias = nan does not fit"),
        ({"bias": float("inf")}, "bias = inf does not fit"),
        ({"gate": "ajar"}, "gate = 'ajar' does not fit"),
        ({"positions": "some"}, "positions = 'some' does not fit"),
        ({"layers": [2]}, r"Layers \[2\] are not all among 0 to 1"),
        ({"layers": []}, r"Layers \[\] are not all among 0 to 1"),
        ({"gate_layers": [-1]}, r"Layers \[-1\] are not all among 0 to 1"),
        ({"strength": 1}, "has no setting 'strength'; it has: alpha"),
    ],
)
def test_a_knob_that_does_not_fit_is_one_sentence_before_anything_runs(
    target: LocalEngine, folder: Path, knobs: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        guard(target, folder, **knobs)
    closed = guard(target, folder, gate="closed")  # also where the knob would not be needed
    forwards = target.runner.forwards
    with pytest.raises(UserError, match=why):
        closed.chat(said("x"), knobs=knobs)
    assert target.runner.forwards == forwards


def test_the_fixed_refusal_is_given_where_the_gate_opens_and_only_there(
    target: LocalEngine, folder: Path, halfway: float
) -> None:
    fixed = guard(target, folder, answer="refuse", refusal="No.", bias=halfway)
    for prompt in PROMPTS:
        response = fixed.chat(said(prompt))
        if decision(response, "gate")["open"]:
            assert (response.text, response.finish_reason) == ("No.", "refusal")
            assert decision(response, "fallback") == {"why": "the gate opened"}
            assert response.usage.generated_tokens == 0
        else:
            assert response.token_ids == undefended(target, prompt)
            assert response.finish_reason != "refusal"


def test_the_anchor_may_read_what_the_target_cannot_tell(
    target: LocalEngine, sibling: LocalEngine, folder: Path
) -> None:
    artifact = Artifact.load(folder, "inferaligner")
    one = guard(target, folder, anchor=sibling, reader="anchor", **STRONG)
    t, [layer] = artifact.tensors, artifact.settings["reader_gate_layers"]
    for prompt in PROMPTS:
        response = one.chat(said(prompt))
        gate = decision(response, "gate")
        ids = torch.tensor([sibling.model.encode(said(prompt))])
        with torch.inference_mode():
            streams = sibling.model.model(ids, output_hidden_states=True).hidden_states
        # The last of them has passed the final norm: only blocks before it are compared.
        for place in range(len(gate["scores"]) - 1):
            stream = streams[place + 1][0]
            seen = torch.cat([stream[-1], stream[own_start(sibling.model) :].mean(dim=0)])
            projection = seen @ t["reader_gate.direction"][place] + t["reader_gate.bias"][place]
            assert gate["scores"][place] == pytest.approx(float(projection / t["reader_gate.scale"][place]), abs=2e-3)
        assert (gate["reader"], gate["layers"], gate["score"]) == ("anchor", [layer], gate["scores"][layer])
        forced = guard(target, folder, gate="open" if gate["open"] else "closed", **STRONG).chat(said(prompt))
        assert response.token_ids == forced.token_ids
    mixed = guard(target, folder, anchor=sibling, reader="anchor", **STRONG)
    together = mixed.generate(PROMPTS)
    assert [each.token_ids for each in together] == [one.chat(said(prompt)).token_ids for prompt in PROMPTS]
    assert {decision(each, "gate")["open"] for each in together} == {True, False}


@pytest.mark.slow
def test_two_readers_share_the_mean_of_their_scores(target: LocalEngine, sibling: LocalEngine, folder: Path) -> None:
    alone = [guard(target, folder), guard(target, folder, anchor=sibling, reader="anchor")]
    prompts = [*PROMPTS, *HARMFUL, *HARMLESS]
    readings = [[decision(one.chat(said(prompt)), "gate") for one in alone] for prompt in prompts]
    means = [sum(reading["score"] for reading in two) / 2 for two in readings]
    for bias in (None, -sorted(means)[len(means) // 2] - 2e-3):
        both = guard(target, folder, anchor=sibling, reader="both", bias=bias, **STRONG)
        seen = set()
        for prompt, two, mean in zip(prompts, readings, means, strict=True):
            response = both.chat(said(prompt))
            gate = decision(response, "gate")
            assert gate.keys() == {"reader", "readings", "score", "threshold", "open"}
            assert gate["reader"] == "both"
            assert gate["readings"] == two
            assert gate["score"] == pytest.approx(mean, abs=2e-3)
            assert gate["threshold"] == pytest.approx(-(bias or 0.0), abs=1e-3)
            assert gate["open"] == (gate["score"] > gate["threshold"])
            forced = guard(target, folder, gate="open" if gate["open"] else "closed", **STRONG).chat(said(prompt))
            assert response.token_ids == forced.token_ids
            seen.add(gate["open"])
        assert seen == {True, False}
    assert [one.token_ids for one in both.generate(prompts)] == [both.chat(said(one)).token_ids for one in prompts]


def test_the_anchor_reads_only_where_it_is_asked_to(target: LocalEngine, sibling: LocalEngine, folder: Path) -> None:
    for knobs in ({"reader": "anchor"}, {"anchor": sibling}):
        with pytest.raises(UserError, match="give both or neither"):
            guard(target, folder, **knobs)
    with pytest.raises(UserError, match="fitted on the reader tiny-llama, but .*other weights"):
        guard(target, folder, reader="anchor", anchor=LocalEngine(tiny_model(seed=9, vocab_size=311)))
    one = guard(target, folder, reader="anchor", anchor=sibling)
    with pytest.raises(UserError, match="reader cannot differ between requests"):
        one.chat(said("x"), knobs={"reader": "target"})
    with pytest.raises(UserError, match="not all among 0 to 1, the anchor's blocks"):
        one.chat(said("x"), knobs={"gate_layers": [2]})
    before = sibling.runner.forwards
    guard(target, folder).chat(said("x"))
    one.chat(said("x"), knobs={"gate": "closed"})
    assert sibling.runner.forwards == before
    one.chat(said("x"))
    assert sibling.runner.forwards == before + 1


def test_an_anchor_whose_activations_are_no_numbers_ends_in_the_refusal(target: LocalEngine, folder: Path) -> None:
    anchor = LocalEngine(tiny_model(seed=7, vocab_size=311))
    one = guard(target, folder, reader="anchor", anchor=anchor, refusal="No.")
    last, norm = anchor.model.blocks[-1], anchor.model.model.model.norm
    handles = [
        last.register_forward_hook(lambda module, inputs, output: output * float("nan")),
        norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].nan_to_num(),)),
    ]
    try:
        response = one.chat(said("x"))
    finally:
        for handle in handles:
            handle.remove()
    assert (response.text, response.finish_reason) == ("No.", "refusal")
    assert "not numbers" in decision(response, "fail_closed")["why"]


def test_an_artifact_without_a_second_readers_gate_says_to_fit_again(
    target: LocalEngine, sibling: LocalEngine, folder: Path
) -> None:
    found = Artifact.load(folder, "inferaligner")
    tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith("reader_gate")}
    made = Artifact(found.kind, found.models, found.data, found.settings, found.figures, tensors)
    old = made.save(folder.parent / "old")
    assert guard(target, old).chat(said("x")).text
    with pytest.raises(UserError, match="no gate for a second reader: fit it again"):
        guard(target, old, reader="anchor", anchor=sibling)


@pytest.mark.parametrize("defense", ["inferaligner", "caa", "alignbeam"])
def test_hooks_that_do_not_fire_are_found_out_when_the_guard_starts(
    target: LocalEngine, sibling: LocalEngine, folder: Path, defense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    team: dict[str, Any] = {"artifact": str(folder)}
    if defense == "alignbeam":
        team |= {"anchor": sibling, "judge": lambda messages, response: 0.0, "gate": "inferaligner"}
    Guard(target, defense, **team)
    # As a model that was compiled as a whole does.
    monkeypatch.setattr(type(target.model.blocks[0]), "__call__", lambda self, *a, **k: self.forward(*a, **k))
    with pytest.raises(UserError, match=r"load the model without torch\.compile"):
        Guard(target, defense, **team)


def test_a_closed_gate_costs_no_forward(target: LocalEngine, folder: Path) -> None:
    def forwards(one: Guard) -> int:
        before = target.runner.forwards
        one.chat(said("x"))
        return target.runner.forwards - before

    plain = forwards(Guard(target, generation={"max_new_tokens": NEW}))
    assert forwards(guard(target, folder, bias=-1e9)) == plain
    assert forwards(guard(target, folder, bias=1e9, alpha=0)) == plain + 1


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"seed": 7}, "other weights"),
        ({"num_hidden_layers": 3}, "layers 3, not 2"),
        ({"tokenizer": tiny_tokenizer(text="Other words. ")}, "another tokenizer"),
        ({"architecture": "qwen2"}, "architecture qwen2, not llama"),
        ({"tokenizer": tiny_tokenizer(chat_template="{{ messages[-1]['content'] }}:")}, "another chat template"),
    ],
)
def test_an_artifact_of_another_model_is_refused(folder: Path, other: dict[str, Any], difference: str) -> None:
    with pytest.raises(UserError, match=f"artifact was fitted on the target tiny-llama, but tiny-.* has {difference}"):
        guard(LocalEngine(tiny_model(**other)), folder)


def test_a_missing_artifact_is_one_sentence(target: LocalEngine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="anchorlm fit inferaligner"):
        guard(target, tmp_path)
    with pytest.raises(UserError, match="artifact"):
        Guard(target, InferAligner)


def test_activations_that_are_no_numbers_are_refused_and_never_answered(folder: Path) -> None:
    """Where the model hides them from its logits, so that nothing but the gate can tell."""
    target = LocalEngine(tiny_model())
    safe, strict = (guard(target, folder, refusal="No.", on_error=on_error) for on_error in ("refuse", "raise"))
    plain = Guard(target, generation={"max_new_tokens": NEW})
    last, norm = target.model.blocks[-1], target.model.model.model.norm
    handles = [
        last.register_forward_hook(lambda module, inputs, output: output * float("nan")),
        norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].nan_to_num(),)),
    ]
    try:
        assert plain.chat(said("x")).finish_reason != "refusal"
        response = safe.chat(said("x"))
        assert (response.text, response.token_ids, response.finish_reason) == ("No.", (), "refusal")
        assert "not numbers" in decision(response, "fail_closed")["why"]
        with pytest.raises(DefenseError, match="not numbers"):
            strict.chat(said("x"))
    finally:
        for handle in handles:
            handle.remove()
    assert safe.chat(said("x"), knobs={"gate": "closed"}).token_ids == plain.chat(said("x")).token_ids


def test_an_artifact_that_holds_no_numbers_is_refused_and_never_answered(target: LocalEngine, folder: Path) -> None:
    found = Artifact.load(folder, "inferaligner")
    broken = {**found.tensors, "gate.direction": torch.full_like(found.tensors["gate.direction"], float("nan"))}
    made = Artifact(found.kind, found.models, found.data, found.settings, found.figures, broken)
    response = guard(target, made.save(folder.parent / "broken")).chat(said("x"))
    assert response.finish_reason == "refusal"


def test_weights_that_are_no_numbers_are_the_users_mistake(folder: Path) -> None:
    weights = tiny_weights()
    one = guard(LocalEngine(CausalModel.wrap(weights, tiny_tokenizer())), folder)
    with torch.no_grad():
        weights.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not numbers"):
        one.chat(said("x"))


def test_a_target_under_directional_ablation_is_guarded_like_any_other(target: LocalEngine, folder: Path) -> None:
    attacked = LocalEngine(target.model, base=Aligner.load(folder, target).ablation())
    bare = Guard(attacked, generation={"max_new_tokens": NEW})
    texts = [bare.chat(said(prompt)).token_ids for prompt in PROMPTS]
    assert texts != [undefended(target, prompt) for prompt in PROMPTS]
    one = guard(attacked, folder, **STRONG)
    assert [one.chat(said(prompt), knobs={"gate": "closed"}).token_ids for prompt in PROMPTS] == texts
    assert [one.chat(said(prompt), knobs={"gate": "open"}).token_ids for prompt in PROMPTS] != texts
    assert Guard(target, generation={"max_new_tokens": NEW}).chat(said("x")).token_ids == undefended(target, "x")


def test_the_artifact_may_be_a_path(target: LocalEngine, folder: Path) -> None:
    one = Guard(target, InferAligner, artifact=folder, generation={"max_new_tokens": 1})
    assert one.defense.settings.artifact == str(folder)
    assert decision(one.chat(said("x")), "gate")["layers"]


def test_the_layers_that_requests_choose_do_not_pile_up_and_answers_stay_the_same(tmp_path: Path) -> None:
    deep = LocalEngine(tiny_model("llama", num_hidden_layers=8))
    place = trusted(fit_inferaligner(deep, deep, HARMFUL, HARMLESS)).save(tmp_path / "deep")
    one = guard(deep, place, gate="open", alpha=3.0, positions="all")
    choices = [[layer for layer in range(8) if number >> layer & 1] for number in range(1, 81)]

    def answers(some: list[list[int]]) -> list[tuple[int, ...]]:
        return [one.chat(said("x"), knobs={"layers": layers}, max_new_tokens=4).token_ids for layers in some]

    first = answers(choices[:10])
    assert len(set(first)) > 1
    answers(choices[10:])
    assert len(cast("InferAligner", one.defense).aligner._edits) == 64
    assert answers(choices[:10]) == first


def test_equal_layers_share_their_edits_in_whatever_order_a_request_gives_them(
    target: LocalEngine, folder: Path
) -> None:
    aligner = cast("InferAligner", guard(target, folder).defense).aligner
    both = aligner.steering(layers=[0, 1]).edits
    assert aligner.steering(layers=[1, 0, 1], alpha=2.0).edits is both
    assert aligner.steering(layers=[1]).edits is not both
