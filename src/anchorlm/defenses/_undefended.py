from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from anchorlm.defenses._base import Defense, stream_target
from anchorlm.records import Event, Request


class Undefended(Defense):
    """The target alone: what every defense is compared with."""

    name: ClassVar[str] = "undefended"
    refuses: ClassVar[bool] = False

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Answers as the target would."""
        self.settings_for(request)
        ids = self.target.model.encode(request.prompt)
        async with self.target.open(ids, room=request.generation.max_new_tokens) as row:
            async for event in stream_target(row, self.target, request.generation):
                yield event
