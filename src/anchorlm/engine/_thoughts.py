from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from anchorlm.engine._sampling import Sampler, choose
from anchorlm.records import GenerationSettings

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.engine._protocol import TokenSequence
    from anchorlm.models import CausalModel, Channel

THOUGHT_MARGIN = 48
"""Tokens that are kept free for what opens and ends a thought."""

_BEFORE = 16
"""Tokens of white space that may stand before a thought."""

_LEAD = 3
"""Tokens of white space that may stand between a thought and its answer."""


class ThoughtWriter:
    """Writes a model's thought token by token, up to where the answer begins.

    Args:
        row: Of the model, nothing but the prompt read.
        model: The model.
        channel: Where its thoughts stand.
        generation: How tokens are chosen.
    """

    def __init__(
        self, row: TokenSequence, model: CausalModel, channel: Channel, generation: GenerationSettings
    ) -> None:
        self._row, self._model, self._channel = row, model, channel
        self._generation = generation
        self._closing = channel.closing.encode()
        self._sampler = Sampler(generation)
        self._start = len(row.ids)
        self._data = b""
        self._ends = [0]  # of the first tokens in the data
        self._place = -1
        self._told = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def opens(self, prompt: list[int]) -> bool:
        """Whether there is a thought: the prompt ends inside of one, or the model opens one by itself.

        Where it opens none, nothing is written.
        """
        if self._channel.inside(self._model.marks.text(prompt[-THOUGHT_MARGIN:])) or await self._opened():
            self._row.begin(answer=False)
            self._start = len(self._row.ids)
            return True
        return False

    async def _opened(self) -> bool:
        opening, sampler, data = self._channel.opening.encode(), Sampler(self._generation), self._model.marks.data
        for count in range(THOUGHT_MARGIN):
            token = choose((await self._row.logits())[None], [sampler], [self._row.ids])[0]
            written = b"".join(map(data, (*self._row.ids[self._start :], token))).lstrip()
            fits = opening.startswith(written) if written else count < _BEFORE
            if not data(token) or not (fits or written.startswith(opening)):
                break
            self._row.append([token])
            if written.startswith(opening):
                self._data = written[len(opening) :]
                self._ends = [len(self._data)]
                return True
        self._row.crop(self._start)
        return False

    def take(self, logits: Tensor) -> bool:
        """The next token, chosen from logits (V,); whether the thought is over, or can go on no more."""
        token = choose(logits[None], [self._sampler], [self._row.ids])[0]
        data = self._model.marks.data(token)
        if token in self._model.stop_ids:
            if data and self._closing.startswith(data):  # it ends a turn where it does not end a thought
                self._place = len(self._data)
            return True
        self._row.append([token])
        self._data += data
        self._ends.append(len(self._data))
        since = max(0, len(self._data) - len(data) - len(self._closing))
        self._place = self._data.find(self._closing, since)
        return self._place >= 0

    def due(self, *, last: bool = False) -> str:
        """What is new of the thought, without what may begin its end.

        Args:
            last: Whether it has ended.
        """
        until = self._place if self._place >= 0 else len(self._data) - self._held()
        until = len(self._data[:until].rstrip())
        begin = self._told or len(self._data) - len(self._data.lstrip())
        if until <= begin:
            return self._decoder.decode(b"", final=last)
        self._told = until
        return self._decoder.decode(self._data[begin:until], final=last)

    def _held(self) -> int:
        longest = min(len(self._closing) - 1, len(self._data))
        sizes = range(longest, 0, -1)
        return next((size for size in sizes if self._closing.startswith(self._data[len(self._data) - size :])), 0)

    async def ended(self) -> str | None:
        """The whole thought, whose end stands in the row now as the template writes it; None where it has none."""
        if self._place < 0:
            return None
        body, marks, end = self._data[: self._place], self._model.marks, self._channel.end
        if self._data[self._place :] == self._closing:
            self._row.append(marks.ids(end[len(end.rstrip()) :]))
        else:  # the last token brought more, or the end is not written yet
            kept = max((count for count, place in enumerate(self._ends) if place <= self._place), default=0)
            self._row.crop(self._start + kept)
            left = body[self._ends[kept] :].decode("utf-8", errors="replace")
            self._row.append(marks.ids(left + (end.lstrip() if body[-1:].isspace() or not body else end)))
        if not end[-1:].isspace():
            await self._space()
        return body.strip().decode("utf-8", errors="replace")

    async def _space(self) -> None:
        """Lets the model write the white space that stands before its answer, where its template does not say."""
        sampler, row = Sampler(self._generation), self._row
        for _ in range(_LEAD):
            token = choose((await row.logits())[None], [sampler], [row.ids])[0]
            data = self._model.marks.data(token)
            if token in self._model.stop_ids or not data or data.strip():
                return
            row.append([token])
