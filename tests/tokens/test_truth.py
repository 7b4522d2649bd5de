"""Sampled truth on real tokenizers: texts of a law over the anchor's tokens, cut by the target, counted."""

from __future__ import annotations

import asyncio
import csv
import gzip
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokens.toys import behind
from torch import Tensor

from anchorlm.tokens import ByteVocabulary, Projection, Retokenizer, exact_projection

pytestmark = pytest.mark.slow

PAIRS = [("gpt2", "llama2"), ("qwen2", "mistral"), ("llama3", "phi3")]
SAMPLES = 10_000
LEAST = 150
"""Samples from which a distribution is told."""


class WordPairs:
    """p(next | last) as counted over the canonical tokens of texts; what it writes is canonical, too."""

    def __init__(self, vocabulary: ByteVocabulary, texts: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        self.stop = vocabulary.stop_id if vocabulary.stop_id is not None else min(vocabulary.special)
        self.counts: dict[int, Counter[int]] = defaultdict(Counter)
        for ids in vocabulary.encode_batch([f" {text}".encode() for text in texts]):
            for last, following in zip([-1, *ids], [*ids, self.stop], strict=True):
                self.counts[last][following] += 1

    def __call__(self, continuations: Sequence[tuple[int, ...]]) -> Tensor:
        rows = torch.zeros(len(continuations), self.vocabulary.size)
        for row, ids in zip(rows, continuations, strict=True):
            counts = self.counts.get(ids[-1] if ids else -1) or Counter({self.stop: 1})
            row[list(counts)] = torch.tensor(list(counts.values())) / counts.total()
        return rows

    def write(self, seed: random.Random) -> bytes:
        ids = [-1]
        while ids[-1] != self.stop and len(ids) < 200:
            counts = self.counts[ids[-1]]
            ids += seed.choices(list(counts), list(counts.values()))
        return self.vocabulary.decode(index for index in ids[1:] if index != self.stop)


def counted(texts: Sequence[bytes], target: ByteVocabulary) -> dict[tuple[int, ...], Counter[int]]:
    """After each of the first beginnings in the target's tokens, how often each token followed."""
    assert target.stop_id is not None
    found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for ids in target.encode_batch(texts):
        for count, following in enumerate([*ids, target.stop_id][:5]):
            found[tuple(ids[:count])][following] += 1
    return {beginning: counts for beginning, counts in found.items() if counts.total() >= LEAST}


def distance(counts: Counter[int], law: Tensor) -> float:
    """The total variation between counts and a law, above what as many samples of the law itself are away from it."""
    size = counts.total()
    seen = torch.zeros(len(law), dtype=torch.float64)
    seen[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64) / size
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [
            torch.bincount(torch.multinomial(law, size, True, generator=generator), minlength=len(law)) / size
            for _ in range(20)
        ]
    )
    noise = float(((drawn - law).abs().sum(-1) / 2).max())
    return float((seen - law).abs().sum()) / 2 - noise


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_law_is_the_sampled_truth_on_real_tokenizers(one: str, other: str, shared_data: Path) -> None:
    tokenizers = (Tokenizer.from_file(str(shared_data / "tokenizers" / n / "tokenizer.json")) for n in (one, other))
    anchor, target = map(ByteVocabulary.from_tokenizer, tokenizers)
    with gzip.open(shared_data / "datasets" / "banking77" / "test.csv.gz", "rt", encoding="utf-8") as file:
        model = WordPairs(anchor, [row["text"] for row in csv.DictReader(file)])
    seed = random.Random(0)
    truth = counted([model.write(seed) for _ in range(SAMPLES)], target)
    assert len(truth) >= 12
    projection, reader = Projection.build(anchor, target), Retokenizer(target)
    pending = 0
    for number, (written, counts) in enumerate(truth.items()):
        data = target.decode(written)
        encoded = Retokenizer(anchor).encode(data)
        pending += bool(encoded.tail)
        ids = encoded.ids + encoded.tail
        tokens = reader.open_tokens(reader.encode(data), written)
        steps = model([ids[:count] for count in range(len(encoded.ids), len(ids) + 1)])
        assert distance(counts, projection.project_pending(steps, encoded, written=tokens).double()) <= 0.02
        if number % 4 == 0:
            start = encoded.ids[: encoded.stable]
            asked = exact_projection(
                behind(model, start),
                anchor,
                target,
                pending=data[encoded.stable_bytes :],
                written=tokens,
                residual=2e-3,
            )
            assert distance(counts, asyncio.run(asked).probs) <= 0.02
    assert pending >= 5
