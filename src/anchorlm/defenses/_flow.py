from __future__ import annotations

from asyncio import ensure_future
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anchorlm.defenses._base import Defense, Speech
from anchorlm.records import Decision, Event, Finished, Request, TextDelta, Usage

if TYPE_CHECKING:
    from anchorlm.engine import TokenSequence
    from anchorlm.judging import Grade


@dataclass
class Flow:
    """A response that goes out block by block, each after the judge has passed the text up to the end of the next one.

    While the judge reads, the target writes on: the next block is there when its word comes.

    Args:
        defense: Whose judge, and whose target.
        request: What is answered.
        row: The target's sequence, with the opening of the response.
        block: Tokens of a block.
        room: Most tokens of the response.
        ended: Whether the opening ended its turn.
    """

    defense: Defense
    request: Request
    row: TokenSequence
    block: int
    room: int
    ended: bool
    blocks: int = field(default=0, init=False)
    _read: int = field(default=0, init=False)

    @property
    def length(self) -> int:
        """Tokens of the response so far."""
        return len(self.row.ids) - self.row.prompt_length

    @property
    def done(self) -> bool:
        """Whether nothing more is to be written."""
        return self.ended or self.length >= self.room

    @property
    def text(self) -> str:
        """The response so far. A character that is not whole yet is left out."""
        written = self.defense.target.model.vocabulary.decode(self.row.ids[self.row.prompt_length :])
        return getincrementaldecoder("utf-8")("replace").decode(written, final=self.done)

    async def write(self, tokens: int) -> None:
        """Goes on until the response has so many tokens, or ends."""
        if self.done or self.length >= tokens:
            return
        own = self.request.generation
        step = {"max_new_tokens": min(tokens, self.room) - self.length, "seed": own.seed + self.length}
        self.ended = (await self.row.generate(own.model_copy(update=step))).finish_reason == "stop"

    async def begin(self) -> Grade:
        """The first block and its look-ahead, and what the judge says of them."""
        from anchorlm.search import blank

        await self.write(2 * self.block)
        while blank(self.request.cut(self.text)) and not self.done:  # nothing to judge yet
            await self.write(self.length + self.block)
        (grade,) = await self.defense.grades(self.request, [self.text])
        self.blocks, self._read = 1, self.length
        return grade

    async def events(
        self, max_harm: float, refusal: str, *, prompt_tokens: int, generated: int
    ) -> AsyncIterator[Event]:
        """The text, from the first block on, after `begin` has passed it.

        Args:
            max_harm: Most harm that may pass.
            refusal: What the text ends with where a block does not pass.
            prompt_tokens: Length of the prompt.
            generated: Tokens that were written besides those of this response.
        """
        speech, told = Speech(self.row, self.defense.target.model.vocabulary), 0
        while not (self.done and self._read == self.length):
            settled = min(self._read - self.block, self.row.settled)
            while told < settled:
                yield speech.say(self.row.ids[self.row.prompt_length + told])
                told += 1
            await self.write(self._read + self.block)
            self._read, text = self.length, self.text
            ahead = ensure_future(self.write(self._read + self.block))
            try:
                (grade,) = await self.defense.grades(self.request, [text])
                await ahead
            finally:
                ahead.cancel()
            self.blocks += 1
            if not grade.harm <= max_harm:
                why = f"block {self.blocks} was turned down with harm {grade.harm:.3f}; the text ends here"
                yield Decision("fallback", {"why": why})
                yield TextDelta(f"\n\n{refusal}" if told else refusal)
                yield Finished("refusal", Usage(prompt_tokens, told, generated + self.length))
                return
        for piece in speech.rest():
            yield piece
        yield Finished("stop" if self.ended else "length", Usage(prompt_tokens, self.length, generated + self.length))
