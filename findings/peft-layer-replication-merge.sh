#!/usr/bin/env bash
# A LoRA with layer_replication is merged into another model, without an error or a warning.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU). Seen on 2026-11-29.
# Guessed: merge_and_unload() gives the logits of the unmerged adapter, or raises, as for other kinds that cannot be
#   merged.
# Seen: layer_replication = [[0, 2], [0, 2]] makes four layers out of two, which share their base weights. Each copy has
#   a LoRA of its own, and merging adds all of them to the one weight that they share. The merged model has other
#   logits, and nothing is said.
# Remedy: keep such an adapter unmerged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" -W error::UserWarning - <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64,
)
adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layer_replication=[[0, 2], [0, 2]], task_type="CAUSAL_LM")
model = get_peft_model(LlamaForCausalLM(config), adapter).eval()
with torch.no_grad():
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.normal_(std=0.5)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    before = model(input_ids=ids).logits
    after = model.merge_and_unload()(input_ids=ids).logits
apart = float((before - after).abs().max())
print(f"largest difference of the logits after the merge: {apart:.3f}, of {float(before.abs().max()):.3f}")
assert apart > 0.01, "the behaviour has changed: the merged model is the unmerged one"
PY
