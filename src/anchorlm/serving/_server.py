from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import SendTimeoutError

from anchorlm.records import UserError
from anchorlm.serving._app import create_app
from anchorlm.serving._errors import without_paths
from anchorlm.serving._protocol import Punctual
from anchorlm.serving._served import Served
from anchorlm.serving._settings import ServerSettings

_log = logging.getLogger("anchorlm")


class _NoStack(logging.Filter):
    """Says what kind of error there was; where it happened, and what it said, may tell of prompts and paths.

    A client that does not read its stream is none: the audit log says that it was left.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging."""
        if record.exc_info:
            kind = record.exc_info[0]
            if kind is SendTimeoutError:
                return False
            record.msg, record.args = "A request failed unexpectedly: %s", (kind.__name__ if kind else "unknown",)
            record.exc_info = record.exc_text = None
        else:
            record.msg, record.args = without_paths(record.getMessage()), ()
        return True


_NO_STACK = _NoStack()

_SPARE = 256
"""Connections beyond the requests that may be answered or wait: pages, probes, streams that are still being read."""


class Server(uvicorn.Server):
    """An HTTP server around some guards.

    SIGTERM, or Ctrl-C, ends it gently: nothing new is let in, and answers under way get `drain` seconds.

    Args:
        served: The guards.
        settings: Limits and habits.
        listening: Told the address as soon as the server can be reached; the guards are still being tested then.

    Raises:
        UserError: As `create_app`.
    """

    def __init__(
        self, served: Sequence[Served], settings: ServerSettings, listening: Callable[[str], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._listening = listening
        self.application: FastAPI = create_app(served, settings)
        if not settings.on_loopback and not settings.keys:
            _log.warning(
                "Whoever reaches %s may use this server, because it has no API keys: make some with "
                "`anchorlm serve --new-key NAME --keys FILE`, or listen on 127.0.0.1.",
                settings.host,
            )
        super().__init__(
            uvicorn.Config(
                self.application,
                host=settings.host,
                port=settings.port,
                access_log=False,  # who asked what is the audit log's matter
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=settings.drain,
                http=Punctual,
                limit_concurrency=settings.concurrency + settings.queue + _SPARE,
            )
        )

        for name in ("uvicorn.error", "asyncio", "sse_starlette.sse"):
            logging.getLogger(name).addFilter(_NO_STACK)

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """See uvicorn."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._listening(self.address)

    @property
    def address(self) -> str:
        """Where the server listens; the port is known once it does."""
        port = self._settings.port
        for server in getattr(self, "servers", []):
            port = server.sockets[0].getsockname()[1]
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"http://{host}:{port}"

    def serve_forever(self) -> None:
        """Serves until it is told to end.

        Raises:
            UserError: The address cannot be listened on.
        """
        try:
            self.run()
        except SystemExit:
            raise UserError(
                f"{self.address} cannot be listened on: choose another --port, or end what listens there."
            ) from None
