from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES, greedy, random_ids, tiny_model, tiny_tokenizer, tiny_weights
from transformers import AutoModelForSeq2SeqLM, T5Config

from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel
from anchorlm.records import GenerationSettings, UserError

pytestmark = pytest.mark.slow

NEW = 14
SETTINGS = GenerationSettings(max_new_tokens=NEW)


async def _write(engine: LocalEngine, prompt: list[int], delay: int = 0, new: int = NEW) -> list[int]:
    for _ in range(delay):
        await asyncio.sleep(0)
    async with engine.open(prompt, room=new) as sequence:
        return list((await sequence.generate(GenerationSettings(max_new_tokens=new))).token_ids)


async def _write_all(
    engine: LocalEngine, prompts: list[list[int]], delays: list[int], news: list[int]
) -> list[list[int]]:
    return await asyncio.gather(*(_write(engine, *one) for one in zip(prompts, delays, news, strict=True)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_is_that_of_generate_alone_and_among_rows_that_join_and_leave(architecture: str) -> None:
    model = tiny_model(architecture)
    prompts = random_ids(3, 17, 9, 1, 30)
    news = [NEW, 5, NEW, NEW, 9]
    expected = [greedy(model.model, prompt, new) for prompt, new in zip(prompts, news, strict=True)]
    assert len({token for text in expected for token in text}) > 3  # no trivial text
    engine = LocalEngine(model)
    assert runtime().run(_write_all(engine, prompts, [0, 25, 60, 0, 95], news)) == expected
    assert [
        runtime().run(_write(engine, prompt, 0, new)) for prompt, new in zip(prompts, news, strict=True)
    ] == expected


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_prompts_read_in_several_forwards_give_the_same_text(architecture: str) -> None:
    model = tiny_model(architecture)
    prompts = random_ids(40, 7, 23)
    expected = [greedy(model.model, prompt, NEW) for prompt in prompts]
    engine = LocalEngine(model, prefill_tokens=8)
    assert runtime().run(_write_all(engine, prompts, [0, 0, 30], [NEW] * 3)) == expected


def test_every_end_of_turn_id_ends_the_text() -> None:
    weights = tiny_weights("llama")
    (prompt,) = random_ids(6)
    text = greedy(weights, prompt, NEW)
    declared = [0, text[4], text[8]]
    weights.generation_config.eos_token_id = declared
    model = CausalModel.wrap(weights, tiny_tokenizer())
    assert set(declared) <= model.stop_ids
    assert runtime().run(_write(LocalEngine(model), prompt)) == greedy(weights, prompt, NEW, declared)


def test_embedding_rows_beyond_the_tokenizer_keep_their_logits() -> None:
    model = tiny_model("llama", vocab_size=384)
    (prompt,) = random_ids(5)

    async def logits() -> torch.Tensor:
        async with LocalEngine(model).open(prompt) as sequence:
            return await sequence.logits()

    assert runtime().run(logits()).shape == (model.vocab_size,) == (384,)


REFUSED = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "qwen3_next": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "num_experts": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_slots_cannot_serve_is_refused(architecture: str) -> None:
    model = tiny_model(architecture, **REFUSED[architecture])
    with pytest.raises(UserError, match="cannot be run in slots, because .*: choose a decoder"):
        LocalEngine(model)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = CausalModel.wrap(AutoModelForSeq2SeqLM.from_config(config), tiny_tokenizer())
    with pytest.raises(UserError, match="encoder-decoder"):
        LocalEngine(model)


def test_a_model_whose_slots_give_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    original = type(model.model).forward

    def wrong(self: object, *args: object, **kwargs: Any) -> object:
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"] * 2
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", wrong)
    with pytest.raises(UserError, match="its logits differ there"):
        LocalEngine(model)


def test_an_attention_without_masks_per_row_is_refused() -> None:
    model = tiny_model("llama")
    model.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match='attention = "sdpa"'):
        LocalEngine(model)


def test_a_model_without_a_template_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="anchorlm"):
        tiny_model("llama", tokenizer=tiny_tokenizer(chat_template=None))
    assert "has no chat template" in caplog.text
