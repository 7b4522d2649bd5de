from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens.conftest import REAL, SMALL, UNDIVIDED, small_vocabulary

from anchorlm.tokens import ByteVocabulary, Retokenizer
from anchorlm.tokens._seams import character_pairs, last_seam

FRAGMENTS = [
    "I", "'", "ll", "l", "re", "'s", "’", "refu", "sing", " the", " ", "  ", "\n", "\n\n", "\r\n", "\t", ".", "!?", "(",
    "==", "12", "345", "é", "🙂", "你好", "мир", "क्", "ك", "x_y", "    ", "</s>", "<0x41>",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join)


@pytest.mark.parametrize("name", [*SMALL, *UNDIVIDED])
@given(text=texts, cut=st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_no_later_text_changes_the_stable_ids(name: str, text: str, cut: int) -> None:
    read = small_vocabulary(name)
    data = text.encode()
    encoded = Retokenizer(read).encode(data[:cut])
    assert list(encoded.ids[: encoded.stable]) == read.encode(data)[: encoded.stable]


@pytest.mark.parametrize("name", [*SMALL, *UNDIVIDED])
@given(text=texts, steps=st.lists(st.integers(1, 6), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_growing_step_by_step_equals_encoding_the_whole(name: str, text: str, steps: list[int]) -> None:
    retokenizer = Retokenizer(small_vocabulary(name))
    encoded, end = None, 0
    for step in steps:
        end += step
        encoded = retokenizer.encode(text.encode()[:end], encoded)
        assert encoded == retokenizer.encode(text.encode()[:end])


@pytest.mark.parametrize("name", [*SMALL, *UNDIVIDED])
@given(text=texts, start=st.integers(0, 5), cut=st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_ids_and_pending_bytes_make_up_the_response(name: str, text: str, start: int, cut: int) -> None:
    read = small_vocabulary(name)
    data = text.encode()[start:cut]
    encoded = Retokenizer(read).encode(data)
    assert read.decode(encoded.ids) + encoded.pending == data
    assert read.decode(encoded.tail) == encoded.pending
    assert list(encoded.ids + encoded.tail) == read.encode(data)
    if encoded.pending:
        assert any(piece.startswith(encoded.pending) and piece != encoded.pending for piece in read.bytes)


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_keep_their_stable_ids(name: str, real_vocabularies: dict[str, ByteVocabulary]) -> None:
    read = real_vocabularies[name]
    retokenizer = Retokenizer(read)
    data = "I'm sure they'll  refuse:\n\n  12345 wörds… 你好🙂, don't!  \n x".encode()
    whole = read.encode(data)
    previous = None
    for end in range(len(data) + 1):
        previous = retokenizer.encode(data[:end], previous)
        assert previous == retokenizer.encode(data[:end])
        assert list(previous.ids[: previous.stable]) == whole[: previous.stable]
    assert previous is not None
    assert previous.stable >= len(whole) - 4


@pytest.mark.parametrize("name", UNDIVIDED)
def test_where_pre_tokens_do_not_divide_the_text_words_do(name: str) -> None:
    read = small_vocabulary(name)
    assert read.pretokenizes
    assert not read.divides
    assert small_vocabulary("byte-level").divides
    retokenizer = Retokenizer(read)
    text, encoded = b"The refund was refused. " * 80, None
    for end in range(0, len(text) + 1, 7):
        encoded = retokenizer.encode(text[:end], encoded)
        assert end - encoded.stable_bytes <= 16  # what the next step encodes again


@pytest.mark.parametrize("name", UNDIVIDED)
def test_where_pre_tokens_do_not_divide_the_text_words_end_at_boundaries_all_the_same(name: str) -> None:
    read = small_vocabulary(name)
    retokenizer = Retokenizer(read)
    text = "The refund was refused. Refusing is fine, I'm sorry"
    words = [match for match in re.finditer(r" ?\w+", text) if len(read.encode(match[0].encode())) == 1]
    assert len(words) >= 3
    assert all(retokenizer.is_boundary(text[: word.end()].encode()) for word in words)
    assert not retokenizer.is_boundary(b"The zxqz")
    assert not retokenizer.is_boundary("The 🙂".encode()[:-1])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_token_that_cuts_a_character_in_two_joins_it_to_its_neighbors(cut: int) -> None:
    pairs = character_pairs(["a🙂".encode()[: 1 + cut], "🙂b".encode()[-2:]])
    assert last_seam("xa🙂".encode(), pairs, end=False) == 1
    assert last_seam("a🙂bx".encode(), pairs, end=False) == len("a🙂b".encode())
    assert last_seam("🙂a".encode(), pairs, end=False) == len("🙂".encode())


def test_the_tokens_after_the_last_boundary_are_found_however_they_were_cut() -> None:
    read = small_vocabulary("byte-level")
    retokenizer = Retokenizer(read)
    encoded = retokenizer.encode(b"The refund was")
    head = read.encode(b"The refund")
    for word in (read.encode(b" was"), [*read.encode(b" "), *read.encode(b"w"), *read.encode(b"as")]):
        assert retokenizer.open_tokens(encoded, [*head, *word]) == tuple(word)
    assert retokenizer.open_tokens(retokenizer.encode(b""), []) == ()


def test_a_new_response_is_not_taken_for_the_old_one_grown() -> None:
    retokenizer = Retokenizer(small_vocabulary("byte-level"))
    old = retokenizer.encode(b"The refund was refused. ")
    assert retokenizer.encode(b"Sure! Here is how", old) == retokenizer.encode(b"Sure! Here is how")


def test_the_lead_stands_in_front_and_is_pending_while_nothing_follows() -> None:
    retokenizer = Retokenizer(small_vocabulary("sentencepiece"), lead=b" ")
    assert retokenizer.encode(b"").pending == b" "
    encoded = retokenizer.encode(b"The")
    assert retokenizer.vocabulary.decode(encoded.ids + encoded.tail) == b" The"


def test_boundaries_are_where_the_last_word_is_one_token() -> None:
    retokenizer = Retokenizer(small_vocabulary("byte-level"))
    assert retokenizer.is_boundary(b"")
    assert retokenizer.is_boundary(b"The refund was")
    assert not retokenizer.is_boundary(b"The zxqz")
    assert not retokenizer.is_boundary("The 🙂".encode()[:-1])


def test_constraining_keeps_exactly_the_tokens_that_go_beyond_the_pending_bytes() -> None:
    read = small_vocabulary("unigram")
    probs = torch.rand(read.size, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for pending in (b" ", b" re", b"\xe2"):
        kept = Retokenizer(read).constrain(probs, pending)
        naive = torch.tensor(
            [p if d.startswith(pending) and d != pending else 0.0 for p, d in zip(probs, read.bytes, strict=True)]
        )
        torch.testing.assert_close(kept, naive / naive.sum())
