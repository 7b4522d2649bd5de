"""Activations of a model in vLLM: `anchorlm.vllm.worker` reads and steers them there, and this asks it to."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from torch import Tensor

from anchorlm.engine._steering import Change, Steering, require_finite
from anchorlm.engine._vllm_faults import in_words
from anchorlm.engine._vllm_wishes import PLACES, ROOM, Wishes
from anchorlm.records import DefenseError, UserError


@dataclass(frozen=True, slots=True, eq=False)
class Steered:
    """How a sequence is steered.

    Attributes:
        edits: What is added after each block, of which there is one object for equal ones.
        shifts: The same as vectors (H,).
        strength: Factor of it.
        until: The first position that is left alone; None: there is none.
    """

    edits: Mapping[int, Change]
    shifts: Mapping[int, Tensor]
    strength: float
    until: int | None

    @classmethod
    def of(cls, steering: Steering | None, prompt_length: int) -> Steered | None:
        """None where nothing is added.

        Raises:
            UserError: What is added is no constant vector.
        """
        if steering is None or not steering.strength:
            return None
        if (shifts := steering.shifts) is None:
            raise UserError("vLLM adds constant vectors only: load the target with transformers.")
        strength = float(steering.strength)
        require_finite({block: strength * shift.float() for block, shift in shifts.items()})
        until = prompt_length if steering.positions == "prompt" else None
        return cls(steering.edits, shifts, strength, until)


@dataclass(slots=True, eq=False)
class _State:
    """What the worker steers by under a number.

    Attributes:
        number: Its number.
        edits: What is added.
        name: No other state had it, so what was read under it serves no other one.
        ready: When the worker has it.
    """

    number: int
    edits: Mapping[int, Change]
    name: str
    ready: asyncio.Future[None]


class Inside:
    """Speaks with the worker of one vLLM.

    Args:
        server: vLLM's engine.
        timeout: Seconds that it may take to answer.
    """

    def __init__(self, server: Any, timeout: float) -> None:
        self._server = server
        self._timeout = timeout
        self._freed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._room = PLACES
        self._emptied = asyncio.Event()
        self._states: dict[int, _State] = {}  # by what is added; the one that was used last is the last
        self._used: Counter[int] = Counter()
        self._wanted: dict[str, asyncio.Future[Tensor | None]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._left: list[str] = []
        self._putting: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def steered(
        self, by: Steered | None, read: Wishes | None = None
    ) -> AsyncIterator[tuple[Wishes | None, str | None]]:
        """What a request says of its steering, and the salt under which vLLM keeps what it reads: of these alone.

        Args:
            by: Its steering.
            read: What else it says.

        Raises:
            DefenseError: No state becomes free in time, or the worker did not take this one.
        """
        if by is None:
            yield read, None
            return
        state = await self._state(by)
        self._used[state.number] += 1
        try:
            await asyncio.shield(state.ready)
            told: Any = json.dumps([state.name, by.strength, by.until])
            salt = hashlib.sha256(told.encode()).hexdigest()
            yield replace(read or Wishes(), state=state.number, strength=by.strength, until=by.until), salt
        finally:
            self._used[state.number] -= 1
            self._freed.set()

    async def _state(self, by: Steered) -> _State:
        try:
            async with asyncio.timeout(self._timeout):
                while (found := self._known(by)) is None:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise DefenseError(
                f"vLLM steers by at most {ROOM} different sets of vectors at once, and none became free: ask again."
            ) from None
        return found

    def _known(self, by: Steered) -> _State | None:
        """The state of what is added. None where all that there may be are in use."""
        known = self._states.pop(id(by.edits), None) or self._new(by)
        if known is not None:
            self._states[id(by.edits)] = known
        return known

    def _new(self, by: Steered) -> _State | None:
        from safetensors.torch import save

        free = set(range(1, ROOM + 1)).difference(one.number for one in self._states.values())
        if not free:
            idle = next((key for key, one in self._states.items() if not self._used[one.number]), None)
            if idle is None:
                return None
            free = {self._states.pop(idle).number}
        data = save({str(layer): shift.detach().float().contiguous().cpu() for layer, shift in by.shifts.items()})
        number, ready = free.pop(), asyncio.get_running_loop().create_future()
        state = _State(number, by.edits, uuid4().hex, ready)
        task = asyncio.create_task(self._put(state, id(by.edits), data))
        self._putting.add(task)  # a loop itself holds tasks only weakly
        task.add_done_callback(self._putting.discard)
        return state

    async def _put(self, state: _State, key: int, data: bytes) -> None:
        try:
            await self._call("anchorlm_put", state.number, data)
            state.ready.set_result(None)
        except Exception as error:  # of vLLM, in many classes
            if self._states.get(key) is state:
                del self._states[key]
            said = in_words(error)
            state.ready.set_exception(DefenseError(f"vLLM did not take a steering ({said}): see what it printed."))
            state.ready.exception()

    @asynccontextmanager
    async def read(self, wishes: Wishes) -> AsyncIterator[Callable[[], Awaitable[Tensor]]]:
        """Waits until the worker has room for what is to be read. Gives a call that fetches it then."""
        name, rows = str(wishes.capture), wishes.rows
        if rows:
            async with self._turn:  # many small ones do not overtake a large one
                while self._room < rows:
                    self._emptied.clear()
                    await self._emptied.wait()
                self._room -= rows
        try:
            yield lambda: self._fetched(name)
        except BaseException:
            self._left.append(name)  # nobody fetches it any more
            raise
        finally:
            self._room += rows
            self._emptied.set()

    async def _fetched(self, name: str) -> Tensor:
        """What was kept under a name. All who ask at the same time share a call.

        Raises:
            DefenseError: There is nothing.
        """
        future: asyncio.Future[Tensor | None] = asyncio.get_running_loop().create_future()
        self._wanted[name] = future
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        found = await future
        if found is None:
            raise DefenseError("vLLM did not keep what was read of a request: send fewer requests at once.")
        return found

    async def _call(self, method: str, *args: Any) -> list[Any]:
        """What each worker answers. One that has ended never does."""
        async with asyncio.timeout(self._timeout):
            answers: list[Any] = await self._server.collective_rpc(method, args=args)
            return answers

    async def _fetch(self) -> None:
        from safetensors.torch import load

        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            left, self._left = self._left, []
            try:
                # Every worker of a split model has them whole: the first one's will do.
                answers = await self._call("anchorlm_fetch", [*wanted, *left])
                found = load(bytes(answers[0]))
            except Exception as error:  # of vLLM, in many classes
                told = f"vLLM gave nothing of what it read ({in_words(error)}): see what it printed."
                for future in wanted.values():
                    if not future.done():
                        future.set_exception(DefenseError(told))
                continue
            for name, future in wanted.items():
                if not future.done():
                    future.set_result(found.get(name))
