from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, cast

from anchorlm.engine._ahead import stepwise
from anchorlm.engine._sampling import Sampler, choose
from anchorlm.records import GenerationSettings, UserError

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


class ThoughtGuide(Protocol):
    """Both models, if an anchor guides the opening of a thought (`MixedSequence` of AlignBeam)."""

    async def mixture(self) -> Any:
        """The distribution of the next token, `f` of what comes back."""
        ...

    def release_guide(self) -> None:
        """From here on the target goes alone."""
        ...


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
        # What ends the answer, and what it must be, is no matter of the thought.
        generation = generation.model_copy(update={"stop_token_ids": (), "response_format": None})
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
            if (token := await self._next(sampler)) is None:
                break
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

    async def _next(self, sampler: Sampler) -> int | None:
        """The next token, which is not in the row yet; None where the turn ends."""
        row = self._row
        if stepwise(row):
            return choose((await row.logits())[None], [sampler], [row.ids], [row.prompt_length])[0]
        start = len(row.ids)
        written = await row.generate(self._generation.model_copy(update={"max_new_tokens": 1, "logprobs": None}))
        row.crop(start)
        return next(iter(written.token_ids), None)

    async def write(
        self, budget: int, guide: ThoughtGuide | None = None, guided: int = 0
    ) -> AsyncGenerator[None, None]:
        """Writes until the thought is over or can go on no more; comes back after each token but the last.

        Args:
            budget: Most tokens.
            guide: Both models, if an anchor guides the first tokens.
            guided: How many the anchor guides.
        """
        for step in range(budget):
            if guide is not None and step < guided:
                logits = (await guide.mixture()).f.log()
            elif stepwise(self._row):
                logits = await self._row.logits()
            else:
                async with aclosing(self._streamed(budget - step)) as rest:
                    async for _ in rest:
                        yield
                return
            if self._take(logits):
                return
            yield

    async def _streamed(self, budget: int) -> AsyncGenerator[None, None]:
        """The same where each token by itself would take a call."""
        while budget > 0:
            settings = self._generation.model_copy(update={"max_new_tokens": budget, "logprobs": None})
            async with aclosing(cast("AsyncGenerator[int, None]", self._row.stream(settings))) as tokens:
                async for token in tokens:
                    budget -= 1
                    if self._put(token):
                        return
                    yield
            try:  # what ended the turn may be what ends the thought
                over = budget <= 0 or self._take(await self._row.logits())
            except UserError:  # the server names no tokens
                over = True
            if over:
                return
            budget -= 1
            yield

    def _take(self, logits: Tensor) -> bool:
        """The next token, chosen from logits (V,); whether the thought is over, or can go on no more."""
        [token] = choose(logits[None], [self._sampler], [self._row.ids], [self._row.prompt_length])
        if token in self._model.stop_ids:
            data = self._model.marks.data(token)
            if data and self._closing.startswith(data):  # it ends a turn where it does not end a thought
                self._place = len(self._data)
            return True
        self._row.append([token])
        return self._put(token)

    def _put(self, token: int) -> bool:
        """Notes a token that is in the row; whether the thought is over."""
        data = self._model.marks.data(token)
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
            token = await self._next(sampler)
            data = b"" if token is None else self._model.marks.data(token)
            if token is None or token in self._model.stop_ids or not data or data.strip():
                return
            row.append([token])
