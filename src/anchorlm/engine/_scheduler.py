from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from anchorlm.engine._batch import SlotRow
from anchorlm.engine._pending import PendingCall
from anchorlm.engine._slots import SlotCache

_PAUSE = 0.05
"""Seconds between two looks at those who queue."""
_LOOKS = 20
"""Looks without a forward after which a group that runs nothing is unseated. Looks are counted, not seconds: there are
none while a long forward of another engine, for which the idle ones may be waiting, holds the event loop up."""

_seeds = count()


class Member(Protocol):
    """What the scheduler knows of a sequence."""

    row: SlotRow
    call: PendingCall | None


M = TypeVar("M", bound=Member)


@dataclass(slots=True, eq=False)
class SequenceGroup(Generic[M]):
    """A root sequence and its forks, which share one reservation.

    Attributes:
        rows: Most members at once.
        length: Most tokens of a member.
        members: The sequences that are open.
        seated: Whether the members have slots.
        lock: Held by the member that asks for seats again.
    """

    rows: int
    length: int
    members: list[M] = field(default_factory=list)
    seated: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def idle(self) -> bool:
        """Whether no member waits for the model. One that has got what it wanted does not, even if no one took it."""
        return all(member.call is None or member.call.future.done() for member in self.members)


class Scheduler:
    """Who has which slot, and who is admitted when: first come, first served, within `max_rows` and `max_tokens`.

    A group is admitted as a whole, with all the rows that it will ever have, so its forks never wait. Anyone who
    holds seats here while waiting for something else (seats of another engine, or a second group in this one) could
    block others forever. So a group that runs nothing while no one runs anything and others queue is unseated: its
    keys and values are forgotten, and it queues again, before the others, as soon as it wants something. How long that
    takes varies, because two engines that unseat at the same moment only swap who blocks whom.
    """

    def __init__(
        self, cache: SlotCache, max_rows: int, max_tokens: int, progress: Callable[[], int], spared: int = 0
    ) -> None:
        self._cache = cache
        self._spared = spared  # positions that are left free, besides the slots, as long as they are not needed
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._rows: list[SlotRow | None] = []  # by slot; None is a hole
        self._groups: dict[SequenceGroup[Any], None] = {}  # the seated ones, in the order of their admission
        self._queue: deque[tuple[SequenceGroup[Any], asyncio.Future[None]]] = deque()
        self._progress = progress  # counts forwards
        self._seen = 0
        self._patience = 0
        self._random = random.Random(next(_seeds))
        self._watched: asyncio.AbstractEventLoop | None = None  # on which the next look is due, if one is
        self.taken = 0

    def fits_alone(self, group: SequenceGroup[Any]) -> bool:
        """Whether the group could ever be admitted."""
        return group.rows <= self._max_rows and group.rows * group.length <= self._max_tokens

    async def admit(self, group: SequenceGroup[Any]) -> None:
        """Waits until the group's rows fit next to those that are here, and makes room for them."""
        if self._queue or not self._fits(group):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Who was seated before goes first: it is half-way through its work.
            (self._queue.appendleft if group.members else self._queue.append)((group, turn))
            self._watch()
            try:
                await turn
            except asyncio.CancelledError:
                self.dismiss(group)
                raise
            if group not in self._groups:
                raise asyncio.CancelledError  # it was admitted, and closed before it could go on
        self._groups[group] = None
        group.seated = True
        try:
            self._make_room()
        except BaseException:
            self.dismiss(group)
            raise

    def dismiss(self, group: SequenceGroup[Any]) -> None:
        """Takes a group's seats and its place in the queue away, and admits the next one."""
        for member in group.members:
            self.free(member.row)
        group.seated = False
        self._groups.pop(group, None)
        for entry in [entry for entry in self._queue if entry[0] is group]:
            self._queue.remove(entry)
            entry[1].cancel()
        while self._queue and self._fits(self._queue[0][0]):
            following, turn = self._queue.popleft()
            if not turn.done():
                self._groups[following] = None
                turn.set_result(None)

    def place(self, row: SlotRow) -> None:
        """Gives a row the first free slot. Admission has seen to it that there is one."""
        row.slot = next((slot for slot, other in enumerate(self._rows) if other is None), len(self._rows))
        if row.slot == len(self._rows):
            self._rows.append(None)
        self._rows[row.slot] = row
        self.taken += 1

    def free(self, row: SlotRow) -> None:
        """Takes a row out of its slot, if it has one. What was computed is forgotten."""
        if row.slot >= 0:
            self._rows[row.slot] = None
            self.taken -= 1
        row.slot, row.computed = -1, 0

    def compact(self) -> None:
        """Moves the last rows into the holes that others left, so rows stay side by side."""
        rows = self._rows
        if len(rows) == self.taken:
            return
        for slot in range(self.taken):
            if rows[slot] is None:
                while (last := rows.pop()) is None:
                    pass
                self._cache.copy(last.slot, slot, last.computed)
                last.slot = slot
                rows[slot] = last
        del rows[self.taken :]

    def _fits(self, group: SequenceGroup[Any]) -> bool:
        rows = group.rows + sum(other.rows for other in self._groups)
        length = max([group.length, *(other.length for other in self._groups)])
        return rows <= self._max_rows and rows * length <= self._max_tokens

    def _make_room(self) -> None:
        """Grows the cache, by doubling while the bound allows it, to what the admitted groups may need."""
        cache = self._cache
        rows = sum(group.rows for group in self._groups)
        length = max(group.length for group in self._groups)
        if rows <= cache.slots and length <= cache.length:
            return
        self.compact()
        most = self._max_tokens - self._spared
        length = max(min(-(-length // 64) * 64, most // rows), length)
        if cache.length > length and cache.length * rows <= most:
            length = cache.length
        slots = max(rows, min(2 * cache.slots, self._max_rows, most // length))
        used = max((row.computed for row in self._rows if row is not None), default=0)
        try:
            cache.resize(slots, length, len(self._rows), used)
        finally:
            if not cache.made:  # memory ran out, and what was in it is gone
                for row in self._rows:
                    if row is not None:
                        row.computed = 0

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        if self._watched is not loop:
            self._watched = loop
            self._be_patient()
            loop.call_later(_PAUSE, self._look, loop)

    def _be_patient(self) -> None:
        self._seen, self._patience = self._progress(), self._random.randint(_LOOKS, 2 * _LOOKS)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._queue:
            self._watched = None
            return
        self._patience -= 1
        if self._progress() != self._seen:
            self._be_patient()
        elif self._patience <= 0:
            for group in [group for group in reversed(self._groups) if group.members and group.idle]:
                if self._queue:
                    self.dismiss(group)
            self._be_patient()
        loop.call_later(_PAUSE, self._look, loop)
