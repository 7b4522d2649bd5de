from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from anchorlm.defenses._base import stream_target
from anchorlm.records import (
    Decision,
    Event,
    Finished,
    Request,
    TextDelta,
    ThoughtDelta,
    ThoughtSettings,
    Usage,
)

if TYPE_CHECKING:
    from anchorlm.engine import Engine, ThoughtGuide, TokenSequence
    from anchorlm.models import Channel


class Thinking:
    """The thought before one response: it is written first, and the defense goes on behind it as behind a prompt.

    So every method acts on the answer alone, whether its model thinks or not. Where the template knows no thoughts,
    nothing is done.

    Args:
        target: Who thinks.
        request: What is answered.

    Attributes:
        request: The request, with the thought once it is known.
        prompt: The prompt's tokens.
        room: Tokens that the thought may take. 0 where there is none.
        failed: Why there may be no answer: the thought has not ended. None as a rule.
    """

    def __init__(self, target: Engine, request: Request) -> None:
        from anchorlm.engine import THOUGHT_MARGIN

        model, settings = target.model, request.thoughts or ThoughtSettings()
        self._target = target
        self.request = request
        self.prompt = model.encode(request.prompt, request.options, closed=settings.policy == "off")
        self._channel: Channel | None = model.channel(request.options)
        self._budget = 0
        self._written: list[int] = []
        self.room = 0
        self.failed: str | None = None
        if self._channel is None:
            return
        left = model.context_length - len(self.prompt) - THOUGHT_MARGIN
        answer = min(request.generation.max_new_tokens, max(1, left // 2))
        self._budget = max(0, min(settings.budget, left - answer))
        self.room = self._budget + THOUGHT_MARGIN

    @asynccontextmanager
    async def as_fitted(self, row: TokenSequence) -> AsyncIterator[TokenSequence]:
        """The row as gates were fitted on it: behind the prompt that the template writes by itself.

        Args:
            row: Of the target, nothing but the prompt read.
        """
        if self.request.with_tools:  # no gate was fitted on tools: it reads calls and results as texts
            plain = self._target.model.encode(self.request.prompt_text)
        else:
            plain = self.prompt if self._channel is None else self._target.model.encode(self.request.prompt)
        if plain == self.prompt:
            yield row
            return
        async with self._target.open(plain) as other:
            yield other

    async def write(
        self, row: TokenSequence, guide: ThoughtGuide | None = None, guided: int = 0
    ) -> AsyncIterator[ThoughtDelta | Decision]:
        """Writes the thought, if there is one, up to where the answer begins. Then `failed` and `request` are known.

        Args:
            row: Of the target, nothing but the prompt read.
            guide: Both models, if an anchor guides the opening of the thought.
            guided: How many of its tokens the anchor guides.
        """
        from anchorlm.engine import ThoughtWriter

        if self._channel is None:
            return
        start = len(row.ids)
        writer = ThoughtWriter(row, self._target.model, self._channel, self.request.generation)
        if await writer.opens(self.prompt):
            async with aclosing(writer.write(self._budget, guide, guided)) as steps:
                async for _ in steps:
                    if piece := writer.due():
                        yield ThoughtDelta(piece)
            if (thought := await writer.ended()) is None:
                self.failed = f"the thought did not end within {self._budget} tokens: raise the budget of thoughts"
            else:
                self.request = replace(self.request, thought=thought)
                yield ThoughtDelta(writer.due(last=True))
            count = len(row.ids) - start
            yield ThoughtDelta("", count)
            yield Decision("thought", {"tokens": count, "ended": thought is not None})
        if guide is not None:
            guide.release_guide()
        self._written = row.ids[start:]
        row.begin(answer=True)

    async def begin(self, row: TokenSequence, refusal: str) -> AsyncIterator[Event]:
        """Writes the thought, and the refusal behind one that has not ended. Then `failed` tells that all is said.

        Args:
            row: Of the target, nothing but the prompt read.
            refusal: What is said then.
        """
        async for piece in self.write(row):
            yield piece
        if self.failed is not None:
            for event in self.refusal(refusal):
                yield event

    @property
    def whole_prompt(self) -> list[int]:
        """All that stands before the answer, once the thought is written."""
        from anchorlm.models import PromptIds

        if not self._written:
            return self.prompt
        embeddings, whole = getattr(self.prompt, "embeddings", None), [*self.prompt, *self._written]
        return whole if embeddings is None else PromptIds(whole, embeddings)

    def refusal(self, text: str) -> Iterator[Event]:
        """What is said where there may be no answer.

        Args:
            text: The configured refusal.
        """
        yield Decision("fallback", {"why": self.failed})
        yield TextDelta(text)
        yield Finished("refusal", Usage(len(self.prompt), 0, 0))


async def said(thinking: Thinking, row: TokenSequence, target: Engine, refusal: str) -> AsyncIterator[Event]:
    """The thought, and the target's own answer behind it, token by token.

    Args:
        thinking: The thought that is to be written.
        row: Of the target, nothing but the prompt read.
        target: Its engine.
        refusal: What is said where the thought has not ended.
    """
    async for piece in thinking.begin(row, refusal):
        yield piece
    if thinking.failed is not None:
        return
    rest = stream_target(row, target, thinking.request.generation, prompt_tokens=len(thinking.prompt))
    async for event in rest:
        yield event
