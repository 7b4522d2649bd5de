from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import torch
from torch import Tensor

from anchorlm.engine._batch import SlotRow
from anchorlm.engine._executor import BatchExecutor, batches
from anchorlm.engine._prefixes import Prefixes
from anchorlm.engine._runner import Runner
from anchorlm.engine._scheduler import Scheduler, SequenceGroup
from anchorlm.engine._sequence import LocalSequence
from anchorlm.engine._steering import Steering
from anchorlm.models import CausalModel
from anchorlm.records import Access, ModelError, TooLongError, UserError

_PATIENCE = 8
"""Turns of the event loop without a new arrival after which no one else is expected to join the next forward: a chain
of wake-ups through tasks and gathers takes about four, and a turn takes microseconds."""


class LocalEngine:
    """Runs many sequences on one transformers model: one forward over everything that waits.

    Everything happens on one event loop, so there are no locks: `Scheduler` says who is in memory, this class says
    when the next forward is due, and `BatchExecutor` does it.

    Args:
        model: The checkpoint.
        max_rows: Most sequences at once. More wait for their turn.
        max_tokens: Most key/value positions in memory: rows times the longest row, and the prefixes that are kept.
        prefill_tokens: Most tokens, padding included, that one forward reads from prompts.
        prefix_tokens: Most positions of what was read lately that are kept for rows that begin alike. 0 keeps none.
        base: Makes another model of this one: at every position of every sequence the stream is changed so, before any
            steering of a defense and before anyone reads it. A white-box attack (`Aligner.ablation`) is put on a
            target in this way.

    Raises:
        UserError: The architecture cannot be run in slots, or `base` changes positions of prompts only.
    """

    access = Access.ALL

    def __init__(
        self,
        model: CausalModel,
        *,
        max_rows: int = 256,
        max_tokens: int = 65_536,
        prefill_tokens: int = 2_048,
        prefix_tokens: int = 8_192,
        base: Steering | None = None,
    ) -> None:
        self.model = model
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.prefill_tokens = prefill_tokens
        self.runner = Runner(model)
        self.runner.check()
        if base is not None and base.positions != "all":
            raise UserError("The base of an engine changes every position: give it with positions = 'all'.")
        self.runner.base = base
        self.prefixes = Prefixes(self.runner.cache, prefix_tokens, max_tokens)
        spared = min(prefix_tokens, max_tokens // 4)
        self._scheduler = Scheduler(self.runner.cache, max_rows, max_tokens, lambda: self.runner.forwards, spared)
        self._executor = BatchExecutor(self.runner)
        self._waiting: dict[LocalSequence, None] = {}
        self._arrivals = 0
        self._seen = 0
        self._quiet = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # on which the next tick is due, if one is

    @asynccontextmanager
    async def open(self, ids: Sequence[int], *, rows: int = 1, room: int = 0) -> AsyncIterator[LocalSequence]:
        """A sequence that starts with `ids`, closed with all its forks when the context ends.

        Waits until there are slots for all of its `rows`, so forking never waits and requests cannot block one
        another half-way.

        Raises:
            UserError: The prompt is empty or leaves no room in the model's context, or more is asked than the engine
                may ever hold.
        """
        limit = self.model.context_length
        if not ids:
            raise UserError("The prompt is empty: give some text.")
        if len(ids) >= limit:
            raise TooLongError(
                f"The prompt has {len(ids)} tokens, but {self.model.name} reads {limit} with its answer: shorten it."
            )
        group: SequenceGroup[LocalSequence] = SequenceGroup(rows, min(len(ids) + room, limit))
        if not self._scheduler.fits_alone(group):
            raise TooLongError(
                f"This request needs {rows} rows of {group.length} tokens on {self.model.name}, but its engine holds "
                f"{self.max_rows} rows and {self.max_tokens} tokens: raise max_rows or max_tokens, or ask for less."
            )
        await self._admit(group)
        row = SlotRow(-1, list(ids), embeddings=getattr(ids, "embeddings", None))
        self._scheduler.place(row)
        root = LocalSequence(self, group, row, len(ids))
        try:
            yield root
        finally:
            for member in tuple(group.members):
                self._keep(member)  # what is asked next may go on from here
                self.leave(member)

    def fork(self, parent: LocalSequence) -> LocalSequence:
        """A copy of `parent` in a slot of its own, within its group's reservation."""
        group = parent.group
        if len(group.members) >= group.rows:
            raise RuntimeError(f"A request forked beyond the {group.rows} rows that it had asked for.")
        row = replace(parent.row, slot=-1, tokens=list(parent.ids), computed=0)
        if group.seated:
            self._scheduler.place(row)
            row.computed = parent.row.computed
            self.runner.cache.copy(parent.row.slot, row.slot, row.computed)
        return LocalSequence(self, group, row, parent.prompt_length)

    def leave(self, sequence: LocalSequence) -> None:
        """Frees a sequence's slot. Anyone who waits for it is told."""
        if sequence.closed:
            return
        sequence.closed = True
        sequence.group.members.remove(sequence)
        self._scheduler.free(sequence.row)
        if not sequence.group.members:
            self._scheduler.dismiss(sequence.group)
        self.rest(sequence)
        if sequence.call is not None:
            sequence.call.future.cancel()
            sequence.call = None

    async def seat_again(self, group: SequenceGroup[LocalSequence]) -> None:
        """Waits for the slots of a group that had to give them up."""
        async with group.lock:
            if group.members and not group.seated:
                await self._admit(group)
                for member in group.members:
                    self._scheduler.place(member.row)

    async def _admit(self, group: SequenceGroup[LocalSequence]) -> None:
        try:
            await self._scheduler.admit(group)
            self.prefixes.shrink()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise ModelError(
                f"{self.model.name} ran out of memory making room for {group.rows} rows of {group.length} tokens: "
                "lower max_new_tokens or the number of candidates, or max_tokens of its engine. Then requests wait."
            ) from None

    def wake(self, sequence: LocalSequence) -> None:
        """The sequence waits for the model: a forward follows as soon as no one can go on without one."""
        self._waiting[sequence] = None
        self._arrivals += 1
        self._arm()

    def advance(self, sequence: LocalSequence, logits: Tensor) -> None:
        """Takes the first token of a generation from logits (V,) that the sequence had asked for before."""
        self._executor.start(sequence, logits)

    def rest(self, sequence: LocalSequence) -> None:
        """The sequence does not wait any more."""
        self._waiting.pop(sequence, None)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._quiet = 0
            loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._quiet = self._quiet + 1 if self._arrivals == self._seen else 0
        self._seen = self._arrivals
        everyone = len(self._waiting) == self._scheduler.taken
        if self._loop is not None and self._quiet < (1 if everyone else _PATIENCE):
            self._loop.call_soon(self._tick)
            return
        self._loop = None
        self._scheduler.compact()
        for batch, counts in batches(self._ready(), self.prefill_tokens):
            try:
                self._executor.run(batch, counts)
                for member, count in zip(batch, counts, strict=True):
                    if count > 1:
                        self._keep(member)
            except Exception as error:  # whatever a forward raises belongs to those who wait for it
                why = f"{self.model.name} ran out of memory: lower max_tokens or prefill_tokens of its engine."
                self._fail(batch, ModelError(why) if _out_of_memory(error) else error)
        for sequence in [each for each in self._waiting if each.call is None or each.call.future.done()]:
            self.rest(sequence)
        if self._waiting:
            self._arm()

    def _ready(self) -> list[LocalSequence]:
        """Who goes on now. Of rows that begin alike, one is read first, and the others start from what it leaves."""
        ready, first = [], set()
        for member in self._waiting:
            if member.row.pending > 1 and member.call is not None:
                end = int(min(member.call.first, len(member.ids)))
                self.prefixes.fill(member.row, end)
                if (beginning := self.prefixes.alike(member.row, end)) is not None:
                    if beginning in first:
                        continue
                    first.add(beginning)
            ready.append(member)
        return ready

    def _keep(self, sequence: LocalSequence) -> None:
        try:
            self.prefixes.keep(sequence.row)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            self.prefixes.clear()  # rows need the memory more

    @staticmethod
    def _fail(batch: list[LocalSequence], error: Exception) -> None:
        for sequence in batch:
            if sequence.call is not None and not sequence.call.future.done():
                sequence.call.future.set_exception(error)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. The allocators of some devices, the CPU's too, have no class for that."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )
