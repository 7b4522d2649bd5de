"""A defense that a third party might ship: it repeats the request instead of answering it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from pydantic import Field

from anchorlm.defenses import Defense, DefenseSettings
from anchorlm.records import Event, Finished, Folder, Request, TextDelta, Usage

SETTING = "not a class"


class ParrotSettings(DefenseSettings):
    times: int = Field(default=1, ge=1)
    songs: Folder | None = None


class Parrot(Defense):
    name: ClassVar[str] = "parrot"
    settings_type: ClassVar[type[DefenseSettings]] = ParrotSettings

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        settings: ParrotSettings = self.settings_for(request)
        yield TextDelta(" ".join([request.conversation[-1]["content"]] * settings.times))
        yield Finished("stop", Usage(0, 0, 0))
