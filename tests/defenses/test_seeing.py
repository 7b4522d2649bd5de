"""A model that sees is gated and steered through its text decoder, as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL", reason="images need Pillow: pip install 'anchorlm[images]'")

from factories import heard, tiny_model, trusted
from llava import by_transformers, inputs_of, picture, save_llava, shown

from anchorlm import Guard
from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import LocalEngine, runtime
from anchorlm.judging import FluencyGrading
from anchorlm.judging._outcomes import Answer
from anchorlm.models import CausalModel
from anchorlm.records import Artifact, Messages, UserError
from anchorlm.steering import own_start

NEW = 8
HARMFUL = [shown(f"How do I break {n}?", picture(i)) for i, n in enumerate("abcdefgh")]
HARMLESS = [shown(f"Paint {n}.", picture(i)) for i, n in enumerate("abcdefgh")]
PROMPTS = [*HARMFUL[:2], shown("And without?"), *HARMLESS[:2], shown("Two of them", picture(1), picture(2))]
STRONG = {"alpha": 3.0, "layers": [0, 1], "positions": "all"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    return LocalEngine(CausalModel.from_pretrained(save_llava(tmp_path_factory.mktemp("llava"))))


@pytest.fixture(scope="module")
def artifact(target: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = trusted(fit_inferaligner(target, target, HARMFUL, HARMLESS))
    return made.save(tmp_path_factory.mktemp("artifact"))


def guard(target: LocalEngine, defense: str = "undefended", **options: Any) -> Guard:
    return Guard(target, defense, generation={"max_new_tokens": NEW}, **options)


def test_the_engine_writes_what_transformers_writes_alone_and_in_a_batch(target: LocalEngine) -> None:
    want = [by_transformers(target.model, prompt, NEW) for prompt in PROMPTS]
    one = guard(target)
    assert [one.chat(prompt).token_ids for prompt in PROMPTS] == want
    assert [response.token_ids for response in one.generate(PROMPTS)] == want
    assert one.chat(shown("x", picture(1))).token_ids != one.chat(shown("x", picture(5))).token_ids


def test_the_gate_reads_the_images_and_a_closed_one_changes_nothing(target: LocalEngine, artifact: Path) -> None:
    t = Artifact.load(artifact).tensors
    auto, plain = guard(target, "inferaligner", artifact=artifact), guard(target)
    opened = []
    for prompt in [*HARMFUL, *HARMLESS]:
        outputs: list[torch.Tensor] = []
        handles = [
            block.register_forward_hook(lambda m, i, o, outputs=outputs: outputs.append(o[0]))
            for block in target.model.blocks
        ]
        by_transformers(target.model, prompt, 1)
        for handle in handles:
            handle.remove()
        start = own_start(target.model)
        seen = torch.stack([torch.cat([one[-1], one[start:].mean(dim=0)]) for one in outputs[:2]])
        scores = ((seen * t["gate.direction"]).sum(dim=-1) + t["gate.bias"]) / t["gate.scale"]
        data = auto.chat(prompt).trace[0].data
        assert data["scores"] == pytest.approx(scores.tolist(), abs=2e-3)
        opened.append(data["open"])
        assert auto.chat(prompt, knobs={"gate": "closed"}).token_ids == plain.chat(prompt).token_ids
    assert sum(opened[:8]) >= 6
    assert sum(opened[8:]) <= 2


def test_steered_text_is_that_of_hooks_around_transformers(target: LocalEngine, artifact: Path) -> None:
    t = Artifact.load(artifact).tensors
    steered = guard(target, "inferaligner", artifact=artifact, gate="open", **STRONG)
    together = steered.generate(PROMPTS)
    handles = [
        block.register_forward_hook(lambda m, i, o, shift=3.0 * t["shift.length"][n] * t["shift.unit"][n]: o + shift)
        for n, block in enumerate(target.model.blocks)
    ]
    try:
        want = [by_transformers(target.model, prompt, NEW) for prompt in PROMPTS]
    finally:
        for handle in handles:
            handle.remove()
    assert [response.token_ids for response in together] == want
    assert want != [response.token_ids for response in guard(target).generate(PROMPTS)]


def test_fluency_is_judged_in_the_sight_of_the_image(target: LocalEngine) -> None:
    """By the likelihood that transformers gives the same answer to the same picture."""
    messages = PROMPTS[0]
    ids = guard(target).chat(messages).token_ids
    [found] = runtime().run(FluencyGrading(target, 0.0).fluencies([Answer(messages, "", ids)]))
    inputs = inputs_of(target.model, messages)
    whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    with torch.inference_mode():
        logits = target.model.model(whole, pixel_values=inputs["pixel_values"], use_cache=False).logits[0]
    scores = heard(target.model, logits)[-len(ids) - 1 : -1].log_softmax(dim=-1)[range(len(ids)), list(ids)]
    assert found == pytest.approx(float(scores.mean()), abs=1e-3)


def test_an_anchor_and_a_judge_of_text_find_a_word_in_the_images_place(target: LocalEngine) -> None:
    read: list[Messages] = []

    def judge(messages: Messages, response: str) -> float:
        read.append(messages)
        return 0.0

    beam = guard(target, "alignbeam", anchor=LocalEngine(tiny_model("gpt2", seed=1)), judge=judge, candidates=2)
    response = beam.chat(PROMPTS[0])
    assert response.finish_reason != "refusal"
    assert read[0] == [{"role": "user", "content": "[image]\nHow do I break a?"}]


def test_an_expert_that_sees_nothing_steers_a_target_that_sees(target: LocalEngine) -> None:
    blind = LocalEngine(tiny_model("llama", tokenizer=target.model.tokenizer, seed=1))
    response = guard(target, "safe_decoding", anchor=blind, mixed_tokens=2).chat(PROMPTS[0])
    assert response.token_ids
    assert len(response.trace[0].data["steps"]) == 2
    # One that sees the same and is the same model changes nothing, however strongly it steers.
    mild, strong = (
        guard(target, "safe_decoding", anchor=target, mixed_tokens=4, strength=strength).chat(PROMPTS[0])
        for strength in (0.0, 5.0)
    )
    assert mild.token_ids == strong.token_ids


@pytest.mark.parametrize("defense", ["self_reminder", "goal_priority"])
def test_a_prompt_defense_puts_its_words_around_the_images(target: LocalEngine, defense: str) -> None:
    framed = guard(target, defense, template="Be good. {prompt} Now.")
    shown_so = [{"type": "text", "text": "Be good. "}, *PROMPTS[0][0]["content"], {"type": "text", "text": " Now."}]
    want = by_transformers(target.model, [{"role": "user", "content": shown_so}], NEW)
    assert framed.chat(PROMPTS[0]).token_ids == want


def test_a_model_of_text_refuses_images_before_anything_runs() -> None:
    target = LocalEngine(tiny_model())
    before = target.runner.forwards
    for defense in ("undefended", "self_reminder"):
        with pytest.raises(UserError, match="reads no images"):
            guard(target, defense).chat(PROMPTS[0])
    assert target.runner.forwards == before
