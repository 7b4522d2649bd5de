"""JSON schemas as masks over a vocabulary: which tokens may come next."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from anchorlm.records import UserError, schema_of
from anchorlm.tokens._vocabulary import ByteVocabulary

_REMEMBERED = 32
"""Compiled schemas that are kept: a client sends the same one with each request."""

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line, as `json.dumps` writes it. Where white space is free, a model may write it without an end."""

_SPECIAL = b"\xff"
"""How the library marks a token that is no text."""


class Form:
    """Where one answer stands in its grammar.

    Args:
        matcher: The library's, nothing read.
        known: The tokens (V,) that are text, or end an answer. Where nothing fits the library names any other one.
        calls: Whether it is a grammar of calls of tools.
    """

    def __init__(self, matcher: Any, known: Tensor, *, calls: bool = False) -> None:
        self._matcher = matcher
        self._calls = calls
        self._known = known
        self._read: list[int] = []

    def fork(self) -> Form:
        """For a second answer that goes on from here."""
        other = Form(self._matcher.deep_copy(), self._known, calls=self._calls)
        other._read = list(self._read)
        return other

    def allowed(self, ids: Sequence[int]) -> Tensor:
        """The tokens that may follow an answer (V,), as bool on the CPU.

        Where the grammar forces what follows, that is the token with which the tokenizer itself goes on.

        Raises:
            UserError: None may, or the grammar has become too large on the way.
        """
        self._follow(ids)
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: len(self._known)].bool()
        mask &= self._known
        if self._matcher.is_error() or not bool(mask.any()):
            where = "with the schemas of these tools: one" if self._calls else "in this response_format: its schema"
            raise UserError(
                f"The answer cannot go on {where} has no end, is too large, or needs characters that the model's "
                "vocabulary lacks; simplify it."
            )
        return mask

    def forced(self, ids: Sequence[int]) -> bytes:
        """What any answer goes on with after `ids`: empty where there is a choice."""
        self._follow(ids)
        found: bytes = self._matcher.compute_ff_bytes()
        return found

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether an answer is whole and nothing can follow it."""
        self._follow(ids)
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _follow(self, ids: Sequence[int]) -> None:
        """Reads an answer: what is new of it, after going back to where it differs from what was read before."""
        ids = list(ids)
        known = len(self._read)
        if ids[:known] != self._read:
            pairs = zip(self._read, ids, strict=False)
            shared = next((place for place, (old, new) in enumerate(pairs) if old != new), min(known, len(ids)))
            self._matcher.rollback(known - shared)
            known = shared
        if len(ids) > known:
            self._matcher.consume_tokens(ids[known:])
        self._read = ids


class Grammars:
    """The schemas that answers in one vocabulary are held to, compiled when they are first asked for.

    Args:
        vocabulary: Of the model.
        size: Width V of its logits.
        stops: The tokens that end an answer: they may follow where the grammar ends, and are no text.
    """

    def __init__(self, vocabulary: ByteVocabulary, size: int, stops: Iterable[int]) -> None:
        self._vocabulary = vocabulary
        self._size = size
        self._stops = sorted(stop for stop in stops if stop < size)
        self._compiled: OrderedDict[str, Form] = OrderedDict()
        self._lock = Lock()

    def form(self, format: Mapping[str, Any]) -> Form:
        """The beginning of an answer in a checked response format, or under a grammar of calls.

        Raises:
            UserError: The library is not there, or cannot compile the schema.
        """
        calls = format["type"] == "calls"
        key = format["lark"] if calls else json.dumps(schema_of(format))
        with self._lock:
            known = self._compiled.get(key)
        if known is None:  # may take long, and holds no one up
            known = self._compile_calls(key, format["tokens"]) if calls else self._compile(key)
        with self._lock:
            self._compiled[key] = known
            self._compiled.move_to_end(key)
            if len(self._compiled) > _REMEMBERED:
                self._compiled.popitem(last=False)
            return known.fork()

    def _compile(self, schema: str) -> Form:
        try:
            grammar = _library().LLMatcher.grammar_from_json_schema(schema, overrides=_STYLE)
        except ValueError as error:
            raise _unfit("response_format", str(error)) from None
        return Form(self._matcher(grammar, "response_format"), self._spoken)

    def _compile_calls(self, lark: str, tokens: Sequence[int]) -> Form:
        known = self._spoken.clone()
        known[list(tokens)] = True  # control tokens that stand around calls
        grammar = _library("A call that is held to its schema").LLMatcher.grammar_from_lark(lark)
        return Form(self._matcher(grammar, "a tool"), known, calls=True)

    def _matcher(self, grammar: str, whose: str) -> Any:
        library, limits = _library(), {"verbose_errors": False}
        matcher = library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=library.LLParserLimits(**limits))
        if matcher.is_error():
            raise _unfit(whose, matcher.get_error())
        return matcher

    @cached_property
    def _spoken(self) -> Tensor:
        """The tokens (V,) that are text, or end an answer."""
        ends = set(self._stops)
        return torch.tensor([index in ends or bool(self._vocabulary.token_bytes(index)) for index in range(self._size)])

    @cached_property
    def _tokenizer(self) -> Any:
        """The vocabulary as the library knows it: rows of the embeddings that are no token can never be written."""
        library, vocabulary = _library(), self._vocabulary
        tokens = [vocabulary.token_bytes(index) if index not in self._stops else b"" for index in range(self._size)]
        stops = self._stops or [len(tokens)]
        if not self._stops:  # the library wants an end, also of a model that has none
            tokens.append(b"")
        silent = [index for index, data in enumerate(tokens) if not data]
        for index in silent:
            tokens[index] = _SPECIAL + f"<{index}>".encode()
        source = _Source(vocabulary, tokens, silent, stops[0])
        return library.LLTokenizer(
            library.TokenizerWrapper(source), n_vocab=len(tokens), eos_token=stops,
            slices=library.LLTokenizer.json_slices(),
        )  # fmt: skip


class _Source:
    """What the library asks a tokenizer for."""

    bos_token_id: int | None = None

    def __init__(self, vocabulary: ByteVocabulary, tokens: list[bytes], silent: list[int], end: int) -> None:
        self._vocabulary = vocabulary
        self.tokens = tokens
        self.special_token_ids = silent
        self.eos_token_id = end

    def __call__(self, text: bytes) -> list[int]:
        """See the library."""
        return self._vocabulary.encode(text)


def _library(what: str = "A response_format") -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError(f"{what} needs llguidance: pip install 'anchorlm[schema]'.") from None
    return llguidance


def _unfit(whose: str, why: str) -> UserError:
    """What is said of a schema that cannot be compiled."""
    first = why.strip().partition("\n")[0].rstrip(".: ")
    return UserError(f"The schema of {whose} cannot be used: {first[:1].lower()}{first[1:200]}.")
