from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from anchorlm.defenses import Defense
from anchorlm.guard._thoughts import Thoughts, parted
from anchorlm.records import (
    Decision,
    DefenseError,
    Event,
    Finished,
    Request,
    Response,
    TextDelta,
    ThoughtDelta,
    ThoughtSettings,
    TokenScore,
    ToolCall,
    Usage,
)


class Outgoing:
    """What a defense says to one request, as it may go out: text that is not final is held back.

    Args:
        defense: Who speaks.
        request: What is answered.
        thoughts: What becomes of thoughts.

    Attributes:
        spoken: Whether any text is out.
    """

    def __init__(self, defense: Defense, request: Request, thoughts: ThoughtSettings) -> None:
        self._defense = defense
        self._request = request
        self._thoughts = Thoughts(thoughts, defense.streams)
        self._held: list[TextDelta] = []
        self.spoken = False

    async def events(self) -> AsyncIterator[Event]:
        """All that goes out, to the last event.

        Raises:
            DefenseError: The defense failed, or ended without a final event.
        """
        async for event in parted(self._defense, self._request):
            for one in self._released(event):
                yield one
            if isinstance(event, Finished):
                return
        raise DefenseError(f"The defense {self._defense.name} ended without a final event.")

    def _released(self, event: Event) -> Iterator[Event]:
        if isinstance(event, ThoughtDelta):
            yield from self._thoughts.take(event)
        elif isinstance(event, TextDelta):
            if self._defense.streams == "whole":
                self._held.append(event)  # released when it is final
                return
            yield from self._thoughts.release()
            self.spoken = self.spoken or bool(event.text)
            yield event
        elif isinstance(event, Finished):
            if event.reason == "refusal" and not self.spoken:
                self._thoughts.drop()
            yield from self._thoughts.release()
            yield from self._held
            yield self._thoughts.counted(event)
        elif isinstance(event, ToolCall):  # a defense's own
            yield event
        else:
            if event.kind == "fallback" and not self.spoken:
                self._thoughts.drop()
            yield event


async def whole(events: AsyncIterator[Event], request: Request) -> Response:
    """The response that events tell piece by piece."""
    text: list[str] = []
    tokens: list[int] = []
    scores: list[TokenScore] = []
    trace: list[Decision] = []
    thought: list[str] = []
    calls: list[ToolCall] = []
    finished = Finished("refusal", Usage(0, 0, 0))  # the events end with one
    async for event in events:
        if isinstance(event, TextDelta):
            text.append(event.text)
            tokens.extend(event.token_ids)
            scores.extend(event.scores)
        elif isinstance(event, ThoughtDelta):
            thought.append(event.text)
        elif isinstance(event, ToolCall):
            calls.append(event)
        elif isinstance(event, Decision):
            trace.append(event)
        else:
            finished = event
    known = tuple(scores) if request.generation.logprobs is not None and len(scores) == len(tokens) else None
    shown = "".join(thought) or None
    said = "".join(text)
    return Response(said, tuple(tokens), finished.reason, finished.usage, tuple(trace), known, shown, tuple(calls))
