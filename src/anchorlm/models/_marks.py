from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from anchorlm.tokens import ByteVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Marks:
    """Texts with control tokens in them, such as those that open and end a thought, as token ids and back.

    Args:
        tokenizer: With its added tokens.
        vocabulary: Its ids as bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: ByteVocabulary) -> None:
        self._vocabulary = vocabulary
        added = {int(index): str(token.content) for index, token in tokenizer.added_tokens_decoder.items()}
        self._added = {index: text.encode() for index, text in added.items() if text}

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text.decode(): index for index, text in self._added.items()}

    @cached_property
    def _cuts(self) -> re.Pattern[str]:
        listed = sorted(self._ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, listed))})" if listed else "((?!))")

    def data(self, token: int) -> bytes:
        """What stands for a token, control tokens by their names."""
        return self._added.get(token) or self._vocabulary.token_bytes(token)

    def text(self, tokens: Sequence[int]) -> str:
        """Some tokens as one text."""
        return b"".join(map(self.data, tokens)).decode("utf-8", errors="replace")

    def plain(self, text: str) -> str:
        """A text without the names of control tokens."""
        return "".join(piece for piece in self._cuts.split(text) if self._ids.get(piece) not in self._silent)

    @cached_property
    def _silent(self) -> frozenset[int]:
        return frozenset(index for index in self._added if not self._vocabulary.token_bytes(index))

    def ids(self, text: str) -> list[int]:
        """The tokens of a text that goes on from another one. Names of control tokens are these tokens."""
        found: list[int] = []
        for piece in self.pieces(text):
            found += self._vocabulary.encode(piece.encode()) if isinstance(piece, str) else [piece]
        return found

    def pieces(self, text: str) -> list[int | str]:
        """A text in pieces: control tokens, and the texts between them."""
        return [self._ids.get(piece, piece) for piece in self._cuts.split(text) if piece]

    def silent(self, token: int) -> bool:
        """Whether a control token is no text."""
        return token in self._silent

    def first(self, *texts: str) -> frozenset[int]:
        """The control tokens with which some texts begin, where that is what they do."""
        ids = [self.ids(text)[:1] for text in texts if text]
        return frozenset(one[0] for one in ids if one and one[0] in self._added)
