"""The shapes of the two families."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SeedOssConfig,
    SeedOssForCausalLM,
)

from tools.zoo._tokenizers import DIALECTS, END_OF_TEXT, save_tokenizer

CONTEXT = 512
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def new_model(family: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A freshly initialized model: Llama 192 x 6 for family A, Seed-OSS 160 x 7 for family B."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "attn_implementation": "sdpa",
        "dtype": "float32",
    }
    if family == "a":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
                num_key_value_heads=6, **common,
            )
        )  # fmt: skip
    # Qwen2's network under the name of Seed-OSS: for "qwen2" transformers always builds a byte-level tokenizer.
    return SeedOssForCausalLM(
        SeedOssConfig(
            hidden_size=160,
            intermediate_size=448,
            num_hidden_layers=7,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=32,
            attention_bias=True,
            attention_out_bias=False,
            attention_dropout=0.0,
            residual_dropout=0.0,
            **common,
        )
    )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, family: str, folder: Path) -> None:
    """Write a full model: half-precision weights under a float32 config, so that they load as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in (DIALECTS[family].end, END_OF_TEXT)]
    model.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, max_new_tokens=64, do_sample=False
    )
    weights = {name: value.half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=weights)
    save_tokenizer(tokenizer, folder)


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerFast, base: str, folder: Path) -> None:
    """Write an adapter in half precision; its base is named relative to the adapter's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = f"../{base}"
    config.inference_mode = True
    config.save_pretrained(folder)
    weights = {
        name: value.half().contiguous()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def start_from(model: PeftModel, folder: Path) -> None:
    """Makes a fresh adapter do what a saved one on the same base does, as nearly as its rank allows."""
    saved = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, layer in model.named_modules():
            if (down := saved.get(f"{name}.lora_A.weight")) is None:
                continue
            change = saved[f"{name}.lora_B.weight"].float() @ down.float()
            left, sizes, right = torch.linalg.svd(change, full_matrices=False)
            parts = layer.lora_A["default"], layer.lora_B["default"]
            root = sizes[: parts[0].out_features].sqrt()
            parts[0].weight.copy_(root[:, None] * right[: len(root)])
            parts[1].weight.copy_(left[:, : len(root)] * root)


def save_head(weight: Tensor, base: Path, folder: Path) -> None:
    """Makes the folder of a classifier's adapter one that transformers opens by itself, as a model with its adapter.

    Its configuration is the base's with a head of one logit; its index names the base's weights where they lie, so that
    they are there once, and the head's.
    """
    config = AutoConfig.from_pretrained(base)
    config.num_labels = len(weight)
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForSequenceClassification"]
    config.save_pretrained(folder)
    save_file({"score.weight": weight.half().contiguous()}, folder / "score.safetensors", metadata={"format": "pt"})
    with safe_open(base / "model.safetensors", framework="pt") as saved:
        places = dict.fromkeys(saved.keys(), f"../{base.name}/model.safetensors")
    index = {"metadata": {}, "weight_map": places | {"score.weight": "score.safetensors"}}
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
