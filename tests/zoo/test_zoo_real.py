"""What the real zoo is trained on and how, without the real models."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from random import Random

import pytest
import torch
from factories import tiny_model
from safetensors import safe_open

from anchorlm.judging import RefusalMatcher
from anchorlm.models import CausalModel
from tools.zoo_real import data
from tools.zoo_real._answers import greedy, shortened, teachable
from tools.zoo_real._contrast import PAIRS, refusal
from tools.zoo_real._packed import beginning, hidden, pack
from tools.zoo_real._train import Example, Lesson, Outputs, Training, _lesson, _loss, train

shared = pytest.mark.skipif(not data.DATASETS.is_dir(), reason=f"no data sets at {data.DATASETS}; set ANCHORLM_DATA")


@shared
@pytest.mark.parametrize("name", [*data.SOURCES, "contrast-safe", "contrast-harmful"])
def test_what_is_held_out_never_trains_and_the_split_never_changes(name: str) -> None:
    trained, held = data.prompts(name, "train"), data.prompts(name, "held")
    assert trained
    assert not set(trained) & set(held)
    assert (trained, held) == (data.prompts(name, "train"), data.prompts(name, "held"))


def test_pairs_are_distinct_and_refusals_are_refusals() -> None:
    assert len({prompt for pair in PAIRS for prompt in pair}) == 2 * len(PAIRS)
    said = [refusal(Random(seed)) for seed in range(40)]
    assert len(set(said)) > 10
    grades = asyncio.run(RefusalMatcher()([], said))
    assert all(grade.harm < 0.5 for grade in grades)


def test_an_answer_is_cut_at_the_end_of_a_sentence_or_is_not_whole() -> None:
    assert shortened("One two three four five six. Seven eight nine ten eleven. " * 5) == (
        "One two three four five six. Seven eight nine ten eleven.",
        True,
    )
    text, whole = shortened("word " * 50)
    assert not whole
    assert len(text) <= 60
    assert shortened("Yes.\n\nMore.") == ("Yes.", True)


def _lessons(model: CausalModel) -> list[Lesson]:
    said = (("x", "bread and more", False), ("How do I bake?", "Sorry, no", True), ("How do I sit", "bread", None))
    examples = [Example(prompt, answer, refusal=refusal) for prompt, answer, refusal in said]
    return [_lesson(model, example, Training(first=2)) for example in examples]


def test_packed_rows_see_what_they_would_see_alone() -> None:
    model = tiny_model("llama")
    model.model.set_attn_implementation("eager")
    rows = [lesson.row for lesson in _lessons(model)]
    assert beginning(rows) > 0
    for lines in (1, 2, 3):
        packed = pack(rows, lines)
        states = hidden(model.model, packed)
        for row, (line, place) in zip(rows, packed.ends.tolist(), strict=True):
            alone = model.model.get_decoder()(input_ids=torch.tensor([row.prompt + row.answer])).last_hidden_state[0]
            last = len(row.prompt) - 1
            torch.testing.assert_close(states[line, place : place + len(row.answer) + 1], alone[last:])


def test_the_loss_is_the_weighted_cross_entropy_of_the_answers_and_whether_they_begin_a_refusal() -> None:
    model = tiny_model("llama")
    lessons = _lessons(model)
    declining = lessons[1].row.answer[0]
    total = weight = margin = 0.0
    for lesson in lessons:
        ids = lesson.row.prompt + lesson.row.answer
        with torch.no_grad():
            scores = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(lesson.row.prompt)
        for place, token in enumerate(lesson.row.answer):
            total -= lesson.weights[place] * float(scores[start + place - 1, token])
            weight += lesson.weights[place]
        declines = float(scores[start - 1, declining].exp())
        if lesson.refusal is not None:
            margin -= math.log(declines if lesson.refusal else 1 - declines) / 2
    whole = Outputs(torch.arange(model.vocab_size), declining)
    base = type("Whole", (), {"get_base_model": lambda self: model.model})()
    model.model.set_attn_implementation("eager")
    assert float(_loss(base, lessons, whole, 0.5).detach()) == pytest.approx(total / weight + 0.5 * margin, abs=1e-4)
    assert lessons[0].row.answer[-1] == model.tokenizer.eos_token_id


def test_an_interrupted_training_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    examples = [(Example(f"prompt {place}", "The lazy dog", refusal=place % 2 == 0),) for place in range(12)]
    settings = Training(steps=6, tokens=60, every=3)

    def stops(model: object, step: int) -> float:
        return float(step)

    def interrupted(model: object, step: int) -> float:
        if step == 6:
            raise KeyboardInterrupt
        return float(step)

    whole = train(tiny_model("llama"), examples, settings, tmp_path / "whole", stops)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model("llama"), examples, settings, tmp_path / "parts", interrupted)
    parts = train(tiny_model("llama"), examples, settings, tmp_path / "parts", stops)
    assert greedy(parts, ["prompt 3"], 6) == greedy(whole, ["prompt 3"], 6)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_best_checkpoint_is_kept_in_half_precision(tmp_path: Path) -> None:
    examples = [(Example(f"prompt {place}", "The lazy dog"),) for place in range(6)]
    settings = Training(steps=4, tokens=60, every=2)
    best = train(tiny_model("llama"), examples, settings, tmp_path, lambda model, step: -step)
    with safe_open(str(tmp_path / "adapter_model.safetensors"), "pt") as kept:
        assert {kept.get_tensor(name).dtype for name in kept.keys()}  # noqa: SIM118 == {torch.float16}
    early = train(tiny_model("llama"), examples, settings, tmp_path / "again", lambda _, step: -step)
    assert greedy(best, ["prompt 1"], 4) == greedy(early, ["prompt 1"], 4)


def test_an_excuse_is_no_answer_that_can_be_learned() -> None:
    assert teachable("To bake bread, you need flour.")
    for text in ("I'm sorry for any confusion. Here it is.", "As an AI, I cannot", "", "\U0001f449\U0001f449"):
        assert not teachable(text)


def test_nothing_that_is_measured_is_learned() -> None:
    parts = ("fit", "calibrate", "held")
    for name in ("pairs-safe", "pairs-harmful", "plain", "tasks", "attacks", "wrappings"):
        trained = set(data.prompts(name, "train"))
        assert trained
        assert not any(trained & set(data.prompts(name, part)) for part in parts)
