from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from anchorlm.records import Messages
from anchorlm.records import Request as Asked
from anchorlm.serving._errors import ApiError
from anchorlm.serving._settings import ServerSettings
from anchorlm.serving._state import ServerState
from anchorlm.serving.http._responses import ResponseShape
from anchorlm.serving.http._schema import Ask, StreamOptions
from anchorlm.serving.http._shapes import Shape
from anchorlm.serving.ops._keys import Caller
from anchorlm.serving.session._model import TRACE
from anchorlm.serving.session._session import LEFT, RequestSession


async def complete(
    state: ServerState, ask: Ask, request: Request, prompts: Sequence[Messages | str], kind: str
) -> Response:
    """Answers a request, whole or as a stream.

    Args:
        state: Of the server.
        ask: The body.
        request: What it came with.
        prompts: Conversations, or texts to go on with.
        kind: `chat`, `response` or `text_completion`.

    Raises:
        ApiError: The request is not in order, over a limit, or could not be answered.
    """
    caller: Caller = request.scope["state"]["caller"]
    served = state.model(ask.model)
    if not state.ready:
        raise state.not_ready()
    if not 1 <= len(prompts) * ask.choices <= state.settings.max_choices:
        most = state.settings.max_choices
        raise ApiError(400, f"One request gets 1 to {most} answers here: send fewer prompts, or a lower n.", param="n",
                       code="too_many_choices")  # fmt: skip
    knobs = {name: value for name, value in ask.own.items() if name != TRACE and value is not None}
    trace = _wants_trace(ask, state, caller)
    served.check_sampling(**ask.sampling())
    generation = ask.generation()
    if "logprobs" in generation and not state.settings.logprobs:
        raise ApiError(400, "This server gives no log-probabilities: leave logprobs out.", param="logprobs",
                       code="unsupported_parameter")  # fmt: skip
    longest = state.settings.max_tokens
    if longest is not None and generation.get("max_new_tokens", 0) > longest:
        raise ApiError(400, f"An answer has at most {longest} tokens here: ask for no more.", param="max_tokens",
                       code="out_of_bounds")  # fmt: skip
    seed = generation.get("seed", served.guard.generation.seed)

    def made() -> list[Asked]:
        return [
            served.request(
                prompt,
                knobs,
                generation | {"seed": (seed + index) % 2**63},
                ask.stops,
                ask.template,
                silent=ask.silent,
                offer=ask.offer,
            )
            for prompt in prompts
            for index in range(ask.choices)
        ]

    # A schema is compiled for it.
    requests = await state.off_the_loop(made) if generation.get("response_format") or ask.offer else made()
    id = request.scope["state"]["request_id"]
    session = RequestSession(
        id, state, served, caller, requests, operation="chat" if kind == "response" else kind,
        streamed=bool(ask.stream), trace=trace,
    )  # fmt: skip
    shape = ResponseShape(session, ask.metadata, ask.offer) if kind == "response" else Shape(session, kind)
    if not ask.stream:
        if not await _unless_left(request, _whole(session)):
            return Response(status_code=LEFT)
        return JSONResponse(shape.whole())
    if not await _unless_left(request, _opened(session)):
        return Response(status_code=LEFT)
    wanted = ask.stream_options or StreamOptions()
    events = (
        shape.events()
        if isinstance(shape, ResponseShape)
        else shape.events(usage=bool(wanted.include_usage), continuous=bool(wanted.continuous_usage_stats))
    )
    return _Stream(session, events, state.settings)


def _wants_trace(ask: Ask, state: ServerState, caller: Caller) -> bool:
    trace = ask.own.get(TRACE)
    if trace is not None and not isinstance(trace, bool):
        raise ApiError(400, "trace is true or false.", param="anchorlm.trace", code="invalid_value")
    if trace and not state.may_see_all(caller):
        raise ApiError(403, "The full trace is the operator's: use a key with operator = true.", param="anchorlm.trace",
                       code="operator_only")  # fmt: skip
    return bool(trace)


async def _whole(session: RequestSession) -> None:
    await session.begin()
    await session.whole()


async def _opened(session: RequestSession) -> None:
    await session.begin()
    await session.look()


async def _unless_left(request: Request, work: Any) -> bool:
    """Whether the work was done; if the client leaves meanwhile, it is cancelled."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        await working
        return True
    finally:
        for task in (working, leaving):
            task.cancel()


class _Stream(EventSourceResponse):
    """A stream whose session ends with it, however it ends."""

    def __init__(
        self, session: RequestSession, events: AsyncIterator[dict[str, str]], settings: ServerSettings
    ) -> None:
        super().__init__(
            events,
            ping=settings.keep_alive,
            ping_message_factory=lambda: ServerSentEvent(comment="deciding"),
            sep="\n",
            send_timeout=settings.send_timeout,
            shutdown_grace_period=settings.drain,
        )
        self._exchange = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.left()
