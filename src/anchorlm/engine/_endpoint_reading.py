from __future__ import annotations

import codecs
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anchorlm.engine._endpoint_bodies import chosen
from anchorlm.engine._endpoint_replies import Entry, Named, Reply, UnusableError, checked
from anchorlm.models import EndpointModel
from anchorlm.records import TokenScore
from anchorlm.tokens import in_pieces, piece_bytes

_CERTAIN = 1e-4
"""How far a log-probability is from that of a token that is sure to come, at least."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a part of an answer comes to.

    Attributes:
        ids: Its tokens.
        scores: One for each, or none at all.
        ended: Whether a token that ends the turn came.
        full: Whether it is the last part, and the answer ended because it is as long as it may be.
    """

    ids: list[int]
    scores: list[TokenScore]
    ended: bool
    full: bool = False


class Reader:
    """Turns what a server names into ids of a model.

    Args:
        model: Whose.
        whole: Whether the answer goes back to the server as text: then it may not stop inside a character.
        latin: Whether the server names pieces of characters as if their bytes were Latin-1.
    """

    def __init__(self, model: EndpointModel, *, whole: bool, latin: bool = False) -> None:
        self._model = model
        self._whole = whole
        self._latin = latin

    async def one_step(self, ask: Callable[[dict[str, Any]], Awaitable[Reply]], body: dict[str, Any]) -> Reply:
        """One step, with its likeliest tokens if they can be had.

        llama-server leaves them out if the token that it takes ends inside a character. So it is made to take a letter.

        Args:
            ask: Asks the server.
            body: What it is asked.

        Raises:
            UnusableError: The server counts in what it was made to take, so its log-probabilities are not the model's.
        """
        reply = await ask(body)
        if reply.entries or reply.finish != "length" or not self._model.spelled:
            return reply
        letter = self._model.vocabulary.encode(b"a")[0]
        reply = await ask(body | chosen(letter))
        for named in reply.entries[0].top if reply.entries else ():
            if self.tokens(named) == [letter] and named.logprob > -_CERTAIN:
                raise UnusableError("its log-probabilities follow logit_bias")
        return reply

    def tokens(self, named: Named) -> list[int] | None:
        """The ids of a token that a server names: several where we spell it otherwise, None where it is not known."""
        model = self._model
        if not model.spelled:
            return in_pieces(named.piece if named.piece is not None else named.name.encode("utf-8", "replace"), 1)
        vocabulary, index = model.vocabulary, named.id
        if index is not None and index >= vocabulary.size and not named.piece:
            return None  # a row of the embeddings that is no token
        if index is not None and index < vocabulary.size:
            own = vocabulary.token_bytes(index)
            if not named.piece or own in (named.piece, b""):
                return [index]
        if named.name in model.names:
            return [model.names[named.name]]
        if named.piece is None:
            return None
        if not named.piece:  # the end, or a space that is left out
            return None if vocabulary.stop_id is None or "" in model.alone else [vocabulary.stop_id]
        known = model.pieces.get(named.piece)
        if named.piece == named.name.encode("utf-8", "replace"):  # nothing but its text is known
            fragment = self._fragment(named.name)
            if fragment is not None:
                return None if named.name in model.alone else [fragment]
            if named.name in model.alone:
                known = model.alone[named.name]
                return None if known is None else [known]
        return [known] if known is not None else vocabulary.encode(named.piece)

    def _fragment(self, name: str) -> int | None:
        """The piece of a character that a name may stand for."""
        if not self._latin or name.isascii() or max(name) > "\xff":
            return None
        data = name.encode("latin-1")
        return self._model.pieces.get(data) if "\ufffd" in data.decode("utf-8", "replace") else None

    def written(self, reply: Reply, begun: str = "") -> Written:
        """The tokens of an answer, or of a part of one.

        Args:
            reply: What came.
            begun: What the answer begins with, which some servers say again.
        """
        text = reply.text.removeprefix(begun) if begun else reply.text
        if reply.entries is not None and (found := self._entries(reply.entries, text)) is not None:
            return found
        data = text.encode("utf-8", "replace")
        if self._model.spelled:
            return Written(self._model.vocabulary.encode(data), [], False)
        count = reply.completion_tokens
        return Written(in_pieces(data, count) if count else in_pieces(data), [], False)

    def _entries(self, entries: Sequence[Entry], text: str) -> Written | None:
        """Tokens by their log-probabilities. None where these do not spell the text."""
        ids: list[int] = []
        scores: list[TokenScore] = []
        ended = False
        for entry in entries:
            found = self.tokens(entry.taken)
            if found is None:
                return None
            if ended := bool(found) and found[0] in self._model.stop_ids:
                break
            ids += found
            scores += [self._score(entry, found[0])] if len(found) == 1 and math.isfinite(entry.taken.logprob) else []
        spelled = self._model.vocabulary.decode(ids).decode("utf-8", "replace")
        if spelled != text and spelled.strip() != text.strip() and "\ufffd" not in spelled + text:
            return None
        return Written(ids, scores if len(scores) == len(ids) else [], ended)

    def _score(self, entry: Entry, token: int) -> TokenScore:
        top = {found[0]: one.logprob for one in entry.top if (found := self.tokens(one)) and len(found) == 1}
        if entry.top and entry.taken.logprob >= min(one.logprob for one in entry.top):
            top[token] = entry.taken.logprob  # what was taken may share its name
        return TokenScore(token, entry.taken.logprob, tuple(sorted(top.items(), key=lambda pair: -pair[1])))

    def distribution(self, reply: Reply, answer: bytes) -> tuple[Tensor, float]:
        """The logits (V,) of the next token, as far as the server names tokens, and the mass that it does not name.

        Args:
            reply: With one step.
            answer: What was answered so far.

        Raises:
            UnusableError: There is no distribution in it.
        """
        logits = torch.full((self._model.vocab_size,), -math.inf)
        if not reply.entries:
            stop = self._model.vocabulary.stop_id
            if reply.text or reply.finish != "stop" or stop is None:
                raise UnusableError("it has no log-probabilities")
            logits[stop] = 0.0  # such a server names nothing where the end is the likeliest
            return logits, 1.0
        top = reply.entries[0].top
        checked(top)
        mass = 0.0
        sums: dict[int, float] = {}
        for named in top:
            found = self.tokens(named)
            if found is None or len(found) != 1 or not self._fits(answer, found[0]):
                continue
            share = math.exp(named.logprob)
            # One token may be named twice: among the likeliest, and as the one that was taken.
            if abs(sums.get(found[0], -1.0) - share) > 1e-9:
                sums[found[0]] = sums.get(found[0], 0.0) + share
                mass += share
        if not mass:
            raise UnusableError("it names no token that the tokenizer knows: give the tokenizer of the served model")
        for index, share in sums.items():
            logits[index] = math.log(share) if share else -math.inf
        return logits, max(0.0, 1.0 - mass)

    def _fits(self, answer: bytes, token: int) -> bool:
        """Whether the answer can still be sent after this token."""
        if not self._whole:
            return True
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        decoder.decode(answer + self._model.vocabulary.token_bytes(token))
        return not decoder.getstate()[0]


def text_of(model: EndpointModel, ids: Sequence[int]) -> str:
    """Tokens as the text that a server reads them from: it begins a text by itself.

    Args:
        model: Whose tokens.
        ids: Prompt and answer so far.
    """
    vocabulary = model.vocabulary
    strings = {index: name for name, index in model.names.items()}
    rest = list(ids[1:]) if ids and ids[0] in vocabulary.bos else list(ids)
    data = b"".join(strings[index].encode() if index in strings else vocabulary.token_bytes(index) for index in rest)
    text = data.decode("utf-8", "ignore")
    bare = bool(rest) and rest[0] not in strings
    return text[1:] if bare and vocabulary.scheme == "SentencePiece" and text.startswith(" ") else text


def answer_of(model: EndpointModel, ids: Sequence[int]) -> bytes:
    """The bytes of tokens of an answer, whichever way they are known."""
    if model.spelled:
        return bytes(model.vocabulary.decode(ids))
    return b"".join(map(piece_bytes, ids))
