"""All ordered pairs of the real tokenizers: is mass conserved, how long do building, loading and applying take."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tokenizers import Tokenizer

from anchorlm.tokens import ByteVocabulary, Projection
from benchmarks._report import report

TOKENIZERS = (
    Path(os.environ.get("ANCHORLM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "tokenizers"
)
NAMES = ("gpt2", "gpt-neox", "llama2", "mistral", "phi3", "llama3", "qwen2")
RUNS = 101


def milliseconds(function: Callable[[], Any], runs: int = RUNS) -> float:
    times = []
    for _ in range(runs):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return statistics.median(times) * 1e3


def timed(function: Callable[[], Projection]) -> tuple[Projection, float]:
    start = perf_counter()
    return function(), perf_counter() - start


def paper_step(anchor: Tokenizer, target: Tokenizer, probs: torch.Tensor) -> None:
    """What the paper does at each step: decode the 50 likeliest tokens, encode each."""
    mass, ids = probs[0].topk(50)
    spread = torch.zeros(target.get_vocab_size())
    for value, index in zip(mass, ids.tolist(), strict=True):
        found = target.encode(anchor.decode([index]), add_special_tokens=False).ids
        if len(found) == 1:
            spread[found[0]] += value


def scattered(out: torch.Tensor, index: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """What a projection is at least: one scatter."""
    return torch.zeros_like(out).scatter_add_(1, index, probs)


def main() -> None:
    if not TOKENIZERS.is_dir():
        print(f"projections: skipped, no tokenizers at {TOKENIZERS}; set ANCHORLM_DATA")
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a second thread gains little here and stalls on a busy machine
    tokenizers = {name: Tokenizer.from_file(str(TOKENIZERS / name / "tokenizer.json")) for name in NAMES}
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for one, other in permutations(NAMES, 2):
            anchor, target = tokenizers[one], tokenizers[other]
            built, build = timed(partial(Projection.build, anchor, target, cache_dir=cache))
            ahead, build_ahead = timed(partial(Projection.build, anchor, target, "lookahead", cache_dir=cache))
            fresh = (Tokenizer.from_str(anchor.to_str()), Tokenizer.from_str(target.to_str()))
            _, cached = timed(partial(Projection.build, *fresh, cache_dir=cache))
            probs = (4 * torch.randn(1, built.anchor_size)).softmax(-1)
            candidates = ahead.lookahead_candidates(probs, floor=0.0)
            further = (4 * torch.randn(len(candidates), built.anchor_size)).softmax(-1)
            sums = built(probs).sum(), ahead(probs, candidates, further).sum()
            index = torch.randint(0, built.target_size, (1, built.anchor_size))
            out = torch.zeros(1, built.target_size)
            shares = built.report()
            rows.append(
                [
                    one,
                    other,
                    max(abs(float(total) - 1) for total in sums),
                    shares.one_to_one,
                    shares.split,
                    shares.dropped,
                    build,
                    build_ahead,
                    cached,
                    milliseconds(partial(built, probs)),
                    milliseconds(partial(scattered, out, index, probs)),
                    milliseconds(partial(paper_step, anchor, target, probs), 21),
                ]
            )
        identity: list[list[Any]] = []
        for name, tokenizer in tokenizers.items():
            vocabulary = ByteVocabulary.from_tokenizer(tokenizer)
            probs = (4 * torch.randn(4, vocabulary.size)).softmax(-1)
            errors = [
                float((Projection.build(vocabulary, vocabulary, kind, cache_dir=cache)(probs) - probs).abs().max())
                for kind in ("first-token", "lookahead")
            ]
            identity.append([name, max(errors)])
    columns = ("anchor", "target", "mass error", "one-to-one", "split", "dropped")
    times = ("build, s", "build lookahead, s", "cached, s", "apply, ms", "bare scatter, ms", "paper's loop, ms")
    report("projections", (*columns, *times), rows)

    report("projections onto the same vocabulary", ("tokenizer", "largest error"), identity)


if __name__ == "__main__":
    main()
