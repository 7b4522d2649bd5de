from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from anchorlm.engine import as_done, runtime
from anchorlm.guard._conversation import asked, several
from anchorlm.guard._outgoing import whole
from anchorlm.records import DefenseError, Event, Messages, Request, Response, UserError, as_messages


class Asked(ABC):
    """The ways in which a guard is asked: whole or event by event, one conversation or many."""

    @abstractmethod
    def request(
        self,
        messages: Messages | str,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Request:
        """A request with the guard's defaults, checked."""

    @abstractmethod
    def events(self, request: Request) -> AsyncIterator[Event]:
        """What the guard says to a request, on the engines' thread."""

    async def respond(self, request: Request) -> Response:
        """The whole response, on the engines' thread."""
        return await whole(self.events(request), request)

    def chat(
        self,
        messages: Messages | str,
        *,
        raw: bool = False,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> Response:
        """Answers one conversation.

        Args:
            messages: `[{"role": "user", "content": "..."}]`, or a text, which is one turn of the user.
            raw: The text is no turn: it goes to the model as it stands, without a chat template.
            knobs: Settings of the defense for this request only.
            template: Variables of the target's chat template for this request only, such as `enable_thinking`.
            **generation: Settings of `GenerationSettings`, such as `max_new_tokens`, `do_sample` and `temperature`; and
                `tools`, `tool_choice` and `parallel_tool_calls`, as `request` takes them.

        Raises:
            UserError: A mistake in the arguments, or a prompt that is empty or too long.
            DefenseError: The defense failed, and `on_error` is "raise".
        """
        return runtime().run(self.respond(self.request(asked(messages, raw), knobs, template, **generation)))

    async def achat(
        self,
        messages: Messages | str,
        *,
        raw: bool = False,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> Response:
        """`chat` for callers with an event loop of their own."""
        future = runtime().submit(self.respond(self.request(asked(messages, raw), knobs, template, **generation)))
        return await asyncio.wrap_future(future)

    def stream(
        self,
        messages: Messages | str,
        *,
        raw: bool = False,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> Iterator[Event]:
        """As `chat`, event by event: the texts of its `TextDelta`s joined are the text of the whole response."""
        return runtime().iterate(self.events(self.request(asked(messages, raw), knobs, template, **generation)))

    async def astream(
        self,
        messages: Messages | str,
        *,
        raw: bool = False,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> AsyncIterator[Event]:
        """`stream` for callers with an event loop of their own."""
        async for event in runtime().aiterate(
            self.events(self.request(asked(messages, raw), knobs, template, **generation))
        ):
            yield event

    # --- many requests ----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Messages | str],
        *,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> list[Response]:
        """Answers many conversations at once, in order. A text counts as one turn of the user.

        Raises:
            UserError: As `chat`; the first mistake ends the call.
        """
        requests = [self.request(as_messages(prompt), knobs, template, **generation) for prompt in several(prompts)]
        responses: list[Response | None] = [None] * len(requests)
        for index, outcome in self.map(requests):
            if isinstance(outcome, Exception):
                raise outcome
            responses[index] = outcome
        return [response for response in responses if response is not None]

    def map(
        self, requests: Iterable[Request], *, concurrency: int = 64
    ) -> Iterator[tuple[int, Response | UserError | DefenseError]]:
        """Answers requests as they come, `concurrency` at a time, in the order in which they are done.

        A request that fails yields its error, so that the others are not lost.
        """
        work = (self._settled(index, request) for index, request in enumerate(requests))
        return runtime().iterate(as_done(work, concurrency))

    async def _settled(self, index: int, request: Request) -> tuple[int, Response | UserError | DefenseError]:
        try:
            return index, await self.respond(request)
        except (UserError, DefenseError) as error:
            return index, error
