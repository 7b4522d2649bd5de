from __future__ import annotations

from asyncio import gather
from collections.abc import Sequence

import pytest
import torch
from factories import heard, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from torch import Tensor

from anchorlm.defenses.alignbeam import LOOKAHEAD_ROWS, Guide, Translator, mix
from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel
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


def canonical(response: bytes) -> list[int]:
    return TARGET.vocabulary.encode(response)


def expected(response: bytes, kind: Kind) -> Tensor:
    projection, reader = translator(kind).projection, Retokenizer(TARGET.vocabulary)
    encoded = Retokenizer(ANCHOR.vocabulary).encode(response)
    written = reader.open_tokens(reader.encode(response), canonical(response))
    steps = from_scratch([*encoded.ids, *encoded.tail])
    found = projection.lookahead_candidates(steps[-1:], written=written)
    after = [from_scratch([*encoded.ids, *encoded.tail, token])[-1] for token in found[:, 1].tolist()]
    follows = torch.stack(after) if after else None
    if kind.startswith("paper"):
        return projection(steps[-1:])[0]
    return projection.project_pending(steps[len(encoded.ids) :], encoded, found, follows, written=written)


async def walk(responses: list[bytes], kind: Kind) -> list[Tensor]:
    async with ENGINE.open(PROMPT, rows=9, room=120) as row:
        guide = Guide(row, translator(kind))
        return [await guide.distribution(response, canonical(response)) for response in responses]


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
            await guide.distribution(b"So", canonical(b"So"))
            other = guide.fork()
            left = await guide.distribution(b"Sorry, I", canonical(b"Sorry, I"))
            return left, await other.distribution(b"Sony bread", canonical(b"Sony bread"))

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
            return [await guide.distribution(response, canonical(response)) for response in (b"", b" So", b" Sorry, I")]

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


def with_added(*, special: Sequence[str] = (), plain: Sequence[str] = ()) -> CausalModel:
    """The target's vocabulary and a few tokens more, at the end."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
    tokenizer.add_tokens(list(plain))
    return tiny_model("qwen2", tokenizer=tokenizer)


ADDED = {"a special token": {"special": ["<|extra|>"]}, "words": {"plain": ["zebra", "<tool>"]}, "nothing": {}}


@pytest.mark.parametrize("more", ["anchor", "target"])
@pytest.mark.parametrize("kind", ["first-token", "lookahead"])
@pytest.mark.parametrize("added", ADDED)
def test_on_the_same_vocabulary_with_tokens_added_or_missing_the_law_is_the_anchors_own(
    added: str, kind: Kind, more: str
) -> None:
    grown, plain = with_added(**ADDED[added]), with_added()
    anchor, target = (grown, plain) if more == "anchor" else (plain, grown)
    projection = Projection.build(
        anchor.vocabulary, target.vocabulary, kind, anchor_size=anchor.vocab_size, target_size=target.vocab_size
    )
    pair = Translator(projection, anchor, target)
    prompt = anchor.encode([{"role": "user", "content": "Hi"}])
    shared = min(anchor.vocabulary.size, target.vocabulary.size)
    generator = torch.Generator().manual_seed(0)
    # Canonical or not: a target may write anything.
    responses = [
        list(target.vocabulary.encode(b"The quick brown f")),
        torch.randint(3, shared, (9,), generator=generator).tolist(),
    ]

    async def ask() -> list[Tensor]:
        async with LocalEngine(anchor).open(prompt, rows=9, room=60) as row:
            guide = Guide(row, pair)
            return [
                await guide.distribution(target.vocabulary.decode(ids[:n]), ids[:n])
                for ids in responses
                for n in range(len(ids) + 1)
            ]

    found = iter(runtime().run(ask()))
    for response in responses:
        ids = prompt + response
        with torch.inference_mode():
            own = anchor.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].softmax(-1)
        for row in own[len(prompt) - 1 :]:
            q = next(found)
            known = row[:shared].clone()
            if more == "anchor" and added == "words":  # each counts for the first of the tokens that write it
                for index in range(shared, anchor.vocabulary.size):
                    known[target.vocabulary.encode(anchor.vocabulary.token_bytes(index))[0]] += row[index]
            torch.testing.assert_close(q[:shared], known / known.sum(), atol=1e-6, rtol=0)


def test_tokens_of_a_response_that_was_given_up_are_forgotten() -> None:
    # A search that went back left tokens in the anchor's sequence that nobody had asked for.
    pair = Translator(
        Projection.build(
            ANCHOR.vocabulary, ANCHOR.vocabulary, anchor_size=ANCHOR.vocab_size, target_size=ANCHOR.vocab_size
        ),
        ANCHOR,
        ANCHOR,
    )
    first, second = (ANCHOR.vocabulary.encode(text) for text in (b"Sorry, I", b"bread is fine"))

    async def ask() -> Tensor:
        async with ENGINE.open(PROMPT, rows=1, room=60) as row:
            guide = Guide(row, pair)
            await guide.distribution(ANCHOR.vocabulary.decode(first), first)
            return await guide.distribution(ANCHOR.vocabulary.decode(second), second)

    own = from_scratch(second)[-1]
    own[ANCHOR.vocabulary.size :] = 0  # rows without a token
    torch.testing.assert_close(runtime().run(ask()), own / own.sum(), atol=1e-5, rtol=0)


def test_a_spelling_that_no_tokenizer_writes_is_remarked_on_and_the_bytes_go_on() -> None:
    spelled = [token for letter in b"The quick" for token in TARGET.vocabulary.encode(bytes([letter]))]
    assert spelled != canonical(b"The quick")

    async def ask() -> tuple[Tensor, str | None, str | None]:
        async with ENGINE.open(PROMPT, rows=1, room=60) as row:
            guide = Guide(row, translator())
            q = await guide.distribution(b"The quick", spelled)
            odd = guide.remark
            await guide.distribution(b"The quick", canonical(b"The quick"))
            return q, odd, guide.remark

    q, odd, usual = runtime().run(ask())
    assert float(q.sum()) == pytest.approx(1, abs=1e-5)
    assert odd is not None
    assert usual is None


@pytest.mark.parametrize("lead", [b"", b" "])
def test_the_papers_projections_see_the_first_step_as_the_paper_does_whatever_white_space_opens_a_response(
    lead: bytes,
) -> None:
    other = Spaced() if lead else TARGET
    for kind in ("paper-drop", "paper-first", "paper-exact"):
        pair = Translator(translator(kind).projection, ANCHOR, other)  # type: ignore[arg-type]

        async def ask(pair: Translator = pair) -> Tensor:
            async with ENGINE.open(PROMPT, rows=1, room=60) as row:
                return await Guide(row, pair).distribution(b"", ())

        torch.testing.assert_close(runtime().run(ask()), pair.projection(from_scratch([])[-1:])[0], atol=1e-5, rtol=0)


def test_guides_of_one_prompt_share_the_rows_that_they_look_ahead_with() -> None:
    async def ask() -> list[Tensor]:
        async with ENGINE.open(PROMPT, rows=3 + LOOKAHEAD_ROWS, room=60) as row:
            guide = Guide(row, translator("lookahead"))
            guides = [guide, guide.fork(), guide.fork()]
            texts = (b"Sorry, I", b"So", b"")
            return list(await gather(*(g.distribution(t, canonical(t)) for g, t in zip(guides, texts, strict=True))))

    for text, q in zip((b"Sorry, I", b"So", b""), runtime().run(ask()), strict=True):
        torch.testing.assert_close(q, expected(text, "lookahead"), atol=1e-4, rtol=1e-3)
