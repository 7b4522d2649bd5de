"""The law of the target's next token given its tokens so far (issue 18, B8): projections and oracle against it."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens.toys import RandomModel, laws, tiny_bpe
from torch import Tensor

from anchorlm.tokens import ByteVocabulary, Projection, Retokenizer, exact_projection

pytestmark = pytest.mark.slow

MERGES = (("▁", "a"), ("▁a", "b"), ("a", "b"), ("b", "b"), ("▁", "b"), ("ab", "a"), ("▁", "▁"), ("▁ab", "b"))


def _possible(chosen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those whose parts are there when it is their turn."""
    kept, pieces = [], {"a", "b", "▁"}
    for left, right in chosen:
        if {left, right} <= pieces:
            kept.append((left, right))
            pieces.add(left + right)
    return kept


merges = st.lists(st.sampled_from(MERGES), max_size=6, unique=True).map(_possible)
WORDS = (("▁", "a"), ("▁a", "b"), ("▁ab", "b"), ("▁", "b"), ("▁b", "a"))
"""An anchor of whole words: " a", " ab", " abb", " b", " ba"."""


def vocabulary(chosen: list[tuple[str, str]], *, splits: bool) -> ByteVocabulary:
    return ByteVocabulary.from_tokenizer(tiny_bpe(chosen, splits=splits), stop_ids=[0])


def projected(model: RandomModel, target: ByteVocabulary, written: tuple[int, ...], projection: Projection) -> Tensor:
    data = target.decode(written)
    encoded = Retokenizer(model.vocabulary).encode(data)
    reader = Retokenizer(target)
    ids = encoded.ids + encoded.tail
    steps = model([ids[:count] for count in range(len(encoded.ids), len(ids) + 1)])
    return projection.project_pending(steps, encoded, written=reader.open_tokens(reader.encode(data), written))


@given(merges, merges, st.booleans(), st.booleans(), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_oracle_is_the_definition_after_every_beginning(
    ours: list[tuple[str, str]], theirs: list[tuple[str, str]], one: bool, other: bool, seed: int
) -> None:
    anchor, target = vocabulary(ours, splits=one), vocabulary(theirs, splits=other)
    model = RandomModel(anchor, range(1, anchor.size), seed=seed, length=4)
    reader = Retokenizer(target)
    for written, law in list(laws(model.texts(), target).items())[:12]:
        data = target.decode(written)
        found = asyncio.run(
            exact_projection(
                model,
                anchor,
                target,
                pending=data,
                written=reader.open_tokens(reader.encode(data), written),
                residual=1e-9,
                max_forwards=100_000,
            )
        )
        torch.testing.assert_close(found.probs, law, atol=1e-5, rtol=0)


@given(merges, st.booleans(), st.booleans(), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_where_the_anchor_writes_whole_words_one_of_its_steps_gives_the_law_exactly(
    theirs: list[tuple[str, str]], one: bool, other: bool, seed: int
) -> None:
    anchor, target = vocabulary(list(WORDS), splits=one), vocabulary(theirs, splits=other)
    words = [anchor.strings[left + right] for left, right in WORDS]
    model = RandomModel(anchor, words, seed=seed, length=4)
    projection = Projection.build(anchor, target)
    for written, law in laws(model.texts(), target).items():
        if len(anchor.encode(target.decode(written))) < model.length:  # it ends for certain, which two words cannot say
            found = projected(model, target, written, projection).double()
            torch.testing.assert_close(found, law, atol=1e-4, rtol=0)


@given(merges, st.booleans(), st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_the_chain_rule_gives_every_text_its_probability(theirs: list[tuple[str, str]], one: bool, seed: int) -> None:
    anchor, target = vocabulary(list(WORDS), splits=True), vocabulary(theirs, splits=one)
    model = RandomModel(anchor, [anchor.strings[left + right] for left, right in WORDS], seed=seed, length=3)
    projection = Projection.build(anchor, target)
    texts = model.texts()
    for text, mass in texts.items():
        if len(anchor.encode(text)) == model.length:
            continue
        assert target.stop_id is not None
        ids = (*target.encode(text), target.stop_id)
        product = 1.0
        for count, token in enumerate(ids):
            product *= float(projected(model, target, ids[:count], projection)[token])
        assert product == pytest.approx(mass, rel=1e-2, abs=1e-5)


def test_mass_that_stood_on_another_token_does_not_count_again() -> None:
    # "You can plant some" gave "thing" 0.73: the anchor's " something" had stood on the target's own " something".
    anchor = vocabulary([("▁", "a"), ("a", "b"), ("▁a", "b")], splits=True)
    target = vocabulary([("▁", "a"), ("▁a", "b")], splits=True)
    plain, longer = anchor.strings["▁a"], anchor.strings["▁ab"]
    steps = torch.zeros(2, anchor.size)
    steps[0, plain], steps[0, longer] = 0.3, 0.7
    steps[1, plain], steps[1, anchor.strings["b"]], steps[1, 0] = 0.5, 0.3, 0.2
    written = (target.strings["▁a"],)
    encoded = Retokenizer(anchor).encode(target.decode(written))
    found = Projection.build(anchor, target).project_pending(steps, encoded, written=written)
    assert float(found[target.strings["b"]]) == 0
    assert float(found[target.strings["▁a"]]) == pytest.approx(0.5 / 0.7)
    assert float(found[0]) == pytest.approx(0.2 / 0.7)


def test_tokens_that_no_canonical_text_begins_with_have_no_law_and_their_bytes_have() -> None:
    anchor, target = vocabulary(list(WORDS), splits=True), vocabulary([("▁", "a"), ("▁a", "b")], splits=True)
    model = RandomModel(anchor, [anchor.strings[left + right] for left, right in WORDS], seed=1, length=9)
    projection = Projection.build(anchor, target)
    odd = (target.strings["▁"], target.strings["a"])  # " a" is a token
    encoded = Retokenizer(anchor).encode(b" a")
    steps = model([(), encoded.tail])
    assert bool(projection.project_pending(steps, encoded, written=odd).isnan().all())
    assert float(projection.project_pending(steps, encoded, written=()).sum()) == pytest.approx(1)
    asked = exact_projection(model, anchor, target, pending=b" a", written=odd, residual=1e-6)
    assert bool(asyncio.run(asked).probs.isnan().all())
