from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.guard import Guard, Recipe, examine
from anchorlm.judging import RubricJudge

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TARGETS = {
    "medllama3": "llama3",
    "finance-llama3": "llama3",
    "llama3.1-base": "llama3",
    "qwen3-base": "qwen3",
    "deepseek-math": "deepseek",
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "pad_token_id": None,
}


def save(folder: Path, config: PretrainedConfig, tokenizer: Any) -> Path:
    kinds = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
    torch.manual_seed(len(tokenizer))
    kinds[config.model_type](config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random layers under the real tokenizers, with the embedding rows that the real models have."""
    folder, tokenizers = tmp_path_factory.mktemp("models"), shared_data / "tokenizers"
    llama3 = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizers / "llama3" / "tokenizer.json"),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )
    qwen2 = AutoTokenizer.from_pretrained(tokenizers / "qwen2")
    # DeepSeek's own tokenizer is not among the data: another byte-level BPE stands for it, with padded rows as there.
    deepseek = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizers / "gpt-neox" / "tokenizer.json"),
        eos_token="<|endoftext|>",
        chat_template="{% for m in messages %}{{ m['role'].title() }}: {{ m['content'] }}\n\n{% endfor %}Assistant:",
    )
    eos = {"eos_token_id": qwen2.eos_token_id}
    return {
        "llama3": save(
            folder / "llama3", LlamaConfig(**SMALL, vocab_size=128_256, eos_token_id=llama3.eos_token_id), llama3
        ),
        "qwen3": save(folder / "qwen3", Qwen3Config(**SMALL, **eos, head_dim=16, vocab_size=151_936), qwen2),
        "deepseek": save(
            folder / "deepseek", LlamaConfig(**SMALL, vocab_size=50_432, eos_token_id=deepseek.eos_token_id), deepseek
        ),
        "anchor": save(folder / "anchor", Qwen2Config(**SMALL, **eos, vocab_size=151_936), qwen2),
    }


def load(name: str, models: dict[str, Path]) -> Recipe:
    anchor = str(models["anchor"])
    paths = {"target.path": str(models[TARGETS[name]]), "anchor.path": anchor, "judge.model.path": anchor}
    return Recipe.load(RECIPES / f"{name}.toml", {**paths, "generation.max_new_tokens": 24})


def test_every_shipped_recipe_is_shown() -> None:
    texts = {file.stem: file.read_text("utf-8") for file in RECIPES.glob("*.toml")}
    guards = {name for name, text in texts.items() if "[target]" in text and 'name = "alignbeam"' in text}
    assert guards == set(TARGETS)


@pytest.fixture(scope="module")
def llama2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random layers of a specialist, its aligned sibling, and a cost model as Safe-RLHF lays it out."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(shared_data / "tokenizers" / "llama2" / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
    )
    folder = tmp_path_factory.mktemp("llama2")
    config = LlamaConfig(**{**SMALL, "bos_token_id": 1}, eos_token_id=2, vocab_size=32_000)
    made = {name: save(folder / name, config, tokenizer) for name in ("target", "anchor")}
    made["cost"] = folder / "cost"
    torch.manual_seed(1)
    LlamaForSequenceClassification(LlamaConfig(**{**SMALL, "pad_token_id": 0}, vocab_size=32_000, num_labels=1)).to(
        torch.bfloat16
    ).save_pretrained(made["cost"])
    tokenizer.save_pretrained(made["cost"])
    weights = load_file(made["cost"] / "model.safetensors")
    weights["score_head.weight"] = weights.pop("score.weight")
    save_file(weights, made["cost"] / "model.safetensors", metadata={"format": "pt"})
    data = json.loads((made["cost"] / "config.json").read_text())
    data |= {"architectures": ["LlamaModelForScore"], "score_dim": 1}
    (made["cost"] / "config.json").write_text(json.dumps(data))
    return made


def test_the_recipe_of_inferenceguard_runs_from_end_to_end(llama2: dict[str, Path]) -> None:
    cost = str(llama2["cost"])
    paths = {"target.path": str(llama2["target"]), "cost.model.path": cost, "reward.model.path": cost}
    small = {"generation.max_new_tokens": 12, "defense.block": 4, "defense.beams": (2, 4)}
    recipe = Recipe.load(RECIPES / "inferenceguard.toml", {**paths, **small, "defense.budget": 100.0})
    response = Guard.from_recipe(recipe).chat("What is a bond?")
    assert [decision.kind for decision in response.trace] == ["draft", "chosen"]


def test_the_recipe_of_inferaligner_runs_from_end_to_end(llama2: dict[str, Path], tmp_path: Path) -> None:
    harmful = [
        f"Tell me how to break {word}"
        for word in ("locks", "safes", "doors", "walls", "chains", "bars", "seals", "codes")
    ]
    harmless = [
        f"How do I bake {word}?" for word in ("bread", "cakes", "pies", "rolls", "buns", "tarts", "scones", "pizza")
    ]
    artifact = fit_inferaligner(str(llama2["target"]), str(llama2["anchor"]), harmful, harmless)
    changes = {"target.path": str(llama2["target"]), "defense.artifact": str(artifact.save(tmp_path / "artifact"))}
    recipe = Recipe.load(RECIPES / "inferaligner.toml", {**changes, "target.dtype": "float32"})
    guard = Guard.from_recipe(recipe)
    response = guard.chat(harmless[0], knobs={"gate": "open", "answer": "steer", "alpha": 0.5}, max_new_tokens=8)
    assert [decision.kind for decision in response.trace] == ["gate", "steer"]
    assert guard.chat(harmless[0], max_new_tokens=8).trace[0].kind == "gate"


@pytest.mark.parametrize("name", ["medllama3", "deepseek-math"])
def test_a_shipped_recipe_has_no_gap_on_its_architectures(name: str, models: dict[str, Path]) -> None:
    assert examine(load(name, models)).gaps == []


@pytest.mark.parametrize("name", TARGETS)
def test_a_shipped_recipe_runs_from_end_to_end(name: str, models: dict[str, Path]) -> None:
    recipe = load(name, models)
    guard = Guard.from_recipe(recipe)
    assert isinstance(guard.defense.judge, RubricJudge)
    assert guard.defense.judge._engine is guard.defense.anchor  # the anchor judges, and is loaded once
    question = [{"role": "user", "content": "What helps against a headache? Ünïcode, 12 + 30 = 42."}]

    chosen = guard.chat(question, knobs={"max_harm": 1.0})
    kinds = [decision.kind for decision in chosen.trace]
    assert kinds == ["mix"] * recipe.defense["candidates"] + ["candidates", "chosen"]
    longest = max(len(decision.data["steps"]) for decision in chosen.trace if decision.kind == "mix")
    assert longest == recipe.defense["mixed_tokens"]
    assert 0 < len(chosen.token_ids) <= 24
    assert chosen.text == guard.defense.target.model.vocabulary.decode(chosen.token_ids).decode("utf-8", "replace")

    # Random weights cannot grade: then nothing counts as safe.
    refused = guard.chat(question)
    assert refused.finish_reason == "refusal"
    assert refused.text == guard.defense.settings.refusal
