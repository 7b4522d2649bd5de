from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from anchorlm.records import UserError
from anchorlm.serving._admission import Admission
from anchorlm.serving._audit import Audit
from anchorlm.serving._errors import ApiError
from anchorlm.serving._keys import Keys
from anchorlm.serving._metrics import Metrics
from anchorlm.serving._probe import bare_seconds_per_token, examine
from anchorlm.serving._served import Served
from anchorlm.serving._settings import ServerSettings

_log = logging.getLogger("anchorlm")


_SLOW_DISK = 1.0
"""Seconds that a request waits for the audit log where it may be answered without."""


class Desk:
    """What all requests to one server share.

    Attributes:
        settings: Of the server.
        models: The guards, by their ids.
        keys: Who may ask.
        admission: Who is next.
        metrics: What is counted.
        ready: Whether every guard has passed its self-test.
        wrong: What the self-test found.
        under_way: Requests whose end is not written down yet.

    Raises:
        UserError: No guard, two of one name, unreadable keys, or an audit log that cannot be written.
    """

    def __init__(self, served: Sequence[Served], settings: ServerSettings) -> None:
        if not served:
            raise UserError("There is nothing to serve: give at least one recipe.")
        self.models: dict[str, Served] = {}
        for one in served:
            if one.id in self.models:
                raise UserError(f"Two recipes are served as {one.id!r}: give one of them another id in its [serve].")
            self.models[one.id] = one
        self.settings = settings
        self.keys = Keys.load(settings.keys) if settings.keys else Keys({}, trusted=settings.on_loopback)
        self.admission = Admission(settings.concurrency, settings.queue)
        self.metrics = Metrics(self.admission)
        self._audit = Audit(settings.audit, self.metrics.audit_failures.inc)
        self._scribe = ThreadPoolExecutor(1, "anchorlm-audit")
        self._later: set[asyncio.Task[Any]] = set()
        self.under_way: set[object] = set()
        self.ready = False
        self.wrong: list[str] = []
        for one in served:
            self.metrics.know(one)

    def model(self, id: str | None) -> Served:
        """The guard of a name; without one, the first.

        Raises:
            ApiError: 404.
        """
        if id is None:
            return next(iter(self.models.values()))
        if id not in self.models:
            raise ApiError(
                404, f"There is no such model here; served are: {', '.join(self.models)}.", param="model",
                code="model_not_found",
            )  # fmt: skip
        return self.models[id]

    async def start(self) -> None:
        """Tests every guard, and measures its bare target; the server is ready only if all pass."""
        for one in self.models.values():
            wrong: list[str] = []
            tested = self.settings.probe and one.guard.probes.run
            try:
                async with asyncio.timeout(self.settings.deadline):
                    if tested:
                        wrong = await examine(one, raw=self.settings.raw_completions)
                    if not wrong and (bare := await bare_seconds_per_token(one)):
                        self.metrics.bare[one.id] = bare
            except TimeoutError:
                wrong = [
                    f"{one.id} was not done with its self-test after {self.settings.deadline:g} s: see whether its "
                    "judge and its models answer, or raise the deadline."
                ]
            except Exception as error:  # whatever a model raises: told by /ready, which would say "testing" for ever
                wrong = [f"{one.id} could not be timed ({type(error).__name__}): try its recipe with `anchorlm chat`."]
            for sentence in wrong:
                _log.error("%s", sentence)
            if tested:
                self.wrong += wrong
            else:
                _log.warning("%s is served without having been tested.", one.id)
        self.ready = not self.wrong

    async def note(self, event: str, fields: Mapping[str, Any], deadline: float) -> None:
        """Writes a line of the audit log; it is written even if whoever waits for it is gone before.

        Args:
            event: What happened.
            fields: What else the line says.
            deadline: Time of the loop until which a slow disk is waited for.

        Raises:
            ApiError: 503, it cannot be written, or not in time, and nothing is to be answered then.
        """
        if not self._audit.on:
            return
        if self._audit.goes_on:
            deadline = min(deadline, asyncio.get_running_loop().time() + _SLOW_DISK)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self.later(self._write(event, fields)))
        except TimeoutError:
            self._audit.late()

    async def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        # A thread of its own: a disk that hangs takes none from the rest of the server.
        await asyncio.get_running_loop().run_in_executor(self._scribe, self._audit.write, event, fields)

    def audited(self, name: str, text: str) -> dict[str, str]:
        """A text as the audit log holds it."""
        return self._audit.text(name, text) if self._audit.on else {}

    def later(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Lets something go on although whoever asked for it is gone."""
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._later.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left to be told; failures of the log are counted where they happen

    async def close(self) -> None:
        """Waits for what goes on, requests that are being cut off too, and closes the audit log."""
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self.under_way:
                    await asyncio.sleep(0.01)
        if self._later:
            await asyncio.wait(self._later, timeout=5)
        self._scribe.shutdown(wait=False)
        self._audit.close()
