from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_PATIENCE = 10.0
"""Seconds in which the line and the headers of a request must have come, from when its connection is open or the answer
before it sent."""

_Base: Any = AutoHTTPProtocol


class Punctual(_Base):  # type: ignore[misc]
    """uvicorn's protocol, but that a connection whose request does not come is closed: whoever opens many and says
    little would else keep everybody out.
    """

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

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._idle_since = monotonic()
        left = self._idle_since + HEAD_PATIENCE - monotonic()
        if left <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(left, self._look)
