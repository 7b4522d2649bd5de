from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch
from tokens.conftest import SMALL, small_vocabulary
from tokens.toys import PairModel, behind
from torch import Tensor

from anchorlm.records import UserError
from anchorlm.tokens import ByteVocabulary, Kind, Projection, Retokenizer, exact_projection

CORPUS = [
    " refused to help", " refusing is fine", " refunds are fine", " I can't help", " I'm sorry", " I will",
    " naïve café", "🙂", "🙃 ok",
    " the refusal", " there we go", " 12 loaves", " 100 g",
]  # fmt: skip
PAIRS = [(one, other) for one in SMALL for other in SMALL if one != other]


def enumerated(model: PairModel, target: ByteVocabulary, pending: bytes) -> Tensor:
    """The definition: every continuation to its end, its probability, its first target token."""
    found = torch.zeros(target.size, dtype=torch.float64)
    waiting: list[tuple[tuple[int, ...], bytes, float]] = [((), b"", 1.0)]
    while waiting:
        ids, data, mass = waiting.pop()
        row = model([ids])[0]
        for index in (row > 1e-7).nonzero().flatten().tolist():
            share = mass * float(row[index])
            if index == model.vocabulary.stop_id:
                if data.startswith(pending):
                    rest = target.encode(data[len(pending) :])
                    stop = target.stop_id
                    assert stop is not None
                    found[rest[0] if rest else stop] += share
            else:
                waiting.append(((*ids, index), data + model.vocabulary.token_bytes(index), share))
    return found / found.sum()


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("pending", [b"", b" ref", b" ", "🙂".encode()[:2]])
def test_the_oracle_is_the_enumeration_of_all_continuations(one: str, other: str, pending: bytes) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    model = PairModel(anchor, CORPUS, length=6)
    found = asyncio.run(exact_projection(model, anchor, target, pending=pending, residual=1e-6))
    assert found.residual <= 1e-6
    torch.testing.assert_close(found.probs, enumerated(model, target, pending), atol=1e-4, rtol=0)


def test_the_oracle_takes_coroutines_and_stops_when_told() -> None:
    anchor, target = small_vocabulary("byte-level"), small_vocabulary("unigram")
    model = PairModel(anchor, CORPUS)

    async def asked(items: Sequence[tuple[int, ...]]) -> Tensor:
        return model(items)

    rough = asyncio.run(exact_projection(asked, anchor, target, residual=0.0, max_forwards=8, batch=4))
    assert rough.forwards <= 12
    assert rough.residual > 0
    assert float(rough.probs.sum()) == pytest.approx(1)


def test_the_oracle_is_not_built_from_two_tokenizers_and_its_name_says_what_to_call() -> None:
    anchor, target = small_vocabulary("byte-level"), small_vocabulary("unigram")
    with pytest.raises(UserError, match=r"asks the anchor model .*: call anchorlm\.tokens\.exact_projection"):
        Projection.build(anchor, target, kind="exact")  # type: ignore[arg-type]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_looking_ahead_is_closer_to_the_oracle_than_first_tokens_and_these_than_the_papers(
    one: str, other: str
) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    model = PairModel(anchor, CORPUS)
    oracle = asyncio.run(exact_projection(model, anchor, target, residual=1e-4)).probs
    probs = model([()])

    def misplaced(kind: Kind) -> float:
        projection = Projection.build(anchor, target, kind)
        expanded = projection.lookahead_candidates(probs)
        further = model([(i,) for i in expanded[:, 1].tolist()]) if len(expanded) else None
        return float((projection(probs, expanded, further)[0] - oracle).abs().sum() / 2)

    ahead, first = misplaced("lookahead"), misplaced("first-token")
    assert ahead <= first + 1e-6
    papers: tuple[Kind, ...] = ("paper-drop", "paper-first", "paper-exact")
    for kind in papers:
        assert first < misplaced(kind) + 1e-6
    if one == "unigram" and other == "byte-level":
        assert ahead < first  # the bare word boundary


@pytest.mark.parametrize(("one", "other"), [pair for pair in PAIRS if pair[0] != "unigram"])
def test_pending_bytes_are_resolved_as_the_oracle_does(one: str, other: str) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    model = PairModel(anchor, CORPUS)
    projection, reader = Projection.build(anchor, target), Retokenizer(target)
    for written in (b" re", b" refus", "🙂".encode()[:3]):
        encoded = Retokenizer(anchor).encode(written)
        start = encoded.ids[: encoded.stable]
        oracle = asyncio.run(
            exact_projection(
                behind(model, start),
                anchor,
                target,
                pending=written[encoded.stable_bytes :],
                written=reader.open_tokens(reader.encode(written), target.encode(written)),
                residual=1e-4,
            )
        ).probs
        everything = encoded.ids + encoded.tail
        steps = model([everything[:n] for n in range(len(encoded.ids), len(everything) + 1)])
        torch.testing.assert_close(projection.project_pending(steps, encoded).double(), oracle, atol=1e-3, rtol=0)
