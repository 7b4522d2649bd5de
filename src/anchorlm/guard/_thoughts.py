from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from anchorlm.defenses import Defense
from anchorlm.models import Channel
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

_END = 48
"""Tokens at a prompt's end among which the opening of a thought is looked for."""


class Thoughts:
    """Which pieces of a thought leave the guard, and when: shown ones with the answer that they belong to.

    Args:
        settings: What becomes of them.
        streams: How the defense speaks. What is judged before it is said takes its thought along.
    """

    def __init__(self, settings: ThoughtSettings, streams: Literal["tokens", "blocks", "whole"]) -> None:
        self._shown = settings.policy == "show"
        self._at_once = streams == "tokens"
        self._held: list[ThoughtDelta] = []
        self._tokens = 0

    def take(self, piece: ThoughtDelta) -> Iterator[ThoughtDelta]:
        """A piece of a thought, and what may go out now."""
        self._tokens += piece.tokens
        if not self._shown:
            return
        self._held.append(piece)
        if self._at_once:
            yield from self.release()

    def release(self) -> Iterator[ThoughtDelta]:
        """What was held back: its answer goes out."""
        held, self._held = self._held, []
        yield from (piece for piece in held if piece.text)

    def drop(self) -> None:
        """The answer is turned down, and its thought with it."""
        self._held = []

    def counted(self, finished: Finished) -> Finished:
        """The last event, with what the thought has cost."""
        usage, own = finished.usage, self._tokens
        whole = Usage(usage.prompt_tokens, usage.completion_tokens + own, usage.generated_tokens + own, own)
        return replace(finished, usage=whole)


async def parted(defense: Defense, request: Request) -> AsyncIterator[Event]:
    """What a defense says, thought and answer apart, also where the defense itself knows nothing of thoughts: then
    all is held back until the end of the thought is known.
    """
    model = defense.target.model
    channel = model.channel(request.options) if not defense.thinks else None
    if channel is None:
        async for event in defense.respond(request):
            yield event
        return
    prompt = model.encode(request.prompt, request.options)
    inside = channel.inside(model.marks.text(prompt[-_END:]))
    said: list[TextDelta] = []
    async for event in defense.respond(request):
        if isinstance(event, TextDelta):
            said.append(event)
        elif not isinstance(event, Finished) or event.reason == "refusal":
            if isinstance(event, Finished):
                for piece in said:
                    yield piece
            yield event
        else:
            for each in _split(defense, channel, said, event, inside=inside):
                yield each


def _split(
    defense: Defense, channel: Channel, said: Sequence[TextDelta], finished: Finished, *, inside: bool
) -> Iterator[Event]:
    model = defense.target.model
    tokens = [token for piece in said for token in piece.token_ids]
    text = model.marks.text(tokens) if tokens else "".join(piece.text for piece in said)
    thought, answer = channel.split(text, inside=inside)
    if thought is None:
        yield from said
        yield finished
        return
    if answer is None:
        yield Decision("fallback", {"why": "the thought did not end: raise max_new_tokens"})
        yield TextDelta(defense.settings.refusal)
        yield Finished("refusal", replace(finished.usage, completion_tokens=0))
        return
    left = model.marks.ids(answer)
    rest = model.vocabulary.decode(left)
    yield ThoughtDelta(thought, max(0, len(tokens) - len(left)))
    yield TextDelta(rest.decode("utf-8", errors="replace"), tuple(left))
    yield Finished(finished.reason, replace(finished.usage, completion_tokens=len(left)))
