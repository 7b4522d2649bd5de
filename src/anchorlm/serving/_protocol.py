from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_PATIENCE = 10.0
"""Seconds in which the line and the headers of a request must have come, from when its connection is open or the answer
before it sent."""

HEAD_BYTES = 32_768
"""Bytes that the line and the headers of a request may have, and so the memory that one which never ends takes."""

# Not the one that happens to be installed: httptools reads headers without an end, ever more slowly.
_Base: Any = H11Protocol


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
