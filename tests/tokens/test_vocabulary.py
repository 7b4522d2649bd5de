from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokens.conftest import REAL, SMALL, TEXTS, small_tokenizer, small_vocabulary
from transformers import PreTrainedTokenizerFast

from anchorlm.records import UserError
from anchorlm.tokens import ByteVocabulary

CONFORMANCE = {"gpt2": "gpt-2", "llama2": "llama-spm", "phi3": "phi-3", "llama3": "llama-bpe", "qwen2": "qwen2"}
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from(
        ["I", "'ll", "refu", "sing", " ", "  ", "\n", "12", "é", "🙂", "你好", "▁", "<0x41>", "</s>", "<|im_end|>"]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", SMALL)
@given(text=any_text)
@settings(max_examples=60, deadline=None)
def test_the_bytes_of_the_ids_of_a_text_are_the_texts_bytes(name: str, text: str) -> None:
    if name != "byte-level":
        # SentencePiece cannot tell its own space from this character.
        text = text.replace("▁", "")
    read = small_vocabulary(name)
    assert read.decode(read.encode(text.encode())) == text.encode()


@pytest.mark.parametrize("name", SMALL)
@given(data=st.binary(max_size=24) | any_text.map(str.encode).map(lambda data: data[:-1]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_come_back(name: str, data: bytes) -> None:
    data = data.replace("▁".encode(), b"")
    read = small_vocabulary(name)
    assert read.decode(read.encode(data)) == data


@pytest.mark.parametrize("name", [*SMALL, "wordpiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_agree_with_the_tokenizers_own_decode(name: str, text: str) -> None:
    tokenizer = small_tokenizer(name)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    expected = tokenizer.decode(ids)
    written = small_vocabulary(name).decode(ids).decode()
    # A response goes on from a prompt, so the space that opens it is text; the tokenizer's decode strips it.
    assert written.lstrip(" ") == expected.lstrip(" ")


@pytest.mark.parametrize("name", SMALL)
def test_the_first_word_has_a_space_only_where_the_text_has(name: str) -> None:
    read = small_vocabulary(name)
    assert read.decode(read.encode(b"refused")) == b"refused"
    assert read.encode(b" refused") != read.encode(b"refused")


@pytest.mark.parametrize("name", SMALL)
def test_text_that_looks_like_a_special_token_stays_text(name: str) -> None:
    read = small_vocabulary(name)
    ids = read.encode(b"a</s><|im_end|><|endoftext|><unk>")
    assert not read.special & set(ids)


@pytest.mark.parametrize("name", SMALL)
def test_batches_encode_like_single_texts(name: str) -> None:
    read = small_vocabulary(name)
    items = [text.encode()[cut:] for text in TEXTS for cut in range(6)] + [b"\xf0\x9f", b" \xe2\x80", b"\x80a", b""]
    assert read.encode_batch(items) == [read.encode(item) for item in items]


@pytest.mark.parametrize("name", SMALL)
def test_tokens_that_extend_bytes_are_exactly_those(name: str) -> None:
    read = small_vocabulary(name)
    for prefix in (b"", b" ", b" re", b"re", b"\xe4", b"\xff", b"zzz"):
        span = read.extending(prefix)
        naive = {i for i, data in enumerate(read.bytes) if data.startswith(prefix) and len(data) > len(prefix)}
        assert set(read.by_bytes[span].tolist()) == naive


def test_special_ids_go_by_role_and_have_no_bytes() -> None:
    read = small_vocabulary("unigram")
    tokenizer = small_tokenizer("unigram")
    roles = {"eos": "</s>", "end_of_turn": "<|im_end|>", "pad": "<pad>", "other": "<unk>"}
    for role, token in roles.items():
        assert getattr(read, role) == {tokenizer.token_to_id(token)}
    assert all(read.token_bytes(index) == b"" for index in read.special)
    assert read.stop == read.eos | read.end_of_turn


def test_added_tokens_that_are_not_special_are_text() -> None:
    tokenizer = small_tokenizer("byte-level")
    read = small_vocabulary("byte-level")
    run = tokenizer.token_to_id("    ")
    assert run is not None
    assert read.token_bytes(run) == b"    "
    assert run in read.encode(b"a    b")


def test_further_stops_and_declared_roles_are_taken_over() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_copy(), eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    read = ByteVocabulary.from_tokenizer(tokenizer, stop_ids=[start])
    assert read.stop_id == tokenizer.eos_token_id
    assert read.end_of_turn == read.pad == {tokenizer.eos_token_id}
    assert start in read.eos


def test_ids_beyond_the_tokenizer_are_padding() -> None:
    read = small_vocabulary("byte-level")
    assert read.token_bytes(read.size) == read.token_bytes(read.size + 1000) == b""


def test_ids_may_have_holes() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 7, "c": 3}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = ByteVocabulary.from_tokenizer(tokenizer)
    assert vocabulary.size == 8
    assert [vocabulary.token_bytes(i) for i in (0, 1, 3, 7, 8)] == [b"a", b"", b"c", b"b", b""]


def test_the_digest_names_vocabulary_and_roles_and_nothing_that_changes_from_call_to_call() -> None:
    one, same = byte_level_copy(), byte_level_copy()
    same.enable_truncation(5)
    assert ByteVocabulary.from_tokenizer(one).digest == ByteVocabulary.from_tokenizer(same).digest
    assert ByteVocabulary.from_tokenizer(one, stop_ids=[5]).digest != ByteVocabulary.from_tokenizer(one).digest
    same.add_tokens(["wholly new"])
    assert ByteVocabulary.from_tokenizer(one).digest != ByteVocabulary.from_tokenizer(same).digest
    assert small_vocabulary("unigram").digest != small_vocabulary("sentencepiece").digest


def test_what_is_no_fast_tokenizer_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="fast tokenizer"):
        ByteVocabulary.from_tokenizer(object())
    with pytest.raises(UserError, match="byte-level, SentencePiece or WordPiece"):
        ByteVocabulary.from_tokenizer(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_give_back_every_conformance_text(
    name: str,
    real_tokenizers: dict[str, Tokenizer],
    real_vocabularies: dict[str, ByteVocabulary],
    shared_data: Path,
) -> None:
    read = real_vocabularies[name]
    for text in conformance_texts(shared_data):
        composed = unicodedata.normalize("NFC", text).encode()
        assert read.decode(read.encode(text.encode())) in {text.encode(), composed}
        ids = real_tokenizers[name].encode(text, add_special_tokens=False).ids
        assert read.decode(ids).decode().lstrip(" ") == real_tokenizers[name].decode(ids).lstrip(" ")


@pytest.mark.parametrize("name", CONFORMANCE)
def test_ids_in_the_middle_of_a_text_are_those_of_the_originals(
    name: str, real_vocabularies: dict[str, ByteVocabulary], shared_data: Path
) -> None:
    read = real_vocabularies[name]
    lines = (shared_data / "tokenizers" / "conformance" / f"ggml-vocab-{CONFORMANCE[name]}.gguf.out").read_text()
    expected = [[int(index) for index in line.split()] for line in lines.split("\n")]
    dummy = b" " if name in {"llama2", "phi3"} else b""
    checked = 0
    for text, ids in zip(conformance_texts(shared_data), expected, strict=True):
        if text:
            assert read.encode(dummy + text.encode()) == ids
            checked += 1
    assert checked > 40


def conformance_texts(shared_data: Path) -> list[str]:
    file = shared_data / "tokenizers" / "conformance" / "ggml-vocab-gpt-2.gguf.inp"
    with file.open(encoding="utf-8", newline="") as stream:
        return stream.read().split("\n__ggml_vocab_test__\n")


def byte_level_copy() -> Tokenizer:
    return Tokenizer.from_str(small_tokenizer("byte-level").to_str())
