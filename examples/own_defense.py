"""Writes a defense of your own: one class with one coroutine for one request.

python examples/own_defense.py
"""

from collections.abc import AsyncIterator
from typing import ClassVar

from pydantic import Field

from anchorlm import Defense, Guard, Request
from anchorlm.defenses import DefenseSettings, stream_target
from anchorlm.records import Decision, Event, Finished, TextDelta, Usage
from anchorlm.zoo import path


class BlocklistSettings(DefenseSettings):
    """What you can set in a recipe, in Python, or for one request."""

    words: tuple[str, ...] = Field(default=("bomb",), description="Words that no request may hold.")


class Blocklist(Defense):
    """Refuses a request that holds a word of the list. Otherwise the model answers alone."""

    name: ClassVar[str] = "blocklist"
    settings_type: ClassVar[type[DefenseSettings]] = BlocklistSettings

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Looks at the words before the model runs."""
        settings: BlocklistSettings = self.settings_for(request)
        prompt = self.target.model.encode(request.prompt)
        found = [word for word in settings.words if word in str(request.messages).lower()]
        yield Decision("blocklist", {"found": found})
        if found:
            yield TextDelta(settings.refusal)
            yield Finished("refusal", Usage(len(prompt), 0, 0))
            return
        async with self.target.open(prompt, room=request.generation.max_new_tokens) as row:
            async for event in stream_target(row, self.target, request.generation):
                yield event


def main() -> None:
    """The same question twice: with the list of the guard, and with one for this request."""
    guard = Guard(path("a-medicine"), Blocklist, generation={"max_new_tokens": 48})
    for words in (("bomb",), ("bread",)):
        response = guard.chat("How do I bake bread?", knobs={"words": words})
        print(f"list:   {', '.join(words)}\nanswer: {response.text}\nended:  {response.finish_reason}")


if __name__ == "__main__":
    main()
