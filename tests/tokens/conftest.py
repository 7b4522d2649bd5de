from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest
from factories import BYTE_TOKENS, sentencepiece_bpe
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from anchorlm.tokens import ByteVocabulary

CORPUS = [
    "Once upon a time there was a girl who refused to help, and said so: I'm sorry, I can't do that.",
    "The refund was refused. Refusing is fine, we'll see; they're not amused by the fusion of funds.",
    "Sure! Here is how to bake bread: mix 100 g of flour, 12 g of salt and water at 35 degrees.",
    "Ünïcode wörds, naïve café, “quotes” — dashes … 你好世界 привет мир 🙂🙂 emoji.\n\nNew lines\tand tabs.",
] * 4
TEXTS = [
    "I'm sorry, I can't help with that.",
    " the refusal was final\n\n  - twelve  items\t(12)",
    "naïve café “x” — …",
    "你好, мир! 🙂👩‍👩‍👧",
    "Surely they'll refuse 100 refunds  ",
]
REAL = ("gpt2", "gpt-neox", "llama2", "mistral", "phi3", "llama3", "qwen2")


def byte_level(size: int = 420) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    return tokenizer


def llama2_like() -> Tokenizer:
    return sentencepiece_bpe(CORPUS, ["<unk>", "<s>", "</s>"], vocab_size=300, limit_alphabet=70)


def unigram() -> Tokenizer:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    learned = [tuple(entry) for entry in json.loads(trained.to_str())["model"]["vocab"] if entry[0] != "<unk>"]
    specials = [("<unk>", 0.0), ("</s>", 0.0), ("<|im_end|>", 0.0), ("<pad>", 0.0)]
    pieces = [*specials, *((token, -20.0) for token in BYTE_TOKENS), *learned]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens([name for name, _ in specials])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[PAD]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gemma() -> Tokenizer:
    """As Gemma's: the pre-tokenizer splits at spaces, of which the normalizer leaves none."""
    tokenizer = llama2_like()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def unsplit_metaspace() -> Tokenizer:
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


UNDIVIDED = {"gemma": gemma, "metaspace": unsplit_metaspace}
"""Those with a pre-tokenizer that does not split."""
SMALL = {"byte-level": byte_level, "sentencepiece": llama2_like, "unigram": unigram}
"""Those that can write any text."""


@lru_cache
def small_tokenizer(name: str) -> Tokenizer:
    return {**SMALL, **UNDIVIDED, "wordpiece": wordpiece}[name]()


@lru_cache
def small_vocabulary(name: str) -> ByteVocabulary:
    return ByteVocabulary.from_tokenizer(small_tokenizer(name))


@pytest.fixture(scope="session")
def real_vocabularies(real_tokenizers: dict[str, Tokenizer]) -> dict[str, ByteVocabulary]:
    return {name: ByteVocabulary.from_tokenizer(tokenizer) for name, tokenizer in real_tokenizers.items()}


@pytest.fixture(scope="session")
def real_tokenizers(shared_data: Path) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json")) for name in REAL}
