from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from anchorlm.engine._batch import SlotRow
from anchorlm.engine._forms import FormedSequence, Held
from anchorlm.engine._pending import PendingCall
from anchorlm.engine._protocol import Generated
from anchorlm.engine._sampling import Sampler
from anchorlm.engine._scheduler import SequenceGroup
from anchorlm.engine._steering import Steering
from anchorlm.models import CausalModel
from anchorlm.records import GenerationSettings, TokenScore

if TYPE_CHECKING:
    from anchorlm.models import TurnEnds


class Home(Protocol):
    """What a sequence asks of the engine that it lives in."""

    model: CausalModel

    def fork(self, parent: LocalSequence) -> LocalSequence: ...

    def leave(self, sequence: LocalSequence) -> None: ...

    def wake(self, sequence: LocalSequence) -> None: ...

    def rest(self, sequence: LocalSequence) -> None: ...

    def advance(self, sequence: LocalSequence, logits: Tensor) -> None: ...

    async def seat_again(self, group: SequenceGroup[LocalSequence]) -> None: ...


class LocalSequence(FormedSequence):
    """A `TokenSequence` in a slot of a `LocalEngine`."""

    _engine: Home
    __slots__ = ("_engine", "_held", "_last", "_scores", "answers", "call", "closed", "full", "group", "prompt_length",
                 "row")  # fmt: skip

    def __init__(self, engine: Home, group: SequenceGroup[LocalSequence], row: SlotRow, prompt_length: int) -> None:
        self._engine = engine
        self._last: Tensor | None = None
        self._scores: dict[int, TokenScore] = {}
        self._held = Held()
        self.answers = False
        self.closed = False
        self.full = False
        self.group = group
        self.row = row
        self.prompt_length = prompt_length
        self.call: PendingCall | None = None
        group.members.append(self)

    @property
    def ids(self) -> list[int]:
        """Every token, prompt included."""
        return self.row.tokens

    def append(self, ids: Sequence[int], scores: Sequence[TokenScore] = ()) -> None:
        """Adds tokens at the end, with how likely they were, if that is to be known."""
        self._check_resting()
        if len(self.row.tokens) + len(ids) > self.group.length:
            raise RuntimeError(f"A sequence outgrew its reservation of {self.group.length} tokens.")
        self._scores.update(enumerate(scores, len(self.row.tokens)))
        if ids:
            self.row.tokens.extend(ids)
            self._last = None

    def begin(self, *, answer: bool) -> None:
        """What is there by now counts as the prompt; with `answer`, another thought ends what follows."""
        self._check_resting()
        self.prompt_length = len(self.row.tokens)
        self.answers = answer
        self._held = Held()

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end what is written."""
        model = self._engine.model
        return model.answer_stops if self.answers else model.stop_ids

    def crop(self, length: int) -> None:
        """Forgets every token from position `length` on; costs nothing."""
        self._check_resting()
        if length < 0:
            raise RuntimeError(f"A sequence cannot be cropped to {length} tokens.")
        if length < len(self.row.tokens):
            del self.row.tokens[length:]
            self._scores = {place: score for place, score in self._scores.items() if place < length}
            self.row.computed = min(self.row.computed, length)
            if self.row.embeddings is not None:
                self.row.embeddings = self.row.embeddings[:length]
            self._last = None

    def fork(self) -> LocalSequence:
        """A second sequence with the same tokens; what was computed is copied, not computed again."""
        self._check_resting()
        other = self._engine.fork(self)
        other._last = self._last
        other._scores = dict(self._scores)
        other._held = self._held.fork()
        other.answers = self.answers
        return other

    def take(self, token: int, score: TokenScore | None) -> None:
        """Notes a token that the engine chose."""
        if score is not None:
            self._scores[len(self.row.tokens)] = score
        self.row.tokens.append(token)

    @property
    def settled(self) -> int:
        """How many tokens of the response stay whatever follows: the others may begin another turn."""
        response = self.row.tokens[self.prompt_length :]
        return len(response) if self._held.closed else self._ends.settled(response)

    def end_turn(self) -> bool:
        """Cuts the response where its last token completes the beginning of another turn; whether it has ended."""
        self._check_resting()
        return self.cut()

    def cut(self) -> bool:
        """`end_turn`, for the engine. What is held to a grammar ends where that ends."""
        if self._held.form is not None and self._held.closed:
            return self._held.form.complete(self.row.tokens[self.prompt_length :])
        found = self._ends.cut(self.row.tokens[self.prompt_length :])
        if found is None:
            return False
        keep, rest = self.prompt_length + found[0], found[1]
        whole = self._scores.get(keep)
        self._scores = {place: score for place, score in self._scores.items() if place < keep}
        if whole is not None and len(rest) == 1:  # as likely as what it is a part of
            self._scores[keep] = replace(whole, token=rest[0])
        self.row.tokens[keep:] = rest
        self.row.computed = min(self.row.computed, keep)
        self._last = None
        return True

    @property
    def _ends(self) -> TurnEnds:
        model = self._engine.model
        return model.answer_ends if self.answers else model.ends

    def scores(self, start: int, end: int | None = None) -> tuple[TokenScore, ...]:
        """How likely the tokens from position `start` on were; empty unless it is known of all of them."""
        places = range(start, len(self.row.tokens) if end is None else end)
        return tuple(self._scores[place] for place in places) if all(map(self._scores.__contains__, places)) else ()

    def steer(self, steering: Steering | None) -> None:
        """Adds to the activations of this sequence from now on, or stops doing so; what it had read is read again."""
        self._check_resting()
        self.row.steering = steering
        self.row.steered_until = steering.until(self.prompt_length) if steering else 0
        self.row.computed = 0
        self._last = None

    def close(self) -> None:
        """Gives the slot back; anyone who still waits for this sequence is cancelled."""
        self._engine.leave(self)

    async def logits(self) -> Tensor:
        """Logits (V,) in float32 for the token that comes next; they may be shared with forks, so do not change them.

        Raises:
            UserError: The logits are not numbers.
        """
        self._check_resting()
        if self._last is None:
            self._last = await self._wait(PendingCall(_future()))
        return self._last

    async def activations(self, positions: Sequence[int] = (-1,), mean_from: int | None = None) -> Tensor:
        """The residual stream after every block at some positions: (layers, positions, H), float32.

        With `mean_from` it is (layers, positions, 2 H): behind each the mean over the positions from there up to it.
        Activations are not kept: the sequence is read again from the first of the positions on.

        Raises:
            DefenseError: Blocks of the model did not report their output.
            IndexError: A position beyond the sequence.
        """
        self._check_resting()
        size = len(self.row.tokens)
        if not positions or not all(-size <= position < size for position in positions):
            raise IndexError(f"Activations at {list(positions)} of a sequence of {size} tokens.")
        wanted = tuple(position % size for position in positions)
        if mean_from is not None and not 0 <= mean_from <= min(wanted):
            raise IndexError(f"A mean from {mean_from} on of what ends at {min(wanted)}.")
        first = wanted if mean_from is None else (mean_from,)
        self.row.computed = min(self.row.computed, *first)
        self._last = None
        call = PendingCall(_future(), positions=wanted, mean_from=mean_from)
        result: Tensor = await self._wait(call)
        self._last = call.known
        return result

    async def generate(self, settings: GenerationSettings) -> Generated:
        """Goes on by itself until the turn or the room ends; the tokens stay in the sequence."""
        start = len(self.row.tokens)
        call = self._generation(settings)
        if call.remaining:
            await self._wait(call)
        ids = self.row.tokens[start:]
        text = self._engine.model.vocabulary.decode(ids).decode("utf-8", errors="replace")
        return Generated(tuple(ids), text, "stop" if call.stopped else "length")

    async def stream(self, settings: GenerationSettings) -> AsyncIterator[int]:
        """As `generate`, token by token; the token that ends the turn is not among them.

        Tokens that were not settled before are among them. The model does not wait for the consumer; one who leaves
        early finds just the tokens that were taken.
        """
        end = self.prompt_length + self.settled
        call = self._generation(settings)
        self.full = not call.remaining
        if self.full:
            for held in self.row.tokens[end:]:
                yield held
            return
        call.emitted = end
        queue: asyncio.Queue[int | None] = asyncio.Queue()
        call.emit = queue.put_nowait
        call.future.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            await self._begin(call)
            while (token := await queue.get()) is not None:
                end += 1
                yield token
            await call.future
            self.full = not call.stopped
        finally:
            if self._end(call):
                self.crop(end)

    def _generation(self, settings: GenerationSettings) -> PendingCall:
        self._check_resting()
        room = self.group.length - len(self.row.tokens)
        known, self._last = self._last, None
        return PendingCall(
            _future(), sampler=Sampler(settings), remaining=min(settings.max_new_tokens, room), known=known
        )

    def _check_resting(self) -> None:
        if self.closed:
            raise RuntimeError("A sequence was used after it had been closed.")
        if self.call is not None:
            raise RuntimeError("A sequence can wait for one thing at a time, and rests only when that has come.")

    async def _wait(self, call: PendingCall) -> Any:
        try:
            await self._begin(call)
            return await call.future
        finally:
            self._end(call)

    async def _begin(self, call: PendingCall) -> None:
        self._check_resting()
        if not self.row.tokens:
            raise RuntimeError("A sequence without a token has nothing that the model could read.")
        self.call = call
        if not self.group.seated:
            await self._engine.seat_again(self.group)
        if not self.row.pending:
            if call.sampler is not None and call.known is not None:
                self._engine.advance(self, call.known)
            else:
                self.row.computed -= 1  # the last token is read again: there is nothing new to read
        if not call.future.done():
            self._engine.wake(self)

    def _end(self, call: PendingCall) -> bool:
        """Whether the sequence rests now; otherwise it was closed meanwhile, or `call` never began."""
        if self.call is not call:
            return False
        self.call = None
        call.future.cancel()
        self._engine.rest(self)
        return True


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
