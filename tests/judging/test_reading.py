from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES, random_ids, tiny_config, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

from anchorlm.judging import ClassifierScorer
from anchorlm.judging._reading import Reader
from anchorlm.records import Messages

CLASSIFIERS = [name for name in ARCHITECTURES if name != "seed_oss"]  # all alike, and the embedded ones are Seed-OSS
PAD = 1


def classifier(architecture: str) -> Any:
    torch.manual_seed(0)
    config = tiny_config(architecture, num_labels=2, initializer_range=0.3)
    config.pad_token_id = PAD
    return AutoModelForSequenceClassification.from_config(config).eval()


def padding() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.convert_ids_to_tokens(PAD), "right"
    return tokenizer


def one_by_one(model: Any, rows: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([row])).logits.float() for row in rows])


def calls_of(heads: list[list[int]], tails: list[list[list[int]]]) -> tuple[list[list[int]], list[int]]:
    rows = [head + tail for head, group in zip(heads, tails, strict=True) for tail in group]
    return rows, [call for call, group in enumerate(tails) for _ in group]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_what_rows_have_in_common_is_read_once_and_the_logits_are_those_of_whole_rows(architecture: str) -> None:
    model = classifier(architecture)
    reader = Reader(model, padding())
    for lengths in ([40, 25], [12, 50, 31]):
        rows, calls = calls_of(random_ids(*lengths), [random_ids(1, 3, 2, 5, seed=n) for n in lengths])
        before = reader.forwards
        found = reader.logits(rows, [[] for _ in rows], calls)
        torch.testing.assert_close(found, one_by_one(model, rows), rtol=1e-3, atol=1e-3)
    assert reader.forwards - before == 2  # the beginnings, and what follows


def test_an_encoder_reads_every_row_whole() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, num_labels=2, initializer_range=0.5, pad_token_id=PAD)  # fmt: skip
    model: Any = AutoModelForSequenceClassification.from_config(config).eval()
    reader = Reader(model, padding())
    rows, calls = calls_of([list(range(3, 40))], [[[50], [60, 61], [70]]])
    for _ in range(2):
        before = reader.forwards
        found = reader.logits(rows, [[] for _ in rows], calls)
        torch.testing.assert_close(found, one_by_one(model, rows), rtol=1e-4, atol=1e-4)
    assert reader.forwards - before == 1


LLAMA = classifier("llama")
READER = Reader(LLAMA, padding())
IDS = st.integers(PAD, 9)  # few, so that rows coincide, are beginnings of one another, and end as padding does


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.lists(IDS, min_size=1, max_size=12), min_size=1, max_size=4), min_size=1, max_size=3))
def test_any_rows_of_any_calls_have_the_logits_of_a_reader_that_shares_nothing(groups: list[list[list[int]]]) -> None:
    rows, calls = calls_of([[5, 6, 7, 8, 9, 4, 3]] * len(groups), groups)
    plain = Reader(LLAMA, padding())
    plain._shares = {False: False, True: False}
    types: list[list[int]] = [[] for _ in rows]
    torch.testing.assert_close(
        READER.logits(rows, types, calls), plain.logits(rows, types, calls), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("configured", "own"), [(7, PAD), (PAD, None), (-1, PAD), (None, None)])
def test_a_score_depends_on_no_neighbor_whatever_configuration_and_tokenizer_pad_with(
    configured: int | None, own: int | None
) -> None:
    model, tokenizer = classifier("llama"), tiny_tokenizer()
    model.config.pad_token_id = configured
    tokenizer.pad_token = None if own is None else tokenizer.convert_ids_to_tokens(own)
    scorer = ClassifierScorer(model, tokenizer, label=1)
    asks: list[Messages] = [[{"role": "user", "content": "Bake " * n}] for n in (1, 9, 30)]

    async def side_by_side() -> list[list[float]]:
        return list(await asyncio.gather(*(scorer(ask, ["The quick brown fox"]) for ask in asks)))

    alone = [asyncio.run(scorer(ask, ["The quick brown fox"])) for ask in asks]
    for one, other in zip(asyncio.run(side_by_side()), alone, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
def test_a_scorer_gives_many_responses_to_one_request_the_scores_that_each_has_alone() -> None:
    tokenizer = padding()
    scorer = ClassifierScorer(classifier("llama"), tokenizer, label=1)
    ask: Messages = [{"role": "user", "content": "How do I bake bread? " * 4}]
    responses = ["The quick", "The quick brown", "The lazy dog jumps over 42", ""]
    for _ in range(2):  # the first call looks whether the model can share at all
        together = asyncio.run(scorer(ask, responses))
        alone = [asyncio.run(scorer(ask, [response]))[0] for response in responses]
        assert together == pytest.approx(alone, abs=1e-4)
