from __future__ import annotations

from collections.abc import Sequence

from anchorlm.records import first_stop
from anchorlm.tokens import ByteVocabulary


class TurnEnds:
    """Where a response goes on into another turn, for chat templates that mark turns by text and not by tokens.

    Args:
        vocabulary: Of the response's tokens.
        texts: With which another turn begins.
    """

    def __init__(self, vocabulary: ByteVocabulary, texts: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        # Bytes as letters of their own: a token may end inside a character.
        self._texts = tuple(text.encode().decode("latin-1") for text in texts)
        self._longest = max(map(len, self._texts), default=0)

    def cut(self, ids: Sequence[int]) -> tuple[int, list[int]] | None:
        """What is left of a response whose last token completes the beginning of another turn. None where it does not.

        Returns:
            How many of its tokens stay, and what the next one shrinks to where another turn begins inside of it.
        """
        if not self._texts or not ids:
            return None
        last = self._bytes(ids[-1])
        text, start = self._tail(ids, len(last) + self._longest)
        if (place := first_stop(text, self._texts)) is None:
            return None
        at = 0
        for index in range(start, len(ids)):
            size = len(self._bytes(ids[index]))
            if at + size > place:
                rest = self._vocabulary.encode(text[at:place].encode("latin-1"))
                # Never as long as before: a response that ended its turn has not used up its room.
                return index, rest if len(rest) < len(ids) - index else []
            at += size
        return None

    def settled(self, ids: Sequence[int]) -> int:
        """How many tokens of a response stay whatever follows: the others may begin another turn."""
        if not self._texts:
            return len(ids)
        text, start = self._tail(ids, self._longest)
        held = next(
            (size for size in range(min(self._longest - 1, len(text)), 0, -1)
             if any(each.startswith(text[len(text) - size :]) for each in self._texts)), 0,
        )  # fmt: skip
        count = len(ids)
        while held > 0 and count > start:
            count -= 1
            held -= len(self._bytes(ids[count]))
        return count

    def _tail(self, ids: Sequence[int], size: int) -> tuple[str, int]:
        """The last bytes of a response, at least `size` of them, and the token with which they start."""
        pieces: list[str] = []
        start = len(ids)
        while start and size > 0:
            start -= 1
            pieces.append(self._bytes(ids[start]))
            size -= len(pieces[-1])
        return "".join(reversed(pieces)), start

    def _bytes(self, token: int) -> str:
        return self._vocabulary.token_bytes(token).decode("latin-1")
