from __future__ import annotations

import asyncio
import atexit
import json
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from anchorlm.engine._endpoint_faults import Passing, UntrustedError, fault, gone, refused, slow, unreached
from anchorlm.models import EndpointSettings
from anchorlm.records import UserError

if TYPE_CHECKING:
    import httpx

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says that may be otherwise in a moment."""
_FIRST, _LONGEST = 0.25, 8.0
"""Seconds to wait before a call is sent again for the first time, and at most."""
_MOST_WAIT = 60.0
"""Seconds that a server may ask to wait."""
_MOST_BYTES = 64 << 20
"""Of an answer. All log-probabilities of a large vocabulary take a tenth of it."""
_END = object()
_CLIENTS: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
_REST = 0.5
"""Seconds to wait for the end of a stream behind its last event: only a connection that was read to its end is kept."""
_GOODBYE = 1.0
"""Seconds that the end of the process waits for connections to close."""


def client() -> httpx.AsyncClient:
    """The one HTTP client of this event loop: connections are kept and used again, by all endpoints."""
    import httpx

    loop = asyncio.get_running_loop()
    if loop not in _CLIENTS:
        # How many connections there are, and so are kept, is said for each endpoint: see `Caller`.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30)
        # Deadlines are ours: httpx's own are for each read, however many there are.
        _CLIENTS[loop] = httpx.AsyncClient(timeout=None, limits=limits, follow_redirects=False)
    return _CLIENTS[loop]


@atexit.register
def _close() -> None:
    """Closes the connections that are kept: Python complains of open ones at its end."""
    for loop, http in list(_CLIENTS.items()):
        if loop.is_running():
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(http.aclose(), loop).result(_GOODBYE)


class Caller:
    """Calls one server: bounded in time, in tries and in connections.

    Args:
        settings: The server's address, key and bounds.

    Attributes:
        doubtful: Whether another server may have taken this one's place since it was looked at.

    Raises:
        UserError: httpx is not installed, or there is no key.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        try:
            import httpx  # noqa: F401
        except ImportError:
            raise UserError("A model behind an endpoint needs httpx: pip install 'anchorlm[endpoint]'.") from None
        key = settings.key()
        self._settings = settings
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self.doubtful = False

    async def get(self, path: str, *, root: bool = False) -> Any:
        """What lies at a path.

        Args:
            path: From the address on.
            root: Whether the path is one of the server, not of its API.

        Raises:
            DefenseError: The call failed.
        """
        return await self._whole("GET", self._url(path, root=root), None)

    async def post(self, path: str, body: dict[str, Any], *, root: bool = False) -> Any:
        """What the server answers, as JSON.

        Args:
            path: From the address on.
            body: What is sent.
            root: Whether the path is one of the server, not of its API.

        Raises:
            DefenseError: The call failed, retries included.
            TooLongError: The server says that the prompt is too long.
        """
        return await self._whole("POST", self._url(path, root=root), body)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The events of an answer, as JSON, up to the last. Nothing is sent again once a part has come.

        Raises:
            DefenseError: The call failed, or what came was no stream of events.
            TooLongError: The server says that the prompt is too long.
        """
        async with self._place():
            until = monotonic() + self._settings.timeout  # the server's: it has no part in a wait for a place
            async with self._deadline(until):
                response = await self._tried(until, lambda: self._opened(self._url(path), body))
            events = _events(response, self._settings)
            try:
                while True:
                    # No deadline is open while the event is with the caller: it would cancel other work.
                    async with self._deadline(until):
                        event = await anext(events, _END)
                    if event is _END:
                        return
                    yield event
            except _http_errors() as error:
                self.doubtful = True
                raise gone(self._settings, f"the answer was cut off ({type(error).__name__})") from None
            finally:
                await events.aclose()
                await response.aclose()

    def _url(self, path: str, *, root: bool = False) -> str:
        base = self._settings.endpoint
        return (base.removesuffix("/v1") if root else base) + path

    async def _whole(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        async def send() -> Any:
            response = await self._sent(method, url, body)
            try:
                data = await _read(response, self._settings)
            finally:
                await response.aclose()
            return _parsed(data, self._settings)

        async with self._place():
            until = monotonic() + self._settings.timeout
            async with self._deadline(until):
                return await self._tried(until, send)

    async def _opened(self, url: str, body: dict[str, Any]) -> httpx.Response:
        return await self._sent("POST", url, body)

    async def _sent(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        """An answer that is in order as far as its head says. Its body is still to come."""
        http = client()
        request = http.build_request(method, url, json=body, headers=self._headers)
        response = await http.send(request, stream=True)
        if response.status_code == 200:
            return response
        try:
            said = (await _read(response, self._settings)).decode("utf-8", "replace")
        finally:
            await response.aclose()
        if response.status_code in _AGAIN:
            raise Passing(refused(self._settings, response.status_code, said), _wait(response.headers))
        raise fault(self._settings, response.status_code, said)

    async def _tried(self, until: float, send: Callable[[], Awaitable[Any]]) -> Any:
        """Sends, and sends again after a while where that may help."""
        pause = _FIRST
        for left in range(self._settings.retries, -1, -1):
            wait = 0.0
            try:
                return await send()
            except Passing as passing:
                error, wait = passing.error, passing.wait
            except _http_errors() as failed:
                self.doubtful = True  # what answers the next time may be another server
                error = unreached(self._settings, failed)
                if isinstance(error, UntrustedError):
                    raise error from None
            wait = max(wait, pause * random.uniform(0.5, 1.0))
            if not left or monotonic() + wait >= until:
                raise error
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST)
        raise AssertionError("a call is tried at least once")

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if loop not in self._places:
            self._places[loop] = asyncio.Semaphore(self._settings.connections)
        async with self._places[loop]:
            yield

    @asynccontextmanager
    async def _deadline(self, until: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(max(until - monotonic(), 0.0)):
                yield
        except TimeoutError:
            self.doubtful = True
            raise slow(self._settings) from None


def _http_errors() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)


async def _read(response: httpx.Response, settings: EndpointSettings) -> bytes:
    found = bytearray()
    async for part in response.aiter_bytes():
        found += part
        if len(found) > _MOST_BYTES:
            raise gone(settings, "its answer has no end")
    return bytes(found)


def _parsed(data: bytes | str, settings: EndpointSettings) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Passing(gone(settings, "what it answered is no JSON")) from None


async def _events(response: httpx.Response, settings: EndpointSettings) -> AsyncGenerator[Any, None]:
    """The data of server-sent events."""
    size, lines = 0, response.aiter_lines()
    async for line in lines:
        size += len(line)
        if size > _MOST_BYTES:
            raise gone(settings, "its answer has no end")
        name, _, value = line.partition(":")
        if name != "data":
            continue
        value = value.strip()
        if value == "[DONE]":
            with suppress(TimeoutError, *_http_errors()):
                async with asyncio.timeout(_REST):
                    await anext(lines, None)  # an empty line, or nothing
                    await anext(lines, None)
            return
        try:
            yield _parsed(value, settings)
        except Passing as passing:
            raise passing.error from None


def _wait(headers: httpx.Headers) -> float:
    """Seconds that a server asks for, if it says a number. Python reads `nan` and `inf`, too: they are none."""
    try:
        asked = float(headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    return min(max(asked, 0.0), _MOST_WAIT) if math.isfinite(asked) else 0.0
