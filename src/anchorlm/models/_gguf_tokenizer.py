"""The tokenizer of a GGUF file, from the file's own metadata: transformers' reader drops a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from anchorlm.models._gguf import Header
from anchorlm.models._gguf_words import BEGINS, WHOLE_WORDS, WORDS
from anchorlm.records import UserError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Of `tokenizer.ggml.token_type`: what is no piece of ordinary text."""

_KINDS = ("gpt2", "llama", "gemma4")
_STRIPS_RIGHT = ("phi-3", "phi3")
_KEEPS_RIGHT = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """What the metadata says of the tokens."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]


def gguf_tokenizer(header: Header) -> PreTrainedTokenizerBase:
    """The tokenizer that llama.cpp would use: pieces, pre-tokenizer, added tokens, roles and chat template.

    Raises:
        UserError: The file has none, or one of a kind that is not known here.
    """
    meta = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    kind, tokens = meta.get("model"), meta.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{str(header.file)!r} holds no tokenizer: give the checkpoint that it was made from.")
    if kind not in _KINDS:
        raise UserError(
            f"{str(header.file)!r} has a tokenizer of the kind {kind!r}, but only {', '.join(_KINDS)} are read from "
            "GGUF: give the checkpoint that it was made from."
        )
    vocabulary = _Vocabulary(
        _distinct(tokens),
        list(meta.get("token_type") or [1] * len(tokens)),
        list(meta.get("scores") or [0.0] * len(tokens)),
        list(meta.get("merges") or []),
    )
    pre = str(meta.get("pre") or "default")
    backend = _byte_level(header, vocabulary, pre) if kind == "gpt2" else _sentencepiece(vocabulary, meta, kind)
    _add(backend, vocabulary, str(header.metadata.get("general.name", "")).lower())
    roles = {role: _token(vocabulary, meta.get(f"{key}_token_id")) for role, key in _ROLES.items()}
    begins = bool(meta.get("add_bos_token", kind == "llama" or (kind == "gpt2" and pre in BEGINS)))
    ends = bool(meta.get("add_eos_token", False))
    backend.post_processor = _frame(roles, vocabulary, begins, ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in roles.items() if token is not None},
    )
    tokenizer.chat_template = header.metadata.get("tokenizer.chat_template")
    context = header.metadata.get(f"{header.architecture}.context_length")
    if context:
        tokenizer.model_max_length = int(context)
    return tokenizer


_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
"""Transformers' names of roles, and llama.cpp's."""


def _token(vocabulary: _Vocabulary, index: Any) -> str | None:
    return vocabulary.tokens[index] if isinstance(index, int) and 0 <= index < len(vocabulary.tokens) else None


def _distinct(tokens: Sequence[str]) -> list[str]:
    """Padding entries of some files have the same text. Of these the first is the token."""
    seen: set[str] = set()
    found = []
    for index, token in enumerate(tokens):
        found.append(token if token not in seen else f"<|duplicate_{index}|>")
        seen.add(token)
    return found


def _byte_level(header: Header, vocabulary: _Vocabulary, pre: str) -> Tokenizer:
    """Of GPT-2's kind. `pre` says how text is cut into words."""
    if pre not in WORDS:
        raise UserError(
            f"{str(header.file)!r} cuts text into words as {pre!r} does, which is not known here: give the checkpoint "
            "that it was made from."
        )
    index = {token: place for place, token in enumerate(vocabulary.tokens)}
    pairs = [_pair(merge) for merge in vocabulary.merges]
    backend = Tokenizer(BPE(index, pairs, fuse_unk=False, ignore_merges=pre in WHOLE_WORDS))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in WORDS[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    """The halves of a merge: a space stands between them, and a half may begin with one."""
    place = merge.index(" ", 1)
    return merge[:place], merge[place + 1 :]


def _sentencepiece(vocabulary: _Vocabulary, meta: dict[str, Any], kind: str) -> Tokenizer:
    """Of SentencePiece's kind: spaces are written as ▁, unknown characters as bytes."""
    index = {token: place for place, token in enumerate(vocabulary.tokens)}
    pairs = _scored(vocabulary, index) if kind == "llama" else [_pair(merge) for merge in vocabulary.merges]
    unknown = _token(vocabulary, meta.get("unknown_token_id", 0))
    backend = Tokenizer(BPE(index, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(meta.get("add_space_prefix", kind == "llama"))
    space = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space] if prefix else [space])
    if kind == "gemma4":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _scored(vocabulary: _Vocabulary, index: dict[str, int]) -> list[tuple[str, str]]:
    """Merges for pieces that have scores: of all pairs the one with the best piece comes first."""
    pieces = [place for place, kind in enumerate(vocabulary.kinds) if kind not in (_UNKNOWN, _CONTROL, 6)]
    found: list[tuple[float, int, int, str, str]] = []
    for place in pieces:
        token, score = vocabulary.tokens[place], vocabulary.scores[place]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in index and right in index:
                found.append((-score, index[left], index[right], left, right))
    found.sort()
    return [(left, right) for _, _, _, left, right in found]


def _add(backend: Tokenizer, vocabulary: _Vocabulary, name: str) -> None:
    """Control tokens and those that were added are found in a text before it is cut."""
    strips = any(part in name for part in _STRIPS_RIGHT)
    added = []
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token:
            right = strips and kind != _USER_DEFINED and token not in _KEEPS_RIGHT
            added.append(AddedToken(token, special=kind != _USER_DEFINED, normalized=False, rstrip=right))
    backend.add_tokens(added)


def _frame(roles: dict[str, str | None], vocabulary: _Vocabulary, begins: bool, ends: bool) -> Any:
    """What is put before and after a text."""
    bos, eos = roles["bos"] if begins else None, roles["eos"] if ends else None
    parts = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    second = [*([f"{bos}:1"] if bos else []), "$B:1", *([f"{eos}:1"] if eos else [])]
    known = [(token, vocabulary.tokens.index(token)) for token in dict.fromkeys((bos, eos)) if token]
    return TemplateProcessing(single=parts, pair=[*parts, *second], special_tokens=known)
