from __future__ import annotations

import builtins
import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from tokenizers import Tokenizer
from torch import Tensor

from anchorlm.records import UserError
from anchorlm.tokens._schemes import Scheme, as_byte_level, plain_copy, scheme_of, segments, state_of, token_bytes
from anchorlm.tokens._seams import Pairs, byte_pairs, character_pairs

_END_OF_TURN = {
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|return|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|role_end|>",
}
_EOS = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>"}
_BOS = {"<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>", "<｜begin▁of▁sentence｜>"}
_PAD = {"<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"}


class ByteVocabulary:
    """A tokenizer seen as bytes: what every id adds to a response, which ids are special, and what for.

    Attributes:
        size: Number of ids, special ones included. The rows of an embedding matrix beyond it are padding.
        scheme: How the token strings stand for bytes.
        bos: Ids that begin a text.
        eos: Ids that end a text.
        end_of_turn: Ids that end a turn of a conversation, where the tokenizer tells turns from texts.
        pad: Ids that fill up.
        other: Every other id that is no text: role markers, masks, the unknown token.
        stop_id: The id with which this model ends a response. None where there is none.
    """

    def __init__(self, tokenizer: Tokenizer, *, roles: dict[str, frozenset[int]], stop_id: int | None) -> None:
        self._tokenizer = tokenizer
        self.scheme: Scheme = scheme_of(tokenizer)
        # Ids may have holes, so there are fewer of them than the largest says.
        known = (*tokenizer.get_vocab(True).values(), *tokenizer.get_added_tokens_decoder())
        self.size: int = max(known, default=-1) + 1
        self.bos = roles["bos"]
        self.eos = roles["eos"]
        self.end_of_turn = roles["end_of_turn"]
        self.pad = roles["pad"]
        self.other = roles["other"]
        self.stop_id = stop_id

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, stop_ids: Iterable[int] = ()) -> Self:
        """Reads a tokenizer.

        Args:
            tokenizer: A fast tokenizer of transformers, a `tokenizers.Tokenizer`, or a `ByteVocabulary` (returned as
                it is).
            stop_ids: Further ids that end a response (`eos_token_id` of a generation configuration).

        Raises:
            UserError: The tokenizer is not a fast one, or its token strings cannot be turned into bytes.
        """
        if isinstance(tokenizer, cls):
            return tokenizer
        backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UserError(
                f"{type(tokenizer).__name__} has no tokenizer.json; load the model with a fast tokenizer "
                "(AutoTokenizer.from_pretrained(..., use_fast=True))."
            )
        added = backend.get_added_tokens_decoder()
        named = {index: token.content for index, token in added.items() if token.special}
        declared = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "unk")}
        unknown = _unknown_id(backend)
        special = {*named, *(index for index in (*declared.values(), unknown) if index is not None), *stop_ids}

        ends = {index for index in special if named.get(index) in _EOS | _END_OF_TURN}
        ends |= {*stop_ids, *(index for index in (declared["eos"],) if index is not None)}
        turn = frozenset(index for index in ends if backend.id_to_token(index) in _END_OF_TURN)
        roles = {
            "bos": frozenset(i for i in special if named.get(i) in _BOS or i == declared["bos"]),
            "eos": frozenset(ends - turn),
            "end_of_turn": turn,
            "pad": frozenset(i for i in special if named.get(i) in _PAD or i == declared["pad"]),
        }
        roles["other"] = frozenset(special.difference(*roles.values()))
        stop = [index for index in (declared["eos"], *sorted(turn), *sorted(roles["eos"])) if index is not None]
        return cls(backend, roles=roles, stop_id=next(iter(stop), None))

    @property
    def stop(self) -> frozenset[int]:
        """Ids that end a response."""
        return self.eos | self.end_of_turn

    @cached_property
    def special(self) -> frozenset[int]:
        """All ids that are no text."""
        return self.bos | self.eos | self.end_of_turn | self.pad | self.other

    @property
    def pretokenizes(self) -> bool:
        """Whether text is cut into pre-tokens before it is encoded."""
        return self._tokenizer.pre_tokenizer is not None

    @cached_property
    def divides(self) -> bool:
        """Whether pre-tokens really divide words.

        Gemma has a pre-tokenizer that splits at spaces, behind a normalizer that leaves none. Metaspace may be told not
        to split. Then a whole text is one pre-token.
        """
        return self.encode_words(b"a word. a word")[1][-1:] > [0]

    @cached_property
    def pairs(self) -> Pairs:
        """Characters that stand next to each other in a token."""
        return character_pairs(self.bytes)

    @cached_property
    def joins(self) -> Tensor:
        """(256, 256) bool: bytes that stand next to each other in a token."""
        return byte_pairs(self.bytes)

    @cached_property
    def bytes(self) -> tuple[builtins.bytes, ...]:
        """What each id adds to a text that is under way. B"" for special ids and for ids without a token."""
        added = {index: token.content for index, token in self._tokenizer.get_added_tokens_decoder().items()}
        model = self._tokenizer.model
        fallback = bool(getattr(model, "byte_fallback", False)) or self.scheme is Scheme.SENTENCEPIECE
        prefix = getattr(model, "continuing_subword_prefix", None) or "##"
        table = [b""] * self.size
        for token, index in self._tokenizer.get_vocab(True).items():
            if index in self.special:
                continue
            if index in added:
                text = added[index]
                table[index] = (text.replace("▁", " ") if self.scheme is Scheme.SENTENCEPIECE else text).encode()
            else:
                table[index] = token_bytes(token, self.scheme, byte_fallback=fallback, wordpiece_prefix=prefix)
        return tuple(table)

    @cached_property
    def strings(self) -> dict[str, int]:
        """The ids by the strings of their tokens, which tell a byte token from a letter."""
        return self._tokenizer.get_vocab(True)

    @cached_property
    def added(self) -> frozenset[int]:
        """Ids of tokens that were added to the vocabulary: found in a text before it is cut, special or not."""
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    def token_bytes(self, index: int) -> builtins.bytes:
        """The bytes of one id. B"" for special ids and for padding beyond `size`."""
        return self.bytes[index] if index < self.size else b""

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(1, *map(len, self.bytes))

    def decode(self, ids: Iterable[int]) -> builtins.bytes:
        """The exact bytes of a response's `ids`: nothing stripped, nothing cleaned up, special tokens left out."""
        return b"".join(self.token_bytes(index) for index in ids)

    def encode(self, data: builtins.bytes) -> list[int]:
        """The canonical ids of `data` in the middle of a text (no bos, no dummy prefix). Any bytes will do.

        Text that looks like a special token is encoded as text. Bytes that are no whole character become the tokens
        of their bytes, or nothing where the vocabulary has none.
        """
        return self.encode_words(data)[0]

    def encode_words(self, data: builtins.bytes) -> tuple[list[int], list[int]]:
        """`encode`, and for each id the number of the pre-token that it is part of (all 0 without a pre-tokenizer)."""
        ids: list[int] = []
        words: list[int] = []
        for text, piece in segments(data):
            if text is not None:
                for part in self._names.split(text) if self._names else (text,):
                    encoding = self._plain.encode(part, add_special_tokens=False)
                    first = words[-1] + 1 if words and self.pretokenizes else 0
                    ids += encoding.ids
                    words += [first + (word or 0) for word in encoding.word_ids]
                continue
            # A character that is cut in two belongs to the same pre-token as what stands before it.
            word = words[-1] if words else 0
            start = words.index(word) if words else 0
            if self.scheme is Scheme.BYTE_LEVEL:
                before = self.decode(ids[start:])
                start = start if self._merge(before) == ids[start:] else len(ids)
                piece = self.decode(ids[start:]) + piece
                del ids[start:], words[start:]
                more = self._merge(piece)
            else:
                more = [self._byte_ids[byte] for byte in piece if byte in self._byte_ids]
            ids += more
            words += [word] * len(more)
        return ids, words

    def literal(self) -> list[str]:
        """What the tokenizer's own `decode` makes of each id alone: a string, with all that a string loses."""
        return list(self._tokenizer.decode_batch([[index] for index in range(self.size)], skip_special_tokens=False))

    def encode_literal(self, texts: Sequence[str]) -> list[list[int]]:
        """What the tokenizer's own `encode` makes of each text alone, dummy prefix and all."""
        backend = Tokenizer.from_str(self._tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def extending(self, prefix: builtins.bytes) -> slice:
        """Where the ids whose bytes begin with `prefix` and go on stand in `by_bytes`."""
        ordered = self._ordered_bytes
        head = prefix.rstrip(b"\xff")
        after = head[:-1] + bytes([head[-1] + 1]) if head else None
        return slice(bisect_right(ordered, prefix), bisect_left(ordered, after) if after else len(ordered))

    @cached_property
    def by_bytes(self) -> Tensor:
        """The ids of text (N,), ordered by their bytes."""
        return torch.tensor(sorted((i for i, data in enumerate(self.bytes) if data), key=self.bytes.__getitem__))

    @cached_property
    def _ordered_bytes(self) -> list[builtins.bytes]:
        return [self.bytes[index] for index in self.by_bytes.tolist()]

    def encode_batch(self, items: Sequence[builtins.bytes]) -> list[list[int]]:
        """`encode` for many byte strings at once."""
        texts = {n: text for n, data in enumerate(items) if (text := _text(data)) is not None}
        if self._names:
            texts = {n: text for n, text in texts.items() if not self._names.search(text)}
        encoded = iter(self._plain.encode_batch_fast(list(texts.values()), add_special_tokens=False))
        return [next(encoded).ids if n in texts else self.encode(data) for n, data in enumerate(items)]

    @cached_property
    def digest(self) -> str:
        """Names the vocabulary, the way in which it encodes, and the roles of its special ids."""
        roles = [sorted(ids) for ids in (self.bos, self.eos, self.end_of_turn, self.pad, self.other)]
        return hashlib.sha256(f"{_state_digest(self._tokenizer)}{roles}{self.stop_id}".encode()).hexdigest()

    @cached_property
    def _plain(self) -> Tokenizer:
        return plain_copy(self._tokenizer)

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        ids = {byte: self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
        return {byte: index for byte, index in ids.items() if index is not None}

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        """Where to cut text that spells the name of a special or byte token: Unigram would take it for the token."""
        if type(self._tokenizer.model).__name__ != "Unigram":
            return None
        names = [name for name in map(self._tokenizer.id_to_token, sorted(self.special)) if name and len(name) > 1]
        cuts = [f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names]
        return re.compile("|".join([*cuts, "(?<=<)(?=0x[0-9A-F]{2}>)"]))

    def _merge(self, data: builtins.bytes) -> list[int]:
        return [token.id for token in self._plain.model.tokenize(as_byte_level(data))]


_DIGESTS: WeakKeyDictionary[Tokenizer, tuple[str, str]] = WeakKeyDictionary()
"""Writing a large tokenizer out takes a third of a second, so its digest is kept with what may change about it."""


def _state_digest(tokenizer: Tokenizer) -> str:
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    changeable = f"{tokenizer.get_vocab_size(True)}{[state_of(part) for part in parts]}"
    known, digest = _DIGESTS.get(tokenizer, ("", ""))
    if known != changeable:
        state = tokenizer.to_str()
        # Truncation and padding stand before the added tokens; they change from call to call.
        digest = hashlib.sha256(state[state.index('"added_tokens"') :].encode()).hexdigest()
        _DIGESTS[tokenizer] = changeable, digest
    return digest


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _unknown_id(backend: Tokenizer) -> int | None:
    model = backend.model
    if type(model).__name__ == "Unigram":
        unknown: int | None = json.loads(model.__getstate__())["unk_id"]
        return unknown
    token = getattr(model, "unk_token", None)
    return backend.token_to_id(token) if token else None
