from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anchorlm.serving._errors import ALWAYS, ApiError, unexpected
from anchorlm.serving._state import ServerState
from anchorlm.serving.session._session import LEFT

_PATIENCE = 30.0
"""Seconds in which a request's body must have come."""

_TURNED_AWAY = (401, 403, 429)

_MOST_NOTES, _NOTES_A_SECOND = 100, 10
"""Of those who are turned away, so many are noted at once, and so many a second for long: a flood must not push
everything else out of the log and off the disk."""

_MOST_PATH = 200
"""Characters of a path that are noted."""

_LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")


_log = logging.getLogger("anchorlm")


class Middleware:
    """Stands before the application: nothing is read of a request, let alone parsed, before its key is known and its
    size is bounded. And only where there is something to ask for.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._desk = state
        self._notes, self._noted, self._unnoted = float(_MOST_NOTES), monotonic(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = uuid4().hex
        scope.setdefault("state", {})["request_id"] = id
        status = LEFT

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", id.encode()), *ALWAYS]
                kept = [one for one in message.get("headers", ()) if one[0].lower() not in dict(own)]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        async def tell(error: ApiError) -> None:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, answered)

        try:
            await self._let_in(scope, receive, answered)
        except ApiError as error:
            await tell(error)
        except Exception as error:
            # Only where it was: what an error says may hold a prompt or a path.
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind, module = type(error).__name__, Path(place.filename).name
            _log.error("request %s failed: %s at line %s of %s", id, kind, place.lineno, module)
            if status != LEFT:
                raise  # an answer has begun: its connection is closed
            await tell(unexpected())
        finally:
            if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
                self._desk.metrics.request(status)
            if status in _TURNED_AWAY:
                self._turned_away(scope, status)

    def _turned_away(self, scope: Scope, status: int) -> None:
        """Notes anyone who was not let in. Of a flood, some, with the number of the others."""
        id, caller, client = scope["state"]["request_id"], scope["state"].get("caller"), scope.get("client")
        now = monotonic()
        self._notes = min(_MOST_NOTES, self._notes + (now - self._noted) * _NOTES_A_SECOND)
        self._noted = now
        if self._notes < 1:
            self._unnoted += 1
            return
        self._notes -= 1
        unnoted, self._unnoted = self._unnoted, 0
        others = f" ({unnoted} before it were not logged)" if unnoted else ""
        _log.warning("request %s was turned away: %s %s%s", id, status, HTTPStatus(status).phrase, others)
        self._desk.note_later(
            "turned_away",
            {"request_id": id, "status": status, "key": None if caller is None else caller.name}
            | {"client": client[0] if client else None, "method": scope["method"], "path": scope["path"][:_MOST_PATH]}
            | ({"not_noted_before": unnoted} if unnoted else {}),
        )

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        asks = path.startswith("/v1/")
        body: bytes | None = b""
        if asks or path == "/metrics":
            caller = self._desk.keys.caller(headers.get("authorization"), proxied=_proxied(headers))
            if path == "/metrics" and self._desk.keys and not caller.operator:
                raise ApiError(403, "Metrics are the operator's: use a key with operator = true.")
            scope["state"]["caller"] = caller
            if asks and scope["method"] == "POST":
                caller.draw()  # before anything is read: a request that is wrong costs time, too
                body = await self._body(headers, receive)
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check_host(self, headers: Mapping[str, str]) -> None:
        # A page on the web can point a name of its own at the loopback, or post to it, and is let in by the browser.
        if not self._desk.settings.on_loopback or self._desk.keys:
            return
        host = headers.get("host", "localhost")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        origin = headers.get("origin")
        if name.lower() not in _LOCAL or (origin is not None and _hostname(origin) not in _LOCAL):
            raise ApiError(403, "This server listens on the loopback: reach it as localhost.", code="unknown_host")

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes | None:
        """All of it. None if the client left before it was sent."""
        limit = self._desk.settings.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise ApiError(408, "The request did not come in time: send it at once.") from None


def _hostname(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:  # an address in brackets that is none
        return None


def _proxied(headers: Mapping[str, str]) -> bool:
    return any(name in ("forwarded", "via", "x-real-ip") or name.startswith("x-forwarded-") for name in headers)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands the body on in one piece, and then whatever comes, such as the client's leaving."""
    pending = [body]

    async def next_message() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return next_message


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit} bytes: send less.", code="request_too_large")
