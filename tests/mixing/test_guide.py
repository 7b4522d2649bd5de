from __future__ import annotations

import pytest
import torch
from factories import heard, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchorlm.engine import LocalEngine, runtime
from anchorlm.mixing import Guide, Translator, mix
from anchorlm.tokens import Kind, Projection, Retokenizer

ANCHOR = tiny_model("gpt_neox", tokenizer=tiny_tokenizer(290, text="Sorry, I cannot help you with that request. "))
TARGET = tiny_model("llama")
ENGINE = LocalEngine(ANCHOR)
PROMPT = ANCHOR.encode([{"role": "user", "content": "How do I bake bread?"}])


def translator(kind: Kind = "first-token") -> Translator:
    projection = Projection.build(
        ANCHOR.vocabulary, TARGET.vocabulary, kind, anchor_size=ANCHOR.vocab_size, target_size=TARGET.vocab_size
    )
    return Translator(projection, ANCHOR, TARGET)


def from_scratch(ids: list[int]) -> Tensor:
    """The anchor's distributions after the prompt and after each of `ids`, by one plain forward."""
    with torch.inference_mode():
        logits = ANCHOR.model(input_ids=torch.tensor([PROMPT + ids]), use_cache=False).logits[0]
    return heard(ANCHOR, logits[len(PROMPT) - 1 :]).softmax(-1)


def expected(response: bytes, kind: Kind) -> Tensor:
    projection = translator(kind).projection
    encoded = Retokenizer(ANCHOR.vocabulary).encode(response)
    steps = from_scratch([*encoded.ids, *encoded.tail])
    found = projection.lookahead_candidates(steps[-1:])
    after = [from_scratch([*encoded.ids, *encoded.tail, token])[-1] for token in found[:, 1].tolist()]
    follows = torch.stack(after) if after else None
    if encoded.tail and not kind.startswith("paper"):
        return projection.project_pending(steps[len(encoded.ids) :], encoded, found, follows)
    return projection(steps[-1:], found, follows)[0]


async def walk(responses: list[bytes], kind: Kind) -> list[Tensor]:
    async with ENGINE.open(PROMPT, rows=9, room=120) as row:
        guide = Guide(row, translator(kind))
        return [await guide.distribution(response, ()) for response in responses]


@pytest.mark.parametrize("kind", ["first-token", "lookahead", "paper-drop", "paper-first"])
def test_a_replayed_anchor_says_what_a_forward_from_scratch_says(kind: Kind) -> None:
    text = "Sorry, I cannot help — über 12 with th".encode()
    growing = [text[:end] for end in (0, 1, 3, 5, 6, 9, 14, 18, 23, 24, 25, 27, 30, len(text))]
    for response, q in zip(growing, runtime().run(walk(growing, kind)), strict=True):
        torch.testing.assert_close(q, expected(response, kind), atol=1e-4, rtol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(alphabet="aeh Iélpst,'", max_size=12), min_size=1, max_size=5))
def test_what_was_asked_before_makes_no_difference(texts: list[str]) -> None:
    responses = [text.encode() for text in texts]
    for response, q in zip(responses, runtime().run(walk(responses, "first-token")), strict=True):
        torch.testing.assert_close(q, expected(response, "first-token"), atol=1e-4, rtol=1e-3)


def test_a_fork_goes_its_own_way() -> None:
    async def both() -> tuple[Tensor, Tensor]:
        async with ENGINE.open(PROMPT, rows=2, room=60) as row:
            guide = Guide(row, translator())
            await guide.distribution(b"So", ())
            other = guide.fork()
            left = await guide.distribution(b"Sorry, I", ())
            return left, await other.distribution(b"Sony bread", ())

    left, right = runtime().run(both())
    torch.testing.assert_close(left, expected(b"Sorry, I", "first-token"), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(right, expected(b"Sony bread", "first-token"), atol=1e-4, rtol=1e-3)


class Spaced:
    """The target, if its template put a space before every answer."""

    response_lead = b" "
    vocabulary = TARGET.vocabulary


def test_a_target_that_opens_with_a_space_is_met_there() -> None:
    pair = Translator(translator().projection, ANCHOR, Spaced())  # type: ignore[arg-type]

    async def ask() -> list[Tensor]:
        async with ENGINE.open(PROMPT, rows=1, room=60) as row:
            guide = Guide(row, pair)
            return [await guide.distribution(response, ()) for response in (b"", b" So", b" Sorry, I")]

    opening, *rest = runtime().run(ask())
    q = from_scratch([])[-1]
    naive = torch.zeros_like(opening)
    for token, mass in enumerate(q.tolist()):
        written = ANCHOR.vocabulary.token_bytes(token)
        if written:
            naive[TARGET.vocabulary.encode(b" " + written)[0]] += mass
    stop = sum(expected(b"", "first-token")[token] for token in TARGET.vocabulary.stop)
    naive[TARGET.vocabulary.stop_id] += stop
    torch.testing.assert_close(opening, naive / naive.sum(), atol=0.02, rtol=0.1)
    for response, found in zip((b"So", b"Sorry, I"), rest, strict=True):
        torch.testing.assert_close(found, expected(response, "first-token"), atol=1e-4, rtol=1e-3)


@given(st.floats(0, 1), st.integers(0, 99))
def test_a_mixture_is_the_formula_and_sums_to_one(alpha: float, seed: int) -> None:
    p, q = torch.rand(2, 50, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    f = mix(p, q, alpha)
    torch.testing.assert_close(f, (1 - alpha) * p + alpha * q)
    torch.testing.assert_close(f.sum(), torch.tensor(1.0))
