"""What the real zoo is trained on and how, without the real models."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
import torch
from factories import tiny_model
from torch.nn import functional

from anchorlm.judging import RefusalMatcher
from tools.zoo_real import data
from tools.zoo_real._answers import greedy, shortened
from tools.zoo_real._contrast import PAIRS, refusal
from tools.zoo_real._train import Example, Training, _loss, _row, train

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


def test_the_loss_is_the_weighted_cross_entropy_of_the_answers_alone() -> None:
    model = tiny_model("llama")
    rows = [_row(model, Example(prompt, "bread and more"), Training(first=2)) for prompt in ("x", "How do I bake?")]
    total = weight = 0.0
    for ids, weights in rows:
        with torch.no_grad():
            scores = model.model(input_ids=torch.tensor([ids])).logits[0]
        for place in range(1, len(ids)):
            each = functional.cross_entropy(scores[place - 1], torch.tensor(ids[place]))
            total, weight = total + weights[place] * float(each), weight + weights[place]
    base = type("Whole", (), {"get_base_model": lambda self: model.model})()
    assert float(_loss(base, rows).detach()) == pytest.approx(total / weight, abs=1e-4)
    assert rows[0][0][-1] == model.tokenizer.eos_token_id


def test_an_interrupted_training_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    examples = [Example(f"prompt {place}", "The lazy dog") for place in range(12)]
    settings = Training(steps=6, tokens=120, every=3)

    def stops(model: object, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = train(tiny_model("llama"), examples, settings, tmp_path / "whole", lambda model, step: None)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model("llama"), examples, settings, tmp_path / "parts", stops)
    parts = train(tiny_model("llama"), examples, settings, tmp_path / "parts", lambda model, step: None)
    assert greedy(parts, ["prompt 3"], 6) == greedy(whole, ["prompt 3"], 6)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
