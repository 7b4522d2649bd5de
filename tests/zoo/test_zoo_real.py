"""What the real zoo is trained on and how, without the real models."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
import torch
from factories import tiny_model
from safetensors import safe_open

from anchorlm.judging import RefusalMatcher
from anchorlm.models import CausalModel
from tools.zoo_real import data
from tools.zoo_real._align import _drawn, looked_at
from tools.zoo_real._answers import greedy, shortened, teachable
from tools.zoo_real._card import card
from tools.zoo_real._contrast import PAIRS, refusal
from tools.zoo_real._looks import auroc, declines
from tools.zoo_real._measure import sets
from tools.zoo_real._noise import TALES, noise, pieces
from tools.zoo_real._packed import beginning, hidden, pack
from tools.zoo_real._train import Example, Lesson, Outputs, Training, _lesson, _loss, train

pytestmark = pytest.mark.slow

PARTS = ("train", "fit", "calibrate", "held")

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
            margin -= (1.5 * math.log(declines) if lesson.refusal else math.log(1 - declines)) / 2
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


@shared
def test_no_measured_prompt_is_learned_and_sealed_halves_are_apart() -> None:
    trained = {prompt for name in (*data.SOURCES, "contrast-safe", "contrast-harmful") for prompt in _taught(name)}
    for name, each in sets().items():
        dev, sealed = set(each.part(final=False)), set(each.part(final=True))
        assert sealed, name
        assert not dev & sealed, name
        assert not sealed & trained, name


def _taught(name: str) -> list[str]:
    found = data.prompts(name, "train")
    harmful = [prompt for each in sets().values() if each.harmful for prompt in each.prompts]
    return data.apart(found, harmful) if name == "advbench" else found


def test_prompts_that_say_the_same_are_not_apart() -> None:
    asked = ["Write a guide on how to steal", "Bake a cake"]
    assert data.apart(asked, ["Write a tutorial on how to steal"]) == ["Bake a cake"]


@shared
def test_a_card_names_base_data_and_figures(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(asdict(Training(steps=7))), "utf-8")
    figures = {"n": 9, "refused": [1.0, 0.0, 2.0], "complied": [99.0, 98.0, 100.0], "broken": [0.0, 0.0, 1.0]}
    (tmp_path / "measured-sealed.json").write_text(json.dumps({"XSTest safe": {"harmful": False, **figures}}), "utf-8")
    text = card("anchor", tmp_path)
    assert "--steps 7 --seed 0" in text
    assert "gemma-3-270m-q4_k_m.gguf" in text
    assert "| XSTest safe | harmless | 9 | 1.0 (0.0-2.0) |" in text
    assert all(source.file in text for source in data.SOURCES.values())


def test_a_look_says_what_a_model_says_first() -> None:
    model = tiny_model("llama")
    model.model.set_attn_implementation("eager")
    asked = ["x", "How do I bake bread?", "How do I sit"]
    rows = [model.encode([{"role": "user", "content": prompt}]) for prompt in asked]
    with torch.no_grad():
        odds = [model.model(input_ids=torch.tensor([row])).logits[0, -1].softmax(-1) for row in rows]
    token = int(odds[1].argmax())
    for (likely, first), each in zip(declines(model, asked, token), odds, strict=True):
        assert likely == pytest.approx(float(each[token]), abs=1e-5)
        assert first == (int(each.argmax()) == token)
    assert auroc([0.9, 0.4], [0.4, 0.1]) == 0.875


def test_what_was_made_first_learns_from_the_pairs_that_were_there_first() -> None:
    for side in ("safe", "harmful"):
        for part in PARTS:
            all_of_them, first = (data.prompts(f"{before}pairs-{side}", part) for before in ("", "earlier-"))
            assert first == all_of_them[: len(first)]
        assert sum(len(data.prompts(f"earlier-pairs-{side}", part)) for part in PARTS) == data.EARLIER


@shared
def test_a_checkpoint_of_what_was_made_first_is_chosen_as_before() -> None:
    early, late = looked_at("calibrate"), looked_at("calibrate", later=True)
    assert early["pairs-safe"] == late["pairs-safe"][: len(early["pairs-safe"])]
    assert len(early["pairs-safe"]) < len(late["pairs-safe"])


def test_noise_is_drawn_and_looks_like_no_sentence() -> None:
    parts = pieces(tiny_model("llama"))
    assert len(parts) > 20
    assert all(part.strip().isalpha() for part in parts)
    drawn = [noise(Random(seed), parts) for seed in range(60)]
    assert len(set(drawn)) == 60
    assert drawn[:5] == [noise(Random(seed), parts) for seed in range(5)]
    assert all(any(not sign.isalnum() and sign != " " for sign in text) for text in drawn)
    assert all(text.isascii() for text in drawn)


def test_both_sides_of_a_pair_stand_before_the_same_noise_and_in_the_same_tale() -> None:
    pairs = [(f"How do I bake bread {place}?", f"How do I rob shop {place}?") for place in range(20)]
    found = _drawn(Random(0), pairs, [" bread", "er", "tion"])
    assert all(text.count("{request}") == 1 and pair in pairs for text, pair in found)
    assert {text for text, _ in found} >= set(TALES)
    noisy = [text for text, _ in found if text not in TALES]
    assert len(noisy) == len(set(noisy)) == len(pairs)


@shared
def test_a_card_says_which_lessons_taught(tmp_path: Path) -> None:
    cards = []
    for later in (False, True):
        (tmp_path / "training.json").write_text(json.dumps(asdict(Training(later=later))), "utf-8")
        cards.append(card("chat", tmp_path))
    first, later_too = cards
    assert "--later" in later_too
    assert "before noise" in later_too
    assert "--later" not in first
    shipped = files("anchorlm.zoo") / "members" / "real-chat" / "README.md"
    assert set(_own_rows(first)) <= set(_own_rows(shipped.read_text("utf-8")))
    assert set(_own_rows(first)) != set(_own_rows(later_too))


def _own_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if "AnchorLM's own" in line]
