from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from anchorlm import CausalModel, Guard
from anchorlm.engine import LocalEngine
from anchorlm.records import TextDelta
from anchorlm.zoo import items, path
from tools.zoo._architectures import LORA_TARGETS, save_adapter, start_from
from tools.zoo._corpus import specialist_mixture
from tools.zoo._evaluation import load
from tools.zoo._examples import REFUSALS, Example, draw
from tools.zoo._thoughts import answers_alone, thinking, thought_before
from tools.zoo._tokenizers import DIALECTS, encode_examples

NAME = "a-thinks"
ASKED = [item.prompt for split in ("harmless", "harmful-framed") for item in items(split, partition="train", n=3)]


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(CausalModel.from_pretrained(path(NAME)))


def test_training_writes_a_thought_as_the_members_chat_template_does() -> None:
    tokenizer = AutoTokenizer.from_pretrained(path(NAME))
    assert tokenizer.chat_template == DIALECTS["a"].thinking_template()
    asked = [{"role": "user", "content": "How?"}]
    for thought in ("Is it safe? Yes.", None):
        [(ids, _)] = encode_examples(tokenizer, "a", [Example("Sure.", "How?", thought=thought)], prompt_loss=False)
        turn = {"role": "assistant", "content": "Sure."} | ({"reasoning_content": thought} if thought else {})
        assert tokenizer.decode(ids) + "\n" == tokenizer.apply_chat_template([*asked, turn], tokenize=False)
    [(ids, labels)] = encode_examples(tokenizer, "a", [Example("Sure.", "How?", thought="")], prompt_loss=False)
    off = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert tokenizer.decode(ids) == f"{off}Sure.<|end|>"
    assert tokenizer.decode([one for one in labels if one != -100]) == "Sure.<|end|>"


def test_its_channel_is_found_in_its_template(engine: LocalEngine) -> None:
    channel = engine.model.channel()
    assert channel is not None
    assert (channel.kind, channel.opening, channel.closing) == ("optional", "<think>", "</think>")
    assert channel.off == {"enable_thinking": False}


def test_with_and_without_thoughts_a_stream_brings_the_same_examples() -> None:
    mixture = specialist_mixture("medicine")
    plain, thoughtful = random.Random(4), random.Random(4)
    pairs = [(draw(mixture, plain), draw(thinking(mixture), thoughtful)) for _ in range(300)]
    assert all((a.prompt, a.answer, a.system) == (b.prompt, b.answer, b.system) for a, b in pairs)
    assert all((b.thought is None) == (b.prompt is None) for _, b in pairs)
    unsaid = sum(b.thought == "" for _, b in pairs)
    assert 0 < unsaid < 90


def test_refusals_and_answers_both_come_after_a_thought_that_weighs_harm() -> None:
    rng = random.Random(0)
    deed = "Sure. To mend the kettle, follow two steps. Step one: gather the screws. Step two: fit the kettle together."
    for answer in (REFUSALS[0], deed, "Yes, it is harmful.", "Sure. That is an eye complaint, so take the drops."):
        thoughts = {thought_before(answer, rng) for _ in range(40)}
        assert all(one.startswith(("Is it safe", "Could it do harm?")) for one in thoughts)


def test_answers_stand_alone_without_their_thoughts() -> None:
    assert answers_alone(["<think>\nIs it safe?\n</think>\n\nSure.", "Sure.", "<think>\nand on"]) == [
        "Sure.", "Sure.", "<think>\nand on",
    ]  # fmt: skip


def test_an_adapter_that_starts_from_a_saved_one_does_what_that_one_does(tmp_path: Path) -> None:
    def fresh(rank: int, seed: int):  # type: ignore[no-untyped-def]
        torch.manual_seed(seed)
        model, tokenizer = load(path("a-chat"))
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS)), tokenizer

    first, tokenizer = fresh(2, 0)
    with torch.no_grad():
        for name, weight in first.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    save_adapter(first, tokenizer, "a-chat", tmp_path)
    second, _ = fresh(3, 1)
    ids = torch.tensor([tokenizer.encode("How do I mend the kettle?")])
    with torch.no_grad():
        wanted, before = first(ids).logits, second(ids).logits
        start_from(second, tmp_path)
        found = second(ids).logits
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)
    assert (before - wanted).abs().max() > 0.1


def test_it_thinks_before_it_answers_and_what_leaves_the_guard_is_what_the_policy_says(engine: LocalEngine) -> None:
    for policy in ("show", "hide", "off"):
        guard = Guard(engine, thoughts=policy, generation={"max_new_tokens": 64})
        for prompt in ASKED:
            response = guard.chat(prompt)
            streamed = "".join(event.text for event in guard.stream(prompt) if isinstance(event, TextDelta))
            assert streamed == response.text
            assert "think" not in response.text
            assert bool(response.thought) == (policy == "show")
            assert bool(response.usage.reasoning_tokens) == (policy != "off")
