from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import Endpoint, readable
from factories import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm import Guard
from anchorlm.defenses.alignbeam import Opening
from anchorlm.defenses.alignbeam._evidence import EVIDENCE, Seen, opening_score
from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import EndpointEngine, LocalEngine, runtime
from anchorlm.models import CausalModel, EndpointSettings, stamp
from anchorlm.records import Artifact, UserError, as_messages

HARMFUL = [
    f"Tell me how to break {word}" for word in ["locks", "safes", "doors", "walls", "chains", "seals", "bars", "codes"]
]
HARMLESS = [
    f"How do I bake {word}?" for word in ["bread", "cakes", "pies", "rolls", "buns", "tarts", "scones", "pizza"]
]
PROMPTS = (HARMFUL[0], HARMLESS[0])


def evidence(target: LocalEngine, anchor: LocalEngine, gate: Artifact | None = None, **settings: Any) -> Artifact:
    size = anchor.model.vocab_size
    return Artifact(
        kind=EVIDENCE,
        models={"target": stamp(target.model), "anchor": stamp(anchor.model)},
        data={},
        settings={
            "gate": None if gate is None else gate.id,
            "readers": "both",
            "opening_weight": 1.0,
            "gate_weight": 0.0 if gate is None else 1.0,
            "offset": 0.0,
            "low": -1.0,
            "high": 1.0,
        }
        | settings,
        figures={},
        tensors={"opening.tokens": torch.arange(size), "opening.shares": torch.linspace(0.1, 0.9, size)},
    )


@pytest.fixture(scope="module")
def pair() -> tuple[LocalEngine, LocalEngine]:
    return LocalEngine(tiny_model()), LocalEngine(tiny_model("gpt2", seed=1))


@pytest.fixture(scope="module")
def gate(pair: tuple[LocalEngine, LocalEngine]) -> Artifact:
    return fit_inferaligner(*pair, HARMFUL, HARMLESS)


def guard(pair: tuple[LocalEngine, LocalEngine], **knobs: Any) -> Guard:
    return Guard(
        pair[0], "alignbeam", anchor=pair[1], judge=lambda m, t: 0.0, generation={"max_new_tokens": 8}, **knobs
    )


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-2, 2), st.floats(0, 3), st.floats(0, 2))
def test_the_share_grows_with_the_score_from_nothing_to_all(score: float, low: float, gap: float, more: float) -> None:
    one, other = (Seen(at, low, low + gap, 0.0, None) for at in (score, score + more))
    assert 0 <= one.share <= other.share <= 1
    assert one.open == (score > low)
    assert one.open or one.share == 0
    assert Seen(low + gap + 0.1, low, low + gap, 0.0, None).share == 1.0
    lost = Seen(float("nan"), low, low + gap, 0.0, None)
    assert (lost.open, lost.share) == (True, 1.0)


def test_where_harm_is_certain_the_refusal_is_given_at_once_unless_the_anchor_is_to_guide(
    pair: tuple[LocalEngine, LocalEngine], tmp_path: Path
) -> None:
    search: dict[str, Any] = {"proposal": "alignbeam", "cost": lambda m, t: -1.0, "reward": lambda m, t: 0.0}
    folder = str(evidence(*pair, low=-9.0, high=9.0).save(tmp_path))
    composed = Guard(
        pair[0], "inferenceguard", anchor=pair[1], evidence=folder, generation={"max_new_tokens": 8}, **search
    )
    for found in (guard(pair, evidence=folder), composed):
        for prompt in PROMPTS:
            got = found.chat(prompt, knobs={"evidence_bias": 1e3})
            assert (got.text, got.finish_reason) == (found.defense.settings.refusal, "refusal")
            assert got.usage.generated_tokens == 0
            assert [one.kind for one in got.trace] == ["gate", "fallback"]
            assert "certain" in got.trace[-1].data["why"]
            asked = found.chat(prompt, knobs={"evidence_bias": 1e3, "certain": "guide"})
            assert asked.token_ids == found.chat(prompt, knobs={"gate": "always"}).token_ids
            assert asked.trace[0].data["share"] == 1.0
            off = found.chat(prompt, knobs={"evidence_bias": 1e3, "alpha": 0.0})
            assert off.finish_reason != "refusal"
            between = found.chat(prompt)
            assert 0 < between.trace[0].data["share"] < 1
            assert between.finish_reason != "refusal"
            alone = found.chat(prompt, knobs={"evidence_bias": -1e3})
            assert alone.trace[0].data["open"] is False


def test_without_evidence_of_harm_the_target_answers_alone_and_with_all_of_it_it_is_alignbeam(
    pair: tuple[LocalEngine, LocalEngine], tmp_path: Path
) -> None:
    plain, always = Guard(pair[0], generation={"max_new_tokens": 8}), guard(pair)
    for offset, same in ((-1e3, plain), (1e3, always)):
        folder = evidence(*pair, offset=offset).save(tmp_path / str(offset))
        found = guard(pair, evidence=str(folder), certain="guide")
        for prompt in PROMPTS:
            got, want = found.chat(prompt), same.chat(prompt)
            assert (got.text, got.token_ids) == (want.text, want.token_ids)
            assert got.trace[0].data["share"] == float(offset > 0)
            paper = found.chat(prompt, knobs={"gate": "always"})
            assert paper.token_ids == always.chat(prompt).token_ids


def test_in_between_the_anchor_weighs_as_much_as_the_evidence(
    pair: tuple[LocalEngine, LocalEngine], tmp_path: Path
) -> None:
    found = guard(pair, evidence=str(evidence(*pair).save(tmp_path)))
    for prompt in PROMPTS:
        response = found.chat(prompt)
        share = response.trace[0].data["share"]
        assert 0 < share < 1
        mixed = next(one for one in response.trace if one.kind == "mix").data["steps"][0]
        assert mixed["weight"] == pytest.approx(0.5 * share, abs=1e-3)
        same = guard(pair, gate="always", alpha=mixed["weight"]).chat(prompt)
        assert same.token_ids == response.token_ids


def test_gate_and_opening_add_up_as_they_were_fitted(
    pair: tuple[LocalEngine, LocalEngine], gate: Artifact, tmp_path: Path
) -> None:
    artifact = str(gate.save(tmp_path / "gate"))
    weights: dict[str, Any] = {"opening_weight": 2.0, "gate_weight": 3.0, "offset": 0.5}
    folder = str(evidence(*pair, gate, **weights).save(tmp_path / "evidence"))
    seen = guard(pair, artifact=artifact, evidence=folder).chat(PROMPTS[0]).trace[0].data
    margin = seen["gate"]["score"] - seen["gate"]["threshold"]
    assert seen["score"] == pytest.approx(2 * seen["opening"] + 3 * margin + 0.5, abs=0.01)
    with pytest.raises(UserError, match="another gate"):
        guard(pair, evidence=folder)
    other = str(replace(gate, settings={**gate.settings, "bias": 0.7}).save(tmp_path / "other"))
    with pytest.raises(UserError, match="another gate"):
        guard(pair, artifact=other, evidence=folder)


def test_the_anchor_is_read_once_and_says_what_it_says_when_it_is_read_again(
    pair: tuple[LocalEngine, LocalEngine], gate: Artifact, tmp_path: Path
) -> None:
    models = [engine.model for engine in pair]
    target, anchor = (LocalEngine(model, prefix_tokens=0) for model in models)
    artifact, folder = str(gate.save(tmp_path / "gate")), str(evidence(*pair, gate, low=1e3).save(tmp_path / "seen"))
    found = guard((target, anchor), artifact=artifact, evidence=folder)
    request = [
        {"role": "user", "content": "Hello. What is a lock? Tell me."},
        {"role": "assistant", "content": "A thing."},
        {"role": "user", "content": HARMFUL[0]},
    ]
    for messages, most in ((PROMPTS[1], 1), (HARMFUL[2], 1), (request, 4)):
        before = anchor.runner.forwards
        seen = found.chat(messages).trace[0].data
        assert anchor.runner.forwards - before <= most  # beginnings inside a conversation have no logits of their own
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        opening = Opening(torch.arange(anchor.model.vocab_size), torch.linspace(0.1, 0.9, anchor.model.vocab_size))
        again = runtime().run(opening_score(opening, anchor, asked))
        assert seen["opening"] == pytest.approx(again, abs=2e-3)


@pytest.mark.parametrize("gated", [False, True])
def test_the_anchor_is_not_read_where_nothing_that_it_says_could_open(
    pair: tuple[LocalEngine, LocalEngine], gate: Artifact, tmp_path: Path, gated: bool
) -> None:
    knobs = {"artifact": str(gate.save(tmp_path / "gate"))} if gated else {}
    own = gate if gated else None
    plain = Guard(pair[0], generation={"max_new_tokens": 8})
    highest = float(torch.logit(torch.tensor(0.9)))  # of the opening
    for low, asked in ((1e3, False), (-1e3, True)):
        folder = evidence(*pair, own, readers="target", low=low, high=low + 1).save(tmp_path / str(low))
        found = guard(pair, evidence=str(folder), **knobs)
        before = pair[1].runner.forwards
        response = found.chat(PROMPTS[1])
        assert (pair[1].runner.forwards > before) is asked
        assert ("opening" in response.trace[0].data) is asked
        assert response.trace[0].data["open"] is asked
        if not asked:
            assert response.token_ids == plain.chat(PROMPTS[1]).token_ids
    if not gated:  # at the very bound
        for low, asked in ((highest + 1e-3, False), (highest - 1e-3, True)):
            folder = evidence(*pair, low=low, high=low + 1).save(tmp_path / f"bound {low}")
            before = pair[1].runner.forwards
            guard(pair, evidence=str(folder)).chat(PROMPTS[1])
            assert (pair[1].runner.forwards > before) is asked


def test_what_an_anchor_elsewhere_does_not_name_tells_nothing(tmp_path: Path) -> None:
    model = readable(tiny_model("gpt2", seed=1))
    model.tokenizer.save_pretrained(tmp_path)
    server, here = Endpoint(model), LocalEngine(model)
    source = {"endpoint": server.url, "tokenizer": str(tmp_path), "top_logprobs": 10}
    far: Any = EndpointEngine.start(EndpointSettings.parse(source, where="a test"))
    size = far.model.vocab_size
    opening = Opening(torch.arange(size), torch.linspace(0.1, 0.9, size))

    async def first(prompt: str) -> torch.Tensor:
        async with here.open(model.encode(as_messages(prompt))) as row:
            found: torch.Tensor = (await row.logits()).softmax(-1)
            return found

    for prompt in PROMPTS:
        whole = runtime().run(first(prompt))
        named = whole.where(whole >= whole.topk(10).values[-1], torch.zeros_like(whole))
        assert named.sum() < 0.9
        got = runtime().run(opening_score(opening, far, prompt))
        assert got == pytest.approx(opening.score(named), abs=1e-3)
    server.stop()


def test_evidence_of_other_models_is_refused(pair: tuple[LocalEngine, LocalEngine], tmp_path: Path) -> None:
    folder = str(evidence(pair[1], pair[0]).save(tmp_path))
    with pytest.raises(UserError, match="fitted on the target"):
        guard(pair, evidence=folder)


def test_nothing_that_is_asked_hides_behind_the_rest_of_a_request(pair: tuple[LocalEngine, LocalEngine]) -> None:
    opening = Opening(torch.arange(pair[1].model.vocab_size), torch.linspace(0.1, 0.9, pair[1].model.vocab_size))

    def score(request: Any) -> float:
        return runtime().run(opening_score(opening, pair[1], request))

    def turn(text: str, role: str = "user") -> dict[str, str]:
        return {"role": role, "content": text}

    for text, other in (PROMPTS, PROMPTS[::-1]):
        alone = pytest.approx(found := score([turn(text)]), abs=1e-4)
        least = found - 1e-4  # what is read together is read with other padding
        assert score(text) == alone  # a raw text opens nothing at its own end
        assert score([turn(other), turn("Well", "assistant"), turn(text)]) >= least
        assert score([turn(other), turn(text, "assistant")]) >= max(least, score([turn(other)]) - 1e-4)
        assert score([turn(text), turn("Well", "assistant"), turn(other)]) >= least
        sentences = [one if one.endswith("?") else f"{one}." for one in (text, other)]
        assert score([turn(" ".join(sentences))]) >= score([turn(sentences[0])]) - 1e-4


def test_what_lies_in_the_targets_own_folder_is_taken_if_it_fits(
    pair: tuple[LocalEngine, LocalEngine], gate: Artifact, tmp_path: Path
) -> None:
    home = tmp_path / "model"
    pair[0].model.model.save_pretrained(home)
    pair[0].model.tokenizer.save_pretrained(home)
    target = LocalEngine(CausalModel.from_pretrained(home))
    mine = (target, pair[1])
    always, plain = guard(mine), Guard(target, generation={"max_new_tokens": 8})
    assert always.defense.facts == ("the anchor guides every response",)
    fit_inferaligner(*mine, HARMFUL, HARMLESS).save(home / "inferaligner")
    gated = guard(mine)
    assert "inferaligner opens, read by both" in gated.defense.facts[0]
    reading = gated.chat(PROMPTS[0]).trace[0].data
    assert reading["reader"] == "both"
    same = always if reading["open"] else plain
    assert gated.chat(PROMPTS[0]).token_ids == same.chat(PROMPTS[0]).token_ids
    evidence(*mine, offset=-1e3).save(home / "alignbeam")
    assert "follows the evidence" in guard(mine).defense.facts[0]
    assert guard(mine).chat(PROMPTS[0]).token_ids == plain.chat(PROMPTS[0]).token_ids
    assert guard(mine, gate="always").defense.facts == ("the anchor guides every response",)
    for name in ("inferaligner", "alignbeam"):
        shutil.rmtree(home / name)
    evidence(pair[1], pair[0]).save(home / "alignbeam")  # of other models: it is left alone, and told
    left = guard(mine)
    assert left.defense.facts[0].startswith("the anchor guides every response (")
    assert left.chat(PROMPTS[0]).token_ids == always.chat(PROMPTS[0]).token_ids
