from __future__ import annotations

from collections.abc import Sequence

from anchorlm.models import CausalModel

_LONGEST = 64
"""Bytes that are kept of what was written: what ends a thought is shorter."""


class AnswerStart:
    """Where the answer begins in what one request has written: at once, and again behind each thought that ends there.

    White space behind a thought is not the answer's yet.

    Args:
        model: The target.

    Attributes:
        watches: Whether the target thinks, so that the answer may begin later.
        place: How many tokens stand before the answer.
    """

    def __init__(self, model: CausalModel) -> None:
        channel = model.channel()
        self.watches = channel is not None
        self.place = 0
        ends = {channel.closing, channel.empty.strip()} - {""} if channel is not None else set()
        self._ends = [text.encode() for text in ends]
        self._data = model.marks.data
        self._tail = b""
        self._read = 0
        self._blank = False

    def read(self, written: Sequence[int]) -> int:
        """Looks at the tokens that are new since the last time, and gives the place."""
        if not self.watches:
            return 0
        for token in written[self._read :]:
            if token < 0:  # the server has not said yet which one it is
                break
            data = self._data(token)
            self._read += 1
            text = self._tail + data
            if behind := [text.rpartition(end)[2] for end in self._ends if end in text]:
                text = min(behind, key=len)
                self._blank = not text.strip()
                self.place = self._read
            elif self._blank and not data.strip():
                self.place = self._read
            else:
                self._blank = False
            self._tail = text[-_LONGEST:]
        return self.place
