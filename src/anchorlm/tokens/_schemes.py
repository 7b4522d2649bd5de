"""How the strings in a vocabulary stand for bytes: byte-level, SentencePiece, WordPiece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from tokenizers import Tokenizer

from anchorlm.records import UserError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_EMPTY: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}


class Scheme(StrEnum):
    """What the strings of a vocabulary mean."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "SentencePiece"
    WORDPIECE = "WordPiece"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others are moved above 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}


def state_of(component: Any) -> dict[str, Any] | None:
    """The JSON form of a normalizer, pre-tokenizer or decoder."""
    return json.loads(component.__getstate__()) if component is not None else None


def component(kind: str, state: dict[str, Any] | None) -> Any:
    """The `kind` ("normalizer", "pre_tokenizer") that `state` describes."""
    return getattr(Tokenizer.from_str(json.dumps({**_EMPTY, kind: state})), kind)


def _parts(state: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if state is None:
        return
    nested = [part for key in ("normalizers", "pretokenizers", "decoders") for part in state.get(key, ())]
    if nested:
        for part in nested:
            yield from _parts(part)
    else:
        yield state


def scheme_of(tokenizer: Tokenizer) -> Scheme:
    """Recognizes the scheme by the decoder and the pre-tokenizer.

    Raises:
        UserError: None of the three.
    """
    parts = [*_parts(state_of(tokenizer.decoder)), *_parts(state_of(tokenizer.pre_tokenizer))]
    kinds = {part["type"] for part in parts}
    replaced = {str(part.get("pattern")) for part in parts if part["type"] == "Replace"}
    if "ByteLevel" in kinds:
        return Scheme.BYTE_LEVEL
    if kinds & {"ByteFallback", "Metaspace"} or any("▁" in pattern for pattern in replaced):
        return Scheme.SENTENCEPIECE
    if "WordPiece" in kinds:
        return Scheme.WORDPIECE
    raise UserError(
        f"the bytes of this tokenizer's tokens are unknown (its decoder is {sorted(kinds) or 'missing'}); "
        "use a model whose tokenizer is byte-level, SentencePiece or WordPiece."
    )


def token_bytes(token: str, scheme: Scheme, *, byte_fallback: bool = False, wordpiece_prefix: str = "##") -> bytes:
    """The bytes that `token` adds to a text that is under way."""
    if scheme is Scheme.BYTE_LEVEL:
        known = [_BYTE_OF_CHARACTER.get(character) for character in token]
        return token.encode() if None in known else bytes(byte for byte in known if byte is not None)
    if scheme is Scheme.SENTENCEPIECE:
        byte = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    if token.startswith(wordpiece_prefix):
        return token.removeprefix(wordpiece_prefix).encode()
    return token.encode() if token in {".", ",", "!", "?"} else f" {token}".encode()


def as_byte_level(data: bytes) -> str:
    """`data` in the alphabet of byte-level tokens."""
    return "".join(_CHARACTER_OF_BYTE[byte] for byte in data)


def segments(data: bytes) -> Iterator[tuple[str | None, bytes]]:
    """Cuts `data` into runs of whole characters and runs of bytes that are none. Yields (text or None, bytes)."""
    loose = b""
    while data:
        try:
            text, bad = data.decode(), b""
        except UnicodeDecodeError as error:
            text, bad = data[: error.start].decode(), data[error.start : error.end]
        if text:
            if loose:
                yield None, loose
                loose = b""
            yield text, text.encode()
        loose += bad
        data = data[len(text.encode()) + len(bad) :]
    if loose:
        yield None, loose


def plain_copy(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that encodes text in the middle of a text: no dummy prefix, no template, special tokens are mere text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.post_processor = None
    copy.encode_special_tokens = True
    normalizer = [
        part for part in _parts(state_of(copy.normalizer)) if part["type"] not in {"Prepend", "Strip", "StripAccents"}
    ]
    copy.normalizer = component("normalizer", {"type": "Sequence", "normalizers": normalizer}) if normalizer else None
    splitters = [_without_prefix(part) for part in _parts(state_of(copy.pre_tokenizer))]
    if splitters:
        copy.pre_tokenizer = component("pre_tokenizer", {"type": "Sequence", "pretokenizers": splitters})
    return copy


def _without_prefix(part: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(part)
    if part["type"] == "Metaspace":
        changed |= {"prepend_scheme": "never"}
    elif part["type"] == "ByteLevel":
        changed |= {"add_prefix_space": False}
    return changed
