"""Language models small enough to enumerate, tiny tokenizers, and the law that a projection is to find."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from anchorlm.tokens import ByteVocabulary

NextProbs = Callable[[Sequence[tuple[int, ...]]], Tensor]


def behind(model: NextProbs, start: tuple[int, ...]) -> NextProbs:
    """The same model, after the tokens of `start`."""
    return lambda continuations: model([start + ids for ids in continuations])


class PairModel:
    """p(next | last), counted over the canonical tokens of a corpus; ends for certain after `length` tokens."""

    def __init__(self, vocabulary: ByteVocabulary, corpus: Sequence[str], *, length: int = 1000) -> None:
        assert vocabulary.stop_id is not None
        self.vocabulary = vocabulary
        self.length = length
        self.stop = torch.zeros(vocabulary.size)
        self.stop[vocabulary.stop_id] = 1
        counts = torch.full((vocabulary.size + 1, vocabulary.size), 1e-9)
        for text in corpus:
            last = vocabulary.size
            for index in (*vocabulary.encode(text.encode()), vocabulary.stop_id):
                counts[last, index] += 1
                last = index
        self.table = counts / counts.sum(1, keepdim=True)

    def __call__(self, continuations: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.stack(
            [self.stop if len(ids) >= self.length else self.table[ids[-1] if ids else -1] for ids in continuations]
        )


def tiny_bpe(merges: Sequence[tuple[str, str]], letters: str = "ab▁", *, splits: bool, stop: bool = True) -> Tokenizer:
    """BPE over a few letters: words are pre-tokens, or (as for Gemma) a pre-tokenizer never splits."""
    pieces = ["</s>"] * stop + list(letters)
    for left, right in merges:
        pieces += [left + right] * (left + right not in pieces)
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, list(merges)))
    if stop:
        tokenizer.add_special_tokens(["</s>"])
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


class RandomModel:
    """p(next | last) drawn at random over some tokens of a vocabulary; ends for certain after `length` tokens."""

    def __init__(self, vocabulary: ByteVocabulary, tokens: Sequence[int], *, seed: int, length: int) -> None:
        assert vocabulary.stop_id is not None
        self.vocabulary = vocabulary
        self.length = length
        self.stop = torch.zeros(vocabulary.size)
        self.stop[vocabulary.stop_id] = 1
        chosen = [*tokens, vocabulary.stop_id]
        self.table = torch.zeros(vocabulary.size + 1, vocabulary.size)
        draws = torch.randn(vocabulary.size + 1, len(chosen), generator=torch.Generator().manual_seed(seed))
        self.table[:, chosen] = (1.5 * draws).softmax(-1)

    def __call__(self, continuations: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.stack(
            [self.stop if len(ids) >= self.length else self.table[ids[-1] if ids else -1] for ids in continuations]
        )

    def texts(self) -> dict[bytes, float]:
        """Every text that it can write, with its probability."""
        found: dict[bytes, float] = {}
        waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        while waiting:
            ids, mass = waiting.pop()
            for index, share in enumerate(self([ids])[0].tolist()):
                if index == self.vocabulary.stop_id:
                    text = self.vocabulary.decode(ids)
                    found[text] = found.get(text, 0.0) + mass * share
                elif share:
                    waiting.append(((*ids, index), mass * share))
        return found


def laws(texts: dict[bytes, float], target: ByteVocabulary) -> dict[tuple[int, ...], Tensor]:
    """By definition: after each beginning in the target's canonical tokens, the distribution of the next one."""
    assert target.stop_id is not None
    found: dict[tuple[int, ...], Tensor] = {}
    for text, mass in texts.items():
        ids = (*target.encode(text), target.stop_id)
        for count, following in enumerate(ids):
            found.setdefault(ids[:count], torch.zeros(target.size, dtype=torch.float64))[following] += mass
    return {beginning: law / law.sum() for beginning, law in found.items() if float(law.sum()) > 1e-6}
