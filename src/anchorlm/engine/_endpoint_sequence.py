from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Literal, Protocol

from torch import Tensor

from anchorlm.engine._endpoint_reading import Written
from anchorlm.engine._protocol import Generated
from anchorlm.engine._steering import Steering
from anchorlm.models import CausalModel, EndpointModel, TurnEnds
from anchorlm.records import GenerationSettings, TokenScore, UserError


class Far(Protocol):
    """What asks the server."""

    @property
    def model(self) -> EndpointModel | CausalModel:
        """How it writes conversations, and its tokens."""
        ...

    async def distribution(self, ids: Sequence[int], prompt_length: int) -> tuple[Tensor, float]:
        """See `EndpointEngine`."""
        ...

    async def completed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int
    ) -> tuple[Written, Literal["stop", "length"]]:
        """See `EndpointEngine`."""
        ...

    def streamed(self, ids: Sequence[int], generation: GenerationSettings, room: int) -> AsyncGenerator[Written, None]:
        """See `EndpointEngine`."""
        ...

    def steered(self, steering: Steering | None, prompt_length: int) -> Far:
        """The same for a sequence that is steered from now on, or no longer.

        Raises:
            UserError: Activations are out of reach there.
        """
        ...

    async def activations(self, ids: Sequence[int], positions: Sequence[int], mean_from: int | None) -> Tensor:
        """See `TokenSequence`.

        Raises:
            UserError: Activations are out of reach there.
        """
        ...


class EndpointSequence:
    """A `TokenSequence` on another server: it is only here that it has a state. The server gets all of it each time.

    Attributes:
        ids: Every token, prompt included.
        prompt_length: How many of `ids` are the prompt.
        answers: Whether another thought ends what follows.
        unnamed: The mass of the last distribution that the server did not name.
        full: See `TokenSequence`.
    """

    __slots__ = ("_engine", "_last", "_limit", "_scores", "answers", "closed", "full", "ids", "prompt_length",
                 "unnamed")  # fmt: skip

    def __init__(self, engine: Far, ids: Sequence[int], prompt_length: int, limit: int) -> None:
        self._engine = engine
        self._limit = limit
        self._last: Tensor | None = None
        self._scores: dict[int, TokenScore] = {}
        self.answers = False
        self.closed = False
        self.ids = list(ids)
        self.prompt_length = prompt_length
        self.unnamed = 0.0
        self.full = False

    def append(self, ids: Sequence[int], scores: Sequence[TokenScore] = ()) -> None:
        """See `TokenSequence`."""
        self._check()
        if len(self.ids) + len(ids) > self._limit:
            raise RuntimeError(f"A sequence outgrew its reservation of {self._limit} tokens.")
        self._scores.update(enumerate(scores, len(self.ids)))
        if ids:
            self.ids.extend(ids)
            self._last = None

    def crop(self, length: int) -> None:
        """See `TokenSequence`."""
        self._check()
        if length < 0:
            raise RuntimeError(f"A sequence cannot be cropped to {length} tokens.")
        if length < len(self.ids):
            del self.ids[length:]
            self._scores = {place: score for place, score in self._scores.items() if place < length}
            self._last = None

    def fork(self) -> EndpointSequence:
        """See `TokenSequence`; the server keeps what it has read of the shared beginning, if it can."""
        self._check()
        other = EndpointSequence(self._engine, self.ids, self.prompt_length, self._limit)
        other._last, other.unnamed = self._last, self.unnamed
        other._scores = dict(self._scores)
        other.answers = self.answers
        return other

    def begin(self, *, answer: bool) -> None:
        """See `TokenSequence`."""
        self._check()
        self.prompt_length = len(self.ids)
        self.answers = answer

    @property
    def stops(self) -> frozenset[int]:
        """See `TokenSequence`."""
        model = self._engine.model
        return model.answer_stops if self.answers else model.stop_ids

    @property
    def _ends(self) -> TurnEnds:
        model = self._engine.model
        return model.answer_ends if self.answers else model.ends

    @property
    def settled(self) -> int:
        """See `TokenSequence`."""
        return self._ends.settled(self.ids[self.prompt_length :])

    def end_turn(self) -> bool:
        """See `TokenSequence`."""
        self._check()
        found = self._ends.cut(self.ids[self.prompt_length :])
        if found is None:
            return False
        keep, rest = self.prompt_length + found[0], found[1]
        whole = self._scores.get(keep)
        self._scores = {place: score for place, score in self._scores.items() if place < keep}
        if whole is not None and len(rest) == 1:
            self._scores[keep] = replace(whole, token=rest[0])
        self.ids[keep:] = rest
        self._last = None
        return True

    def scores(self, start: int, end: int | None = None) -> tuple[TokenScore, ...]:
        """See `TokenSequence`."""
        places = range(start, len(self.ids) if end is None else end)
        return tuple(self._scores[place] for place in places) if all(map(self._scores.__contains__, places)) else ()

    def steer(self, steering: Steering | None) -> None:
        """See `TokenSequence`.

        Raises:
            UserError: Activations are out of reach there.
        """
        self._check()
        self._engine = self._engine.steered(steering, self.prompt_length)
        self._last = None

    async def activations(self, positions: Sequence[int] = (-1,), mean_from: int | None = None) -> Tensor:
        """See `TokenSequence`.

        Raises:
            UserError: Activations are out of reach there.
        """
        self._check()
        return await self._engine.activations(self.ids, positions, mean_from)

    def formed(self, logits: Tensor, generation: GenerationSettings) -> Tensor:
        """See `TokenSequence`.

        Raises:
            UserError: A response format is asked for: the server alone knows how far its grammar is.
        """
        if generation.response_format is not None:
            raise self._not_whole()
        return logits

    def forced(self, generation: GenerationSettings) -> bool:
        """See `TokenSequence`."""
        return False

    def close(self) -> None:
        """See `TokenSequence`."""
        self.closed = True

    async def logits(self) -> Tensor:
        """Log-probabilities (V,) of the tokens that the server names; all others have none.

        Raises:
            UserError: The server gives no log-probabilities.
            DefenseError: It gave none this time, or no answer.
        """
        self._check()
        if self._last is None:
            self._last, self.unnamed = await self._engine.distribution(self.ids, self.prompt_length)
        return self._last

    async def generate(self, settings: GenerationSettings) -> Generated:
        """See `TokenSequence`."""
        self._check_whole(settings)
        start, ended = len(self.ids), False
        if room := self._room(settings):
            written, finish = await self._engine.completed(self.ids, settings, room)
            ended = self._take(written, settings) or finish == "stop"
        ids = self.ids[start:]
        text = self._engine.model.vocabulary.decode(ids).decode("utf-8", errors="replace")
        return Generated(tuple(ids), text, "stop" if ended else "length")

    async def stream(self, settings: GenerationSettings) -> AsyncIterator[int]:
        """See `TokenSequence`."""
        self._check_whole(settings)
        told = self.prompt_length + self.settled
        room = self._room(settings)
        self.full = not room
        try:
            if room:
                parts = self._engine.streamed(self.ids, settings, room)
                async with aclosing(parts):
                    async for written in parts:
                        ended = self._take(written, settings)
                        self.full = written.full and not ended
                        while told < self.prompt_length + self.settled:
                            told += 1
                            yield self.ids[told - 1]
                        if ended:
                            break
            while told < len(self.ids):
                told += 1
                yield self.ids[told - 1]
        finally:
            if not self.closed:
                self.crop(told)

    def _take(self, written: Written, settings: GenerationSettings) -> bool:
        """Takes tokens up to where the turn ends; whether it does."""
        self._last = None
        wanted = settings.logprobs
        # Where the tokens of a server are not known, what it wrote has ids of our own.
        stops = self.stops.union(settings.stop_token_ids if self._engine.model.spelled else ())
        for place, token in enumerate(written.ids):
            if token in stops:
                return True
            if written.scores and wanted is not None:
                score = written.scores[place]
                self._scores[len(self.ids)] = replace(score, top=score.top[:wanted])
            self.ids.append(token)
            if settings.response_format is None and self.end_turn():
                return True
        return written.ended

    def _room(self, settings: GenerationSettings) -> int:
        return max(0, min(settings.max_new_tokens, self._limit - len(self.ids)))

    def _check_whole(self, settings: GenerationSettings) -> None:
        self._check()
        if settings.response_format is not None and len(self.ids) > self.prompt_length:
            raise self._not_whole()

    def _not_whole(self) -> UserError:
        return UserError(
            f"The server of {self._engine.model.name} holds only whole answers to a response_format: load the model "
            "here, or use a defense that lets it write the whole answer."
        )

    def _check(self) -> None:
        if self.closed:
            raise RuntimeError("A sequence was used after it had been closed.")
