"""Adapters do what they did when they were trained; what cannot is refused, by `check` and loading alike.

PEFT #2018 and #2972 (tied ends), #1030 (other kinds); LlamaFactory #7997, vLLM #36501, lm-eval #1828 (grown
vocabularies); vLLM #6227 and #17855 (tokenizer and template beside an adapter).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import CHAT_TEMPLATE, tiny_tokenizer, tiny_weights
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    C3AConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    RoadConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from anchorlm.models import CausalModel, ModelSettings, load_outline, stamp
from anchorlm.records import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
IDS = torch.tensor([[5, 6, 7, 8, 9, 200, 201]])


def saved_base(folder: Path, **options: Any) -> Path:
    tiny_weights("llama", **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, config: PeftConfig, rows: int | None = None) -> torch.Tensor:
    """An adapter with other weights than it began with, saved by PEFT; the logits of the model that was trained."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    tuned = get_peft_model(model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
        logits: torch.Tensor = tuned(input_ids=IDS).logits
    tuned.save_pretrained(folder)
    return logits


def ours(*paths: Path, **settings: Any) -> torch.Tensor:
    if len(paths) == 2:
        settings["adapter"] = str(paths[1])
    with torch.no_grad():
        logits: torch.Tensor = CausalModel.from_pretrained(paths[0], **settings).model(IDS).logits
    return logits


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **options})


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [5, 9]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_merged_lora_is_what_was_trained_with_ends_that_are_tied_or_not(
    options: dict[str, Any], tie: bool, tmp_path: Path
) -> None:
    base = saved_base(tmp_path / "base", tie_word_embeddings=tie)
    trained = train(base, tmp_path / "adapter", lora(**options))
    torch.testing.assert_close(ours(tmp_path / "adapter"), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True),
        lora(bias="all"),
        LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        LoKrConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        OFTConfig(oft_block_size=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        MissConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        C3AConfig(block_size=16, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        AdaLoraConfig(total_step=10, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
        HRAConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        FourierFTConfig(n_frequency=50, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        TrainableTokensConfig(token_indices=[5, 9], task_type="CAUSAL_LM"),
        RandLoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        DeloraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        RoadConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_every_kind_that_is_merged_gives_what_peft_gives_unmerged(config: PeftConfig, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    trained = train(base, tmp_path / "adapter", config)
    plain = AutoModelForCausalLM.from_pretrained(base)
    unmerged = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(unmerged(input_ids=IDS).logits, trained)
    torch.testing.assert_close(ours(base, tmp_path / "adapter"), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
        BOFTConfig(boft_block_size=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        lora(alora_invocation_tokens=[8, 9]),
        lora(layer_replication=[[0, 2], [0, 2]]),
    ],
    ids=["prompt tuning", "prefix tuning", "p-tuning", "BOFT", "activated LoRA", "layer replication"],
)
def test_a_kind_that_cannot_be_merged_is_refused_before_a_weight_is_read(config: PeftConfig, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    said = []
    for load in (CausalModel.load, CausalModel.outline):
        with pytest.raises(UserError, match="cannot be merged .*give one that can, such as a plain LoRA") as caught:
            load(ModelSettings(path=str(tmp_path / "adapter")))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {}, {"trainable_token_indices": [330, 331]}]
)
def test_an_adapter_with_a_grown_vocabulary_is_what_was_trained(
    options: dict[str, Any], tie: bool, tmp_path: Path
) -> None:
    base = saved_base(tmp_path / "base", tie_word_embeddings=tie)
    trained = train(base, tmp_path / "adapter", lora(**options), rows=332)
    loaded = ours(tmp_path / "adapter")
    assert loaded.shape[-1] == 332
    torch.testing.assert_close(loaded, trained, atol=1e-4, rtol=1e-4)


def test_weights_that_an_adapter_brings_and_nobody_uses_are_refused(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    train(base, tmp_path / "adapter", lora())
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "layers_to_transform": [0]}))
    for load in (CausalModel.load, CausalModel.outline):
        with pytest.raises(UserError, match="2 of its weights have no place there.*give the base model"):
            load(ModelSettings(path=str(tmp_path / "adapter")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merging_in_half_precision_rounds_each_weight_once(dtype: str, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    train(base, tmp_path / "adapter", lora())
    half = getattr(torch, dtype)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=half).float()
    exact = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    found = CausalModel.from_pretrained(tmp_path / "adapter", dtype=dtype).model
    for name, weight in exact.named_parameters():
        assert torch.equal(dict(found.named_parameters())[name], weight.to(half)), name


def test_a_base_that_is_not_here_or_goes_in_a_circle_is_a_sentence(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    train(base, tmp_path / "adapter", lora())
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    for named, said in (
        ("/nowhere/base", "There is no folder '/nowhere/base', which the adapter .* names as its base model: give"),
        ("../adapter", "names itself as its base model"),
    ):
        file.write_text(json.dumps({**settings, "base_model_name_or_path": named}))
        with pytest.raises(UserError, match=said):
            CausalModel.from_pretrained(tmp_path / "adapter")
    assert ours(base, tmp_path / "adapter").shape[1] == IDS.shape[1]


def test_the_tokenizer_and_template_with_an_adapter_come_first_however_it_is_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_weights("llama", vocab_size=330).save_pretrained(base)
    tiny_tokenizer(chat_template=None).save_pretrained(base)
    train(base, tmp_path / "adapter", lora())
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path / "adapter")
    turn = [{"role": "user", "content": "bread"}]
    expected = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    for paths in ([tmp_path / "adapter"], [base, tmp_path / "adapter"]):
        options = {"adapter": str(paths[1])} if len(paths) > 1 else {}
        model = CausalModel.from_pretrained(paths[0], **options)
        assert model.tokenizer.decode(model.encode(turn)) == expected
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.stop_ids


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_alone_with_an_adapter_is_taken_with_the_tokenizer_of_the_base(where: str, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    train(base, tmp_path / "adapter", lora())
    template = "T {{ messages[0]['content'] }}"
    content = template if where.endswith("jinja") else json.dumps({"chat_template": template})
    (tmp_path / "adapter" / where).write_text(content)
    model = CausalModel.from_pretrained(base, adapter=str(tmp_path / "adapter"))
    assert model.tokenizer.decode(model.encode([{"role": "user", "content": "x"}])) == "T x"


def test_a_tokenizer_without_a_template_with_an_adapter_keeps_the_template_of_the_base(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    train(base, tmp_path / "adapter", lora())
    tiny_tokenizer(chat_template=None).save_pretrained(tmp_path / "adapter")
    assert CausalModel.from_pretrained(tmp_path / "adapter").chat_template == CHAT_TEMPLATE


def test_an_adapter_is_the_same_model_by_path_or_by_base_and_another_one_with_another_scale(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    train(base, tmp_path / "adapter", lora())
    known = stamp(CausalModel.from_pretrained(tmp_path / "adapter", dtype="bfloat16"))
    assert known.difference(stamp(CausalModel.from_pretrained(base, adapter=str(tmp_path / "adapter")))) is None
    assert known.difference(stamp(CausalModel.from_pretrained(base))) == "other weights"
    assert known.difference(stamp(CausalModel.outline(ModelSettings(path=str(tmp_path / "adapter"))))) is None
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 64}))
    assert known.difference(stamp(CausalModel.from_pretrained(tmp_path / "adapter"))) == "other weights"


def test_the_outline_of_a_model_with_an_adapter_has_the_shapes_of_the_loaded_one(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", tie_word_embeddings=True)
    train(base, tmp_path / "adapter", lora(target_modules=["q_proj", "lm_head"]))
    shapes = [
        {name: each.shape for name, each in model.named_parameters()}
        for model in (
            load_outline(ModelSettings(path=str(tmp_path / "adapter"))),
            CausalModel.from_pretrained(tmp_path / "adapter").model,
        )
    ]
    assert shapes[0] == shapes[1]
