from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from anchorlm.defenses._base import Defense
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.records import Event, FormatSupport, Request


class Undefended(Defense):
    """The target alone: what every defense is compared with."""

    name: ClassVar[str] = "undefended"
    refuses: ClassVar[bool] = False
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "any"
    calls: ClassVar[bool] = True

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Answers as the target would."""
        thinking = Thinking(self.target, request)
        room = request.generation.max_new_tokens + thinking.room
        async with self.target.open(thinking.prompt, room=room) as row:
            async for event in said(thinking, row, self.target, self.settings_for(request).refusal):
                yield event
