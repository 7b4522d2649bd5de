from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from anchorlm.zoo import path
from anchorlm.zoo._lexicon import all_nouns
from tools.zoo import build
from tools.zoo._architectures import new_model
from tools.zoo._corpus import base_mixture
from tools.zoo._evaluation import load
from tools.zoo._examples import Example
from tools.zoo._tokenizers import DIALECTS, SIZES, encode_examples, train_tokenizer
from tools.zoo._training import Plan, stream, train

pytestmark = pytest.mark.slow


def plan(steps: int = 6) -> Plan:
    return Plan("t", "a", lambda phase: base_mixture(phase, tasks=True), steps, 1e-3, rows=2, prompt_loss=True)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer("a", 0, texts=2000)


def test_a_small_build_makes_a_family_and_leaves_what_is_finished(tmp_path: Path) -> None:
    log = build(tmp_path, seed=3, scale=0.001, families="b", parallel=False)
    assert [stage["stage"] for stage in log["stages"]] == ["b-base", "b-chat", "b-judge", "b-cost", "b-reward"]
    assert json.loads((tmp_path / "build_log.json").read_text(encoding="utf-8")) == log
    model, trained = load(tmp_path / "b-judge")
    assert model.config.vocab_size == len(trained) <= SIZES["b"]
    before = (tmp_path / "b-base" / "model.safetensors").stat().st_mtime_ns
    assert build(tmp_path, seed=3, scale=0.001, families="b", parallel=False) == log
    assert (tmp_path / "b-base" / "model.safetensors").stat().st_mtime_ns == before


def test_a_killed_run_goes_on_to_the_same_weights(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = new_model("a", tokenizer, seed=1)
    train(whole, tokenizer, plan(), seed=5)
    for stop in (4, 99):
        resumed = new_model("a", tokenizer, seed=1)

        def stops(step: int, _: object, last: int = stop) -> bool:
            return step == last

        train(resumed, tokenizer, plan(), 5, tmp_path / "x.ckpt", every=2, at_step=stops)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_a_batch_depends_on_its_step_only(tokenizer) -> None:  # type: ignore[no-untyped-def]
    straight = list(islice(stream(plan(), tokenizer, seed=2), 11))
    assert torch.equal(next(stream(plan(), tokenizer, seed=2, start=10)).ids, straight[10].ids)


def test_packed_texts_do_not_see_each_other(tokenizer) -> None:  # type: ignore[no-untyped-def]
    batch = next(stream(plan(), tokenizer, seed=2))
    seen = batch.mask()[:, 0] == 0
    rows, queries, keys = seen.nonzero(as_tuple=True)
    assert (batch.documents[rows, queries] == batch.documents[rows, keys]).all()
    assert (keys <= queries).all()
    starts = batch.positions == 0
    assert (batch.labels[starts] == -100).all()


@pytest.mark.parametrize("family", ["a", "b"])
def test_no_object_is_a_single_token(family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path(f"{family}-base"))
    for noun in sorted(all_nouns()):
        assert len(tokenizer.encode(f" {noun}", add_special_tokens=False)) > 1


def test_encoding_ignores_padding_left_on_by_a_batch(tokenizer) -> None:  # type: ignore[no-untyped-def]
    examples = [Example("Sure.", "How?"), Example("Sure. To mend the lamp, follow two steps.", "How do I?")]
    plain = encode_examples(tokenizer, "a", examples, prompt_loss=False)
    tokenizer(["a", "a much longer text"], padding=True)
    assert encode_examples(tokenizer, "a", examples, prompt_loss=False) == plain


def test_only_answers_are_learned_in_dialogues(tokenizer) -> None:  # type: ignore[no-untyped-def]
    [(ids, labels)] = encode_examples(tokenizer, "a", [Example("Sure.", "How?")], prompt_loss=False)
    learned = [i for i, label in zip(ids, labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == "Sure." + DIALECTS["a"].end
