from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anchorlm.engine import TextStream
from anchorlm.records import TokenScore
from anchorlm.tokens import ByteVocabulary

_LEAST = -9999.0
"""What OpenAI's API says of what cannot come. JSON knows no infinity."""


class LogProbs:
    """How likely the tokens of an answer were, handed out with the text that they are.

    Args:
        vocabulary: The target's.
    """

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self._vocabulary = vocabulary
        self._text = TextStream(vocabulary)
        self._scores: list[tuple[TokenScore, int]] = []  # each with the characters that are complete with it
        self._length = 0
        self._given = 0
        self._placed = 0

    def add(self, scores: Sequence[TokenScore]) -> None:
        """Takes in what came with a piece of text."""
        for score in scores:
            self._length += len(self._text.feed(score.token))
            self._scores.append((score, self._length))

    def due(self, text: str, *, last: bool) -> list[TokenScore]:
        """Those of tokens that are out.

        Args:
            text: Everything that has gone out.
            last: Whether nothing follows. Then all that are left belong to it.
        """
        waiting = self._scores[self._given :]
        found = [score for score, length in waiting if last or length <= len(text)]
        self._given += len(found)
        return found

    def chat(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """In the form of a chat completion."""
        content = [
            self._token(score.token, score.logprob)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in score.top]}
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def text(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """In the form of a text completion, for what `due` has handed out, in its order.

        A token stands where the text ends without it, and one that is a part of a character is named by its bytes.
        """
        ends = [0, *(length for _, length in self._scores)]
        offsets = ends[self._placed : self._placed + len(scores)]
        self._placed += len(scores)
        return {
            "tokens": [self._exact(score.token) for score in scores],
            "token_logprobs": [_finite(score.logprob) for score in scores],
            "top_logprobs": [{self._exact(token): _finite(value) for token, value in score.top} for score in scores],
            "text_offset": offsets,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._name(token),
            "logprob": _finite(logprob),
            "bytes": list(self._vocabulary.token_bytes(token)),
        }

    def _name(self, token: int) -> str:
        return self._vocabulary.token_bytes(token).decode("utf-8", errors="replace")

    def _exact(self, token: int) -> str:
        """As OpenAI names tokens where the name must tell them apart."""
        piece = self._vocabulary.token_bytes(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
