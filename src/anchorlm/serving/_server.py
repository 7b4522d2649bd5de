from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import SendTimeoutError

from anchorlm.serving._errors import without_paths
from anchorlm.serving._settings import ServerSettings
from anchorlm.serving._state import ServerState
from anchorlm.serving.http._app import create_app
from anchorlm.serving.http._listening import listen
from anchorlm.serving.http._protocol import HEAD_BYTES, Punctual
from anchorlm.serving.session._model import ServedModel

_log = logging.getLogger("anchorlm")

_HANG_UP = getattr(signal, "SIGHUP", None)
_SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, _HANG_UP) if number is not None]

_INTERRUPTED = 130
"""What a shell reports for a program that was ended by Ctrl-C."""


_NO_HTTP = "Invalid HTTP request received."
"""What uvicorn logs of it."""


class _NoStack(logging.Filter):
    """Says what kind of error there was. Where it happened, and what it said, may tell of prompts and paths.

    A client that does not read its stream is none, nor is an answer that the end of the server cuts off: the audit log
    says that it was left. That something came which is no HTTP is said once a second: a flood would fill the log.
    """

    _next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging."""
        if record.msg == _NO_HTTP:
            now = monotonic()
            if now < self._next:
                return False
            self._next = now + 1
        if record.exc_info:
            kind = record.exc_info[0]
            if kind in (SendTimeoutError, asyncio.CancelledError):
                return False
            record.msg, record.args = "A request failed unexpectedly: %s", (kind.__name__ if kind else "unknown",)
            record.exc_info = record.exc_text = None
        elif record.args == (0,):
            return False  # so many tasks were cut off at the end
        else:
            record.msg, record.args = without_paths(record.getMessage()), ()
        return True


_NO_STACK = _NoStack()

_SPARE = 256
"""Connections beyond the requests that may be answered or wait: pages, probes, streams that are still being read."""


class Server(uvicorn.Server):
    """An HTTP server around some guards.

    SIGTERM, SIGHUP or Ctrl-C ends it gently: nothing new is let in, and answers under way get `drain` seconds. A second
    Ctrl-C cuts them off, and a third ends the process. With keys and without a terminal, SIGHUP reads the keys again.

    Args:
        served: The guards. What is no sequence is gone through, and so loaded, once the server can be reached.
        settings: Limits and habits.
        listening: Told the address as soon as the guards are loaded. They are still being tested then.
        sockets: Those of `listen`, for `serve_forever`. By default it binds its own.

    Raises:
        UserError: As `create_app`.
    """

    def __init__(
        self,
        served: Iterable[ServedModel],
        settings: ServerSettings,
        listening: Callable[[str], None] = lambda _: None,
        sockets: list[socket.socket] | None = None,
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._listening = listening
        self._told = False
        self._renewing: asyncio.Task[None] | None = None
        self._at_terminal = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
        self.application: FastAPI = create_app(served, settings)
        if not settings.on_loopback and not settings.keys:
            _log.warning(
                "Anyone who reaches %s may use this server, because it has no API keys: make some with "
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
                ws="none",
                h11_max_incomplete_event_size=HEAD_BYTES,
                limit_concurrency=settings.concurrency + settings.queue + _SPARE,
            )
        )

        for name in ("uvicorn.error", "asyncio", "sse_starlette.sse"):
            logging.getLogger(name).addFilter(_NO_STACK)

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: whether to end."""
        state: ServerState = self.application.state.server
        if state.models and not self._told:
            self._told = True
            self._listening(self.address)
        return state.error is not None or await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn. What was told by a signal is for anyone who serves to say, in its exit status."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ignored = [] if self._settings.keys else [_HANG_UP]  # by nohup, and then it stays so
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in _SIGNALS
            if number not in ignored or signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if sig == _HANG_UP and self._settings.keys is not None and not self._at_terminal:
            asyncio.get_running_loop().call_soon_threadsafe(self._renew_keys)
            return
        interrupts = self._captured_signals.count(signal.SIGINT)
        if sig == signal.SIGINT and interrupts > 1:
            os._exit(_INTERRUPTED)
        self._captured_signals.append(sig)
        self.force_exit = self.force_exit or (sig == signal.SIGINT and interrupts > 0)
        self.should_exit = True

    def _renew_keys(self) -> None:
        self._renewing = asyncio.ensure_future(self.application.state.server.renew_keys())

    async def _wait_tasks_to_complete(self) -> None:
        """See uvicorn, which goes on to wait for connections that a second Ctrl-C has given up."""
        waiting = asyncio.ensure_future(super()._wait_tasks_to_complete())
        while not waiting.done() and not self.force_exit:
            await asyncio.wait({waiting}, timeout=0.1)
        if not waiting.done():
            waiting.cancel()
            raise TimeoutError  # as when the time for it is over: what is left is cut off
        await waiting

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which after a second Ctrl-C leaves out the end of the application."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    @property
    def address(self) -> str:
        """Where the server listens. The port is known once it does."""
        port = self._settings.port
        for server in getattr(self, "servers", []):
            port = server.sockets[0].getsockname()[1]
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"http://{host}:{port}"

    def serve_forever(self) -> None:
        """Serves until it is told to end.

        Raises:
            UserError: The address cannot be listened on, or the guards cannot be loaded.
            KeyboardInterrupt: Ctrl-C, once everything is over.
        """
        sockets = self._sockets or listen(self._settings)
        # A loop that is not closed: what hangs on one of its threads must not keep the process from ending.
        factory = self.config.get_loop_factory()
        loop = factory() if factory is not None else asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self.serve(sockets))
        if (error := self.application.state.server.error) is not None:
            raise error
        if signal.SIGINT in self._captured_signals:
            raise KeyboardInterrupt
