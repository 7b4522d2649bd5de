from __future__ import annotations

from asyncio import ensure_future, gather
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from anchorlm.defenses._base import Defense, Speech
from anchorlm.defenses._picked import PickingSettings
from anchorlm.records import Decision, Event, Finished, GenerationSettings, Request, TextDelta, Usage

if TYPE_CHECKING:
    from anchorlm.engine import TokenSequence
    from anchorlm.judging import Grade
    from anchorlm.search import Candidate

Release = Annotated[
    Literal["whole", "blocks"],
    Field(
        description="When text comes: whole, or block by block, each after the judge has passed the text up to the end "
        "of the next one. It holds for all requests of a guard.",
        json_schema_extra={"paper": "`whole`"},
    ),
]
"""When text comes."""

Block = Annotated[int, Field(ge=1, description='Tokens of a block, with `release = "blocks"`.')]
"""How much of it comes at once."""


@dataclass
class Flow:
    """A response that goes out block by block, each after the judge has passed the text up to the end of the next one.

    While the judge reads, the target writes on: the next block is there when its word comes.

    Args:
        defense: Whose judge, and whose target.
        request: What is answered.
        generation: How tokens are chosen.
        row: The target's sequence, with the opening of the response if there is one.
        block: Tokens of a block.
        room: Most tokens of the response.
        ended: Whether the opening ended its turn.
        log_probability: By which equal responses are told apart. None: by their order.
        told: What the trace says of the opening.
    """

    defense: Defense
    request: Request
    generation: GenerationSettings
    row: TokenSequence
    block: int
    room: int
    ended: bool = False
    log_probability: float | None = None
    told: Sequence[Decision] = ()
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
        own = self.generation
        step = {"max_new_tokens": min(tokens, self.room) - self.length, "seed": own.seed + self.length}
        self.ended = (await self.row.generate(own.model_copy(update=step))).finish_reason == "stop"

    async def begin(self) -> Candidate:
        """The first block and its look-ahead, for the judge."""
        from anchorlm.search import Candidate, blank

        await self.write(2 * self.block)
        while (silent := blank(self.request.cut(self.text))) and not self.done:  # nothing to judge yet
            await self.write(self.length + self.block)
        self.blocks, self._read = 1, self.length
        tokens = tuple(self.row.ids[self.row.prompt_length :])
        reason: Literal["stop", "length"] = "stop" if self.ended else "length"
        return Candidate(self.text, tokens, reason, self.log_probability, blank=silent)

    async def events(
        self, max_harm: float, refusal: str, *, prompt_tokens: int, generated: int
    ) -> AsyncIterator[Event]:
        """The text, from the first block on, after the judge has passed what `begin` wrote.

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


async def flowing(
    defense: Defense,
    request: Request,
    settings: PickingSettings,
    rounds: Iterable[Sequence[Flow]],
    *,
    prompt_tokens: int,
) -> AsyncIterator[Event]:
    """Chooses a response by its first block and look-ahead, and lets it flow. The refusal where none passes.

    Args:
        defense: Whose judge.
        request: What is answered.
        settings: Most harm that may pass, how far below it the first one wins, and what is said instead.
        rounds: Responses that are begun and judged together. The next ones only if the judge is comfortable with none.
        prompt_tokens: Length of the prompt.
    """
    from anchorlm.search import release, select_safest

    flows: list[Flow] = []
    found: list[Candidate] = []
    grades: list[Grade] = []
    for some in rounds:
        for flow in some:
            for one in flow.told:
                yield one
        begun = await gather(*(flow.begin() for flow in some))
        words = await defense.grades(request, [one.text for one in begun])
        flows, found, grades = [*flows, *some], [*found, *begun], [*grades, *words]
        most = settings.max_harm - settings.comfort
        if any(not one.blank and grade.harm <= most for one, grade in zip(begun, words, strict=True)):
            break
    choice = select_safest(found, grades, settings.max_harm, settings.comfort)
    for event in release(choice, found, grades, settings.refusal, prompt_tokens=prompt_tokens):
        if choice is None or isinstance(event, Decision):
            yield event
    if choice is None:
        return
    chosen = flows.pop(choice.index)
    others = sum(flow.length for flow in flows)
    for flow in flows:
        flow.row.close()  # while the chosen one flows, the others' rows are free
    text = chosen.events(settings.max_harm, settings.refusal, prompt_tokens=prompt_tokens, generated=others)
    async for event in text:
        yield event
