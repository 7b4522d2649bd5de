"""GGUF files here and in a running llama-server (package xllamacpp): prompt tokens, chat prompts, greedy texts.

Wanted: xllamacpp, and the packages of the two models (`python -m tools.zoo_real --help`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from anchorlm.evaluation import Estimate
from anchorlm.models import CausalModel
from benchmarks._report import report
from benchmarks.judges import DATASETS, xstest
from tools.zoo_real import bases, data
from tools.zoo_real._answers import greedy

SEED = 20_261_129
TOKENS = 16


def texts(count: int) -> list[str]:
    """Texts of the shared data: prompts, questions, completions and the vectors that tokenizers are held against."""
    found = [prompt for name in data.SOURCES for part in ("train", "held") for prompt in data.prompts(name, part)]
    found += [row["completion"] for row in xstest()]
    with gzip.open(DATASETS / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        found += [json.loads(line)["answer"] for line in file]
    hard: list[str] = []
    for vectors in sorted((DATASETS.parent / "tokenizers" / "conformance").glob("*.inp")):
        hard += vectors.read_text("utf-8").split("\n__ggml_vocab_test__\n")
    hard = sorted({text for text in hard if text.strip()})
    others = sorted({text for text in found if text.strip()} - set(hard))
    Random(SEED).shuffle(others)
    return [*hard, *others][:count]


def server(file: Path, threads: int) -> Callable[[str, dict[str, Any]], Any]:
    """A llama-server on this very file, as a function that posts."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup = 2048, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    running = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            running.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    return post


def compared(name: str, count: int, prompts: int, threads: int) -> list[list[object]]:
    file = bases.BASES[name].path()
    post, model = server(file, threads), CausalModel.from_pretrained(file)
    rows: list[list[object]] = []

    def add(what: str, same: int, of: int) -> None:
        rate = Estimate.of_rate(same, of)
        rows.append([name, what, f"{same} of {of}", f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"])

    same = 0
    for text in (chosen := texts(count)):
        theirs = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        ours = model.tokenizer(text)["input_ids"]
        same += ours == theirs
        if ours != theirs:
            print(f"{name}: {text[:80]!r}: {ours[:12]} and {theirs[:12]}")
    add("tokens of texts", same, len(chosen))
    asked = [
        *data.prompts("self-instruct-users", "held")[: prompts // 2],
        *data.prompts("banking77", "held")[: prompts - prompts // 2],
    ]
    turns = [[{"role": "user", "content": prompt}] for prompt in asked]
    if model.chat_template is not None:
        written = [post("/apply-template", {"messages": one})["prompt"] for one in turns]
        bodies = [{"content": text, "add_special": False, "parse_special": True} for text in written]
        same = sum(
            post("/tokenize", body)["tokens"] == model.encode(one) for body, one in zip(bodies, turns, strict=True)
        )
        add("tokens of conversations", same, len(asked))
    theirs = [_greedy(post, model.encode(one)) for one in turns]
    ours = greedy(model, asked, TOKENS)
    add(f"greedy texts of conversations, {TOKENS} tokens", sum(map(str.__eq__, ours, theirs)), len(asked))
    gaps = [gap for row in zip(turns, ours, theirs, strict=True) if (gap := _gap(model, *row)) is not None]
    if gaps:
        told = f"{median(gaps):.2f} apart here in log-probability (median), {max(gaps):.2f} at most"
        print(f"{name}: where texts part, the two tokens are {told}")
    return rows


def _gap(model: CausalModel, turns: list[dict[str, str]], ours: str, theirs: str) -> float | None:
    """How much likelier our token is here than theirs, where two texts part. None where they do not."""
    a, b = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (ours, theirs))
    place = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), None)
    if place is None:
        return None
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([model.encode(turns) + a[:place]])).logits[0, -1].float()
    return float(logits[a[place]] - logits[b[place]])


def _greedy(post: Callable[[str, dict[str, Any]], Any], ids: list[int]) -> str:
    sampling = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
    return str(post("/completion", {"prompt": ids, "n_predict": TOKENS, "cache_prompt": False, **sampling})["content"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", nargs="+", default=["smollm2", "gemma"], choices=sorted(bases.BASES))
    options.add_argument("--texts", type=int, default=1000)
    options.add_argument("--prompts", type=int, default=100)
    options.add_argument("--threads", type=int, default=1, help="Of llama.cpp, which spins where cores are busy.")
    given = options.parse_args()
    rows = [row for name in given.models for row in compared(name, given.texts, given.prompts, given.threads)]
    report("gguf", ["model", "what", "equal", "95 % interval, %"], rows)


if __name__ == "__main__":
    main()
