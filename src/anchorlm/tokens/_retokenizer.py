from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from anchorlm.tokens._seams import last_seam
from anchorlm.tokens._vocabulary import ByteVocabulary


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response in a tokenizer's canonical tokens, divided where no later text makes a difference.

    Attributes:
        ids: The canonical ids up to the last boundary across which no token reaches, whatever follows.
        pending: The bytes after that boundary: a word that may go on, a character cut in two.
        tail: The canonical ids of `pending` as it stands. `ids + tail` is the whole response as it stands.
        response: What was encoded, with the lead.
        stable: How many of the leading `ids` no later text can change.
        stable_bytes: How many bytes those write.
    """

    ids: tuple[int, ...]
    pending: bytes
    tail: tuple[int, ...]
    response: bytes
    stable: int
    stable_bytes: int


class Retokenizer:
    """The growing response of one model in the canonical tokens of another.

    Appending the tokens of each new piece drifts off the canonical tokenization, on which alone a model was trained.
    So the response is encoded again, from the last boundary that nothing can change.
    """

    def __init__(self, tokenizer: Any, *, lead: bytes = b"") -> None:
        """Takes a fast tokenizer, a `tokenizers.Tokenizer` or a `ByteVocabulary`.

        Args:
            tokenizer: The other model's.
            lead: What that model writes in front of every response, b" " for chat templates that end in a role marker
                to which SentencePiece adds its dummy space.
        """
        self.vocabulary = ByteVocabulary.from_tokenizer(tokenizer)
        self.lead = lead

    def encode(self, response: bytes, previous: Encoded | None = None) -> Encoded:
        """Encodes the `response`. With the result for a prefix of it (`previous`) in time independent of its length."""
        data = self.lead + response
        kept: tuple[int, ...] = ()
        start = 0
        if previous is not None and data.startswith(previous.response):
            kept, start = previous.ids[: previous.stable], previous.stable_bytes
        piece = data[start:]
        ids, words = self.vocabulary.encode_words(piece)
        ends = [0, *accumulate(len(self.vocabulary.token_bytes(index)) for index in ids)]
        if self.vocabulary.decode(ids) != piece:
            # The tokenizer rewrote the text (composed a character, lost an unknown one): bytes and ids do not align.
            return Encoded((*kept, *ids), b"", (), data, len(kept), start)
        stable = self._stable_words(ids, words)
        if not self.vocabulary.divides:
            seam = last_seam(piece, self.vocabulary.pairs, end=not self.vocabulary.pretokenizes)
            stable = max(stable, bisect_right(ends, seam) - 1)
        reach = (self.vocabulary.extending(piece[ends[n] :]) for n in range(stable, len(ids)))
        cut = next((n for n, span in enumerate(reach, stable) if span.start < span.stop), len(ids))
        return Encoded(
            ids=(*kept, *ids[:cut]),
            pending=piece[ends[cut] :],
            tail=tuple(ids[cut:]),
            response=data,
            stable=len(kept) + stable,
            stable_bytes=start + ends[stable],
        )

    def is_boundary(self, response: bytes, previous: Encoded | None = None) -> bool:
        """Whether the end of `response` may well be the end of one of this tokenizer's tokens, once more text follows.

        It is where the last word is a single token: a word that takes several is likely one that was cut.

        Args:
            response: The response so far.
            previous: The result of `encode` for it or for a prefix of it, to save time.
        """
        encoded = self.encode(response, previous)
        try:
            response.decode()
        except UnicodeDecodeError:
            return False
        ids = encoded.ids + encoded.tail
        if self.vocabulary.divides:
            return len(ids) - encoded.stable <= 1
        before, last = (self.vocabulary.decode(part).decode(errors="replace") for part in (ids[-2:-1], ids[-1:]))
        return not (_in_word(before[-1:]) and _in_word(last[:1]))

    def open_tokens(self, encoded: Encoded, tokens: Sequence[int]) -> tuple[int, ...]:
        """Those of a response's own `tokens` that stand after its last boundary which no later text can move.

        Args:
            encoded: What `encode` made of the response.
            tokens: The response as it was written, in canonical tokens or not.
        """
        missing, count = len(encoded.response) - encoded.stable_bytes, 0
        while missing > 0 and count < len(tokens):
            count += 1
            missing -= len(self.vocabulary.token_bytes(tokens[-count]))
        return tuple(tokens[len(tokens) - count :])

    def constrain(self, probs: Tensor, pending: bytes) -> Tensor:
        """The distribution `probs` (V,) under the condition that the next token begins with `pending` and goes on.

        Returns:
            (V,), sums to 1. NaN where no such token has any mass.
        """
        mask = torch.zeros_like(probs)
        mask[self.vocabulary.by_bytes[self.vocabulary.extending(pending)]] = 1
        kept = probs * mask
        return kept / kept.sum()

    def _stable_words(self, ids: list[int], words: list[int]) -> int:
        """The first id of the last pre-token, or further back where pre-tokens may still be divided differently."""
        starts = [n for n, word in enumerate(words) if n == 0 or word != words[n - 1]]
        pieces = [self.vocabulary.decode(ids[a:b]) for a, b in pairwise([*starts, len(ids)])]
        last = len(pieces) - 1
        while last > 0 and _may_join(pieces[last - 1], pieces[last]):
            last -= 1
        return starts[last] if starts else 0


def _may_join(before: bytes, after: bytes) -> bool:
    """Whether more text could move the boundary: runs of white space, and contractions ("'l" becoming "'ll")."""
    return (before.isspace() and after.isspace()) or before.endswith((b"'", "’".encode()))


def _in_word(character: str) -> bool:
    """Whether a character is one of a word that others like it make longer. Scripts without spaces have no such."""
    return character.isalnum() and character < "\u2e80"
