from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from time import monotonic, time
from typing import Any, TypeVar

from anchorlm.records import Messages, Request, TokenScore, prompt_key
from anchorlm.serving._errors import ApiError, late
from anchorlm.serving._state import ServerState
from anchorlm.serving.ops._keys import Caller, unknown_key
from anchorlm.serving.session._answers import Answer
from anchorlm.serving.session._model import ServedModel
from anchorlm.serving.session._pictures import load_images, pictures
from anchorlm.serving.session._tracing import Span

T = TypeVar("T")

_BRIEF = 0.5
"""Seconds in which a stream's request that cannot be answered shows it, so its status can say so."""

Piece = tuple[int, str | None, list[TokenScore] | None]
"""An answer's place, a piece of its text (None at its end), and how likely its tokens were, if that was asked for."""

_LAST_LINE = 5.0
"""Seconds that a request's last line in the audit log gets, though its deadline be over."""

_LAST_ERROR = 1.0
"""The same where an error is told, which need not wait for it."""

LEFT = 499
"""Stands for the status of a request whose client left before it was answered."""


class RequestSession:
    """One request from its admission to its last byte: its answers, and what is counted and written down of it.

    Attributes:
        id: Of the request.
        created: Unix time, in whole seconds.
        answers: One for each choice.
    """

    def __init__(
        self,
        id: str,
        state: ServerState,
        served: ServedModel,
        caller: Caller,
        requests: Sequence[Request],
        *,
        operation: str,
        streamed: bool,
        trace: bool,
    ) -> None:
        self.id = id
        self.created = int(time())
        self.served = served
        self.answers: list[Answer] = []
        self._desk = state
        self._caller = caller
        self._requests = requests
        self._operation = operation
        self._streamed = streamed
        self._trace = trace
        self._held = AsyncExitStack()
        self._start = monotonic()
        self._waited: float | None = None
        self._span: Span | None = None
        self._ended = False
        self._deadline = asyncio.get_running_loop().time() + state.settings.deadline

    async def begin(self) -> None:
        """Waits for its turn, writes the request down and starts its answers.

        Raises:
            ApiError: Over a limit, too late, or not to be written down.
        """
        try:
            self._held.enter_context(self._caller.request(len(self._requests)))
            await self._held.enter_async_context(self._desk.admission.turn(self._deadline))
            self._caller.check()
            images = [image for prompt in self._prompts for image in pictures(prompt)]
            asked = await self._in_time(asyncio.to_thread(self._asked, images))
            self._waited = monotonic() - self._start
            self._desk.metrics.admitted(self._waited)
            self._span = Span(self._operation, self.served, self.id)
            request = self._requests[0]
            self._desk.under_way.add(self)
            await self._desk.note(
                "request",
                self._who()
                | {"choices": len(self._requests), "knobs": dict(request.knobs)}
                | {"generation": request.generation.model_dump(exclude={"response_format"})}
                | asked,
                self._deadline,
            )
            self._caller.check()
            for request in self._requests:
                self.answers.append(Answer(self.served, request, self.id, self._deadline, streamed=self._streamed))
                self._held.callback(self.answers[-1].stop)
        except BaseException as error:
            await self._failed(error)
            raise

    async def whole(self) -> None:
        """All answers to their ends.

        Raises:
            ApiError: 400, 503 or 504.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for answer in self.answers:
                    group.create_task(answer.whole())
        except BaseExceptionGroup as group_error:
            await self._failed(group_error.exceptions[0])
            raise group_error.exceptions[0] from None
        except BaseException as error:
            await self._failed(error)
            raise
        await self.end(200)

    async def look(self) -> None:
        """Waits a moment for answers that are to be streamed, so a bad request still gets its status.

        Raises:
            ApiError: 400.
        """
        try:
            await asyncio.gather(*(answer.begin(_BRIEF) for answer in self.answers))
        except BaseException as error:
            await self._failed(error)
            raise

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text of all answers as it comes, each with the answer's place; None where an answer has ended.

        Raises:
            ApiError: 400 or 504.
        """
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def feed(index: int, answer: Answer) -> None:
            try:
                async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        queue.put_nowait((index, piece, answer.due()))
                queue.put_nowait((index, None, answer.due()))
            except Exception as error:  # whatever it is, the stream must not wait for ever
                queue.put_nowait(error)

        async def feed_all() -> None:
            await asyncio.gather(*(feed(*each) for each in enumerate(self.answers)))
            await self._held.aclose()  # a client that reads slowly takes no one's turn

        feeding = asyncio.ensure_future(feed_all())
        try:
            open_ = len(self.answers)
            while open_:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                open_ -= item[1] is None
                yield item
        finally:
            feeding.cancel()

    async def end(self, status: int) -> None:
        """Gives everything back, counts, and writes the end down; once, anyone who calls first.

        Raises:
            ApiError: 503, a whole answer that cannot be written down is not given.
        """
        if self._ended:
            return
        self._ended = True
        try:
            await self._wind_up(status)
        finally:
            self._desk.under_way.discard(self)

    async def _wind_up(self, status: int) -> None:
        await self._held.aclose()
        for answer in self.answers:
            if answer.finish is not None:
                self._desk.metrics.answer(*self.served.names, answer)
            else:
                self._desk.metrics.left(*self.served.names)
        if self._span is not None:
            self._span.end(status, self.answers)
        if self._waited is None:
            return  # it was never let in
        now = asyncio.get_running_loop().time()
        await self._desk.note(
            "response",
            self._who()
            | {"status": status, "seconds": round(monotonic() - self._start, 4)}
            | {"answers": [self._outcome(answer) for answer in self.answers]},
            max(self._deadline, now + _LAST_LINE) if status == 200 else now + _LAST_ERROR,
        )

    def left(self) -> None:
        """The client is gone: rows are freed now, the rest is done in the background."""
        for answer in self.answers:
            answer.stop()
        self._desk.later(self.end(LEFT))

    def revoke(self, callers: Sequence[Caller]) -> None:
        """Ends the answers, if their key is one of these."""
        if self._caller in callers:
            for answer in self.answers:
                answer.end(unknown_key())

    def told(self, index: int) -> dict[str, Any]:
        """What the client is told of an answer next to its text."""
        answer = self.answers[index]
        told = answer.summary(scores=self._desk.settings.scores)
        return told | ({"trace": answer.full_trace()} if self._trace else {})

    def usage(self) -> dict[str, Any]:
        """What all answers cost together."""
        each = zip(self._requests, self.answers, strict=True)
        prompts: dict[int, int] = {}
        for request, answer in each:  # an answer that failed knows of no prompt
            prompts[id(request.messages)] = max(prompts.get(id(request.messages), 0), answer.usage.prompt_tokens)
        prompt, completion = sum(prompts.values()), sum(one.usage.completion_tokens for one in self.answers)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage["total_tokens"] = prompt + completion
        if reasoned := sum(one.usage.reasoning_tokens for one in self.answers):
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoned}
        if self._desk.settings.scores:  # how much was generated tells how many candidates were turned down
            usage["generated_tokens"] = sum(one.usage.generated_tokens for one in self.answers)
        return usage

    async def prompt_tokens(self) -> int:
        """What all prompts come to, before an answer says so."""
        each = {id(request.messages): answer for request, answer in zip(self._requests, self.answers, strict=True)}
        return sum([await answer.prompt_tokens() for answer in each.values()])

    def usage_so_far(self, prompt: int) -> dict[str, int]:
        """What all answers have cost together, while they are being written."""
        written = sum(answer.tokens_so_far for answer in self.answers)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    @property
    def holds_calls(self) -> bool:
        """Whether calls of tools are held to the schemas of the tools."""
        format = self._requests[0].generation.response_format
        return format is not None and format["type"] == "calls"

    @property
    def _prompts(self) -> list[Messages | str]:
        """Each prompt once, however many answers it gets."""
        return list({id(one.messages): one.messages for one in self._requests}.values())

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError:
            raise late() from None

    def _asked(self, images: Sequence[Any]) -> dict[str, str]:
        """The prompts as the audit log holds them; images are decoded for that, and for the model.

        They are turned down here if they are too long: on the engines' thread everyone would wait for that.
        """
        load_images(images)
        for request in {id(one.messages): one for one in self._requests}.values():
            self.served.check_length(request)
        asked = list(dict.fromkeys(map(prompt_key, self._prompts)))
        if (use := self._requests[0].tools) is not None:
            asked.append(json.dumps(use.tools, ensure_ascii=False))
        format = self._requests[0].generation.response_format
        if format is not None and format["type"] == "calls":
            format = format["answer"]  # the tools are there already
        schema = {} if format is None else self._desk.audited("response_format", json.dumps(format))
        return schema | self._desk.audited("prompt", "\n".join(asked))

    def _who(self) -> dict[str, Any]:
        return {
            "request_id": self.id,
            "key": self._caller.name,
            "model": self.served.id,
            "defense": self.served.guard.defense.name,
        }

    def _outcome(self, answer: Answer) -> dict[str, Any]:
        summary = answer.summary()
        shown = {name: summary[name] for name in ("decision", "refused", "gate", "scores", "chosen", "fallback")}
        if answer.finish is None:
            shown["decision"] = "abandoned"
        tokens = {"prompt_tokens": answer.usage.prompt_tokens, "completion_tokens": answer.usage.completion_tokens}
        return shown | {"finish_reason": answer.finish} | tokens | self._desk.audited("response", answer.said)

    async def _failed(self, error: BaseException) -> None:
        if not isinstance(error, ApiError):
            self.left()
            return
        with suppress(ApiError):  # the client is told of the first error; the log's own failure is counted
            await self.end(error.status)
