from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from anchorlm.records import UserError
from anchorlm.serving._errors import ApiError
from anchorlm.serving._settings import ServerSettings, require_distinct
from anchorlm.serving.ops._admission import Admission
from anchorlm.serving.ops._audit import Audit
from anchorlm.serving.ops._keys import Caller, KeyFile, Keys
from anchorlm.serving.ops._metrics import Metrics
from anchorlm.serving.session._model import ServedModel
from anchorlm.serving.session._probe import bare_seconds_per_token, examine

_log = logging.getLogger("anchorlm")


T = TypeVar("T")

_LOOK = 0.25
"""Seconds between two looks at the file of keys."""

_SLOW_DISK = 1.0
"""Seconds that a request waits for the audit log where it may be answered without."""


class UnderWay(Protocol):
    """A request whose end is not written down yet."""

    def revoke(self, callers: Sequence[Caller]) -> None:
        """Ends it, if it is one of theirs."""


class ServerState:
    """What all requests to one server share.

    Attributes:
        settings: Of the server.
        models: The guards, by their ids.
        keys: Who may ask.
        admission: Who is next.
        metrics: What is counted.
        ready: Whether every guard is loaded and has passed its self-test.
        wrong: What the self-test found.
        under_way: Requests whose end is not written down yet.
        error: What went wrong as the guards were loaded.

    Raises:
        UserError: No guard, two of one name, unreadable keys, or an audit log that cannot be written.
    """

    def __init__(self, served: Iterable[ServedModel], settings: ServerSettings) -> None:
        self.models: dict[str, ServedModel] = {}
        self.settings = settings
        self.keys = Keys.load(settings.keys) if settings.keys else Keys({}, trusted=settings.on_loopback)
        self._key_file = KeyFile(settings.keys, self.keys) if settings.keys else None
        self.admission = Admission(settings.concurrency, settings.queue)
        # Without keys everyone sees them.
        self.metrics = Metrics(self.admission, generated=settings.scores or bool(self.keys))
        self._audit = Audit(settings.audit, self.metrics.audit_failures.inc)
        self._scribe = ThreadPoolExecutor(1, "anchorlm-audit")
        self._readers = ThreadPoolExecutor(2, "anchorlm-reader")
        self._later: set[asyncio.Task[Any]] = set()
        self.under_way: set[UnderWay] = set()
        self.ready = False
        self.wrong: list[str] = []
        self.error: BaseException | None = None
        self._coming: Iterable[ServedModel] | None = None
        if isinstance(served, Sequence):
            self._take(served)
        else:
            self._coming = served

    def _take(self, served: Sequence[ServedModel]) -> None:
        if not served:
            raise UserError("There is nothing to serve: give at least one recipe.")
        require_distinct([one.id for one in served])
        for one in served:
            self.metrics.know(*one.names)
        self.models = {one.id: one for one in served}

    def model(self, id: str | None) -> ServedModel:
        """The guard of a name. Without one, the first.

        Raises:
            ApiError: 404. 503 while there is none yet.
        """
        if not self.models:
            raise self.not_ready()
        if not id:
            return next(iter(self.models.values()))
        if id not in self.models:
            raise ApiError(
                404, f"There is no such model here; served are: {', '.join(self.models)}.", param="model",
                code="model_not_found",
            )  # fmt: skip
        return self.models[id]

    def not_ready(self) -> ApiError:
        """What a request is told that comes too early."""
        why = "did not pass its self-test" if self.wrong else "is still being tested"
        why = why if self.models else "is still loading its models"
        return ApiError(503, f"The server {why}: see /ready.", code="not_ready", retry_after=5)

    def may_see_all(self, caller: Caller) -> bool:
        """Whether someone gets full traces: the operator, who is known by a key where figures are kept back."""
        return caller.operator and (self.settings.scores or bool(self.keys))

    async def off_the_loop(self, work: Callable[[], T]) -> T:
        """Does what takes its time on a thread for that, while everyone else is attended to."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def watch_keys(self) -> None:
        """Reads the keys again whenever their file changes."""
        while self._key_file is not None:
            await asyncio.sleep(_LOOK)
            await self.renew_keys(now=False)

    async def renew_keys(self, *, now: bool = True) -> None:
        """Reads the keys again, at once or if their file has changed, and ends what goes on under revoked ones."""
        if self._key_file is None:
            return
        file = self._key_file
        revoked = await self.off_the_loop(lambda: file.look(now=now))
        if revoked:
            for one in list(self.under_way):
                one.revoke(revoked)

    async def _load(self) -> None:
        """Goes through what comes, on a thread that no one waits for when the server ends."""
        loop, coming = asyncio.get_running_loop(), self._coming
        loaded: asyncio.Future[list[ServedModel]] = loop.create_future()

        def tell(done: Callable[[], None]) -> None:
            if not loaded.done():
                done()

        def work() -> None:
            try:
                found = list(coming or ())
                done = partial(loaded.set_result, found)
            except BaseException as error:
                done = partial(loaded.set_exception, error)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, done)

        threading.Thread(target=work, name="anchorlm-loading", daemon=True).start()
        self._take(await loaded)

    async def start(self) -> None:
        """Loads and tests every guard, and measures its bare target. The server is ready only if all pass."""
        if self._coming is not None:
            try:
                await self._load()
            except Exception as error:  # anyone who serves is told, and ends
                self.error = error
                self.wrong.append("The models could not be loaded: see the server's log.")
                return
        for one in self.models.values():
            wrong = await self._examined(one, timed=True)
            if self._tests(one):
                self.wrong += wrong
            else:
                _log.warning("%s is served without having been tested.", one.id)
        self.ready = not self.wrong

    async def test_again(self) -> None:
        """Tests every guard again while it serves. One that fails now gets no more requests: nothing is ready then."""
        found = [await self._examined(one, timed=False) for one in self.models.values() if self._tests(one)]
        self.wrong = [sentence for wrong in found for sentence in wrong]
        self.ready = not self.wrong

    def _tests(self, one: ServedModel) -> bool:
        return self.settings.probe and one.guard.probes.run

    async def _examined(self, one: ServedModel, *, timed: bool) -> list[str]:
        """What is wrong with a guard, in as long as a request may take."""
        wrong: list[str] = []
        try:
            async with asyncio.timeout(self.settings.deadline):
                if self._tests(one):
                    wrong = await examine(one, raw=self.settings.raw_completions)
                if timed and not wrong and (bare := await bare_seconds_per_token(one)):
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
        return wrong

    async def note(self, event: str, fields: Mapping[str, Any], deadline: float) -> None:
        """Writes a line of the audit log. It is written even if the one who waits for it is gone before.

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

    def note_later(self, event: str, fields: Mapping[str, Any]) -> None:
        """The same for what no one waits for. That it could not be written is counted."""
        if self._audit.on:
            self.later(self._write(event, fields))

    async def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        # A thread of its own: a disk that hangs takes none from the rest of the server.
        await asyncio.get_running_loop().run_in_executor(self._scribe, self._audit.write, event, fields)

    def audited(self, name: str, text: str) -> dict[str, str]:
        """A text as the audit log holds it."""
        return self._audit.text(name, text) if self._audit.on else {}

    def later(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Lets something go on although the one who asked for it is gone."""
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._later.discard(task)
        if not task.cancelled():
            task.exception()  # no one may be left to be told; failures of the log are counted where they happen

    async def close(self) -> None:
        """Waits for what goes on, requests that are being cut off too, and closes the audit log."""
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self.under_way:
                    await asyncio.sleep(0.01)
        if self._later:
            await asyncio.wait(self._later, timeout=5)
        for threads in (self._scribe, self._readers):
            threads.shutdown(wait=False)
        self._audit.close()
