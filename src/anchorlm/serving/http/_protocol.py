from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

import h11
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from anchorlm.serving._errors import ALWAYS, ApiError

HEAD_PATIENCE = 10.0
"""Seconds in which the line and the headers of a request must have come, from when its connection is open or the answer
before it sent."""

HEAD_BYTES = 32_768
"""Bytes that the line and the headers of a request may have, and so the memory that one which never ends takes."""

# Not the one that happens to be installed: httptools reads headers without an end, ever more slowly.
_Base: Any = H11Protocol


_FULL = ApiError(503, "Too many connections are open: try again in a moment.", code="overloaded", retry_after=5)
_NO_HTTP = ApiError(400, "This is no HTTP request, or its head is too long: send less of it.", code="invalid_request")


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for the application where there are too many connections."""
    always = {name.decode(): value.decode() for name, value in ALWAYS}
    response = JSONResponse(_FULL.body(), _FULL.status, {**_FULL.headers, **always, "Connection": "close"})
    await response(scope, receive, send)


class Punctual(_Base):  # type: ignore[misc]
    """uvicorn's protocol, but that a connection whose request does not come is closed: anyone who opens many and says
    little would else keep everyone out. What it turns down itself is told as all other errors are.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most: int | None = self.config.limit_concurrency
        self.limit_concurrency: int | None = None  # what uvicorn says of it is plain text

    def handle_events(self) -> None:
        """See uvicorn."""
        full = self._most is not None and max(len(self.connections), len(self.tasks)) >= self._most
        self.app = _full if full else self.config.loaded_app
        super().handle_events()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn."""
        body = json.dumps(_NO_HTTP.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *ALWAYS]
        events = (
            h11.Response(status_code=_NO_HTTP.status, headers=[*headers, (b"connection", b"close")]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._idle_since = monotonic()
        self._watch: asyncio.TimerHandle = self.loop.call_later(HEAD_PATIENCE, self._look)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._watch.cancel()
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        self._idle_since = monotonic()
        super().on_response_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """A client that asks for another protocol gets this one, and no line in the log."""

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._idle_since = monotonic()
        left = self._idle_since + HEAD_PATIENCE - monotonic()
        if left <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(left, self._look)
