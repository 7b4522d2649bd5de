from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from anchorlm.engine._steering import Steering
from anchorlm.models import CausalModel
from anchorlm.records import Access, GenerationSettings, TokenScore


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote.

    Attributes:
        token_ids: Without the prompt and without the token that ended the turn.
        text: The same as text.
        finish_reason: `stop` if the model ended its turn, `length` if it ran out of room.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]


class TokenSequence(Protocol):
    """One sequence on one model, from the view of the one request that owns it.

    Reading is lazy: `append` and `crop` only note what is wanted, and the next call that needs the model runs one
    forward over what is new, together with everything else that waits at that moment.
    """

    @property
    def ids(self) -> list[int]:
        """Every token, prompt included."""
        ...

    @property
    def prompt_length(self) -> int:
        """How many of `ids` are the prompt."""
        ...

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end what is written."""
        ...

    def begin(self, *, answer: bool) -> None:
        """What is there by now counts as the prompt; with `answer`, another thought ends what follows."""
        ...

    @property
    def settled(self) -> int:
        """How many tokens of the response stay whatever follows: the others may begin another turn."""
        ...

    @property
    def full(self) -> bool:
        """Whether the last `stream` ended because the answer was as long as it may be, and not by itself."""
        ...

    def end_turn(self) -> bool:
        """Cuts the response where its last token completes the beginning of another turn; whether it has ended.

        A response that is held to a response format ends where its grammar ends.
        """
        ...

    def append(self, ids: Sequence[int], scores: Sequence[TokenScore] = ()) -> None:
        """Adds tokens at the end, with how likely they were, if that is to be known."""
        ...

    def scores(self, start: int, end: int | None = None) -> tuple[TokenScore, ...]:
        """How likely the tokens from position `start` on were; empty unless it is known of all of them."""
        ...

    def crop(self, length: int) -> None:
        """Forgets every token from position `length` on."""
        ...

    def fork(self) -> TokenSequence:
        """A second sequence with the same tokens; what was computed is copied, not computed again."""
        ...

    def steer(self, steering: Steering | None) -> None:
        """Adds to the activations of this sequence from now on, forks included, or stops doing so."""
        ...

    def close(self) -> None:
        """Gives the row back; the sequence is of no use afterwards."""
        ...

    async def logits(self) -> Tensor:
        """Logits (V,) in float32 for the token that comes next."""
        ...

    def formed(self, logits: Tensor, generation: GenerationSettings) -> Tensor:
        """Logits (V,) under which nothing is chosen but what may come next in the response format of a request.

        Anyone who chooses tokens from `logits` without `generate` and `stream` asks for this first.
        """
        ...

    def forced(self, generation: GenerationSettings) -> bool:
        """Whether the response format of a request leaves no choice of what the next token begins with."""
        ...

    async def activations(self, positions: Sequence[int] = (-1,), mean_from: int | None = None) -> Tensor:
        """The residual stream after every block at some positions: (layers, positions, H).

        With `mean_from` it is (layers, positions, 2 H): behind each the mean over the positions from there up to it.
        """
        ...

    async def generate(self, settings: GenerationSettings) -> Generated:
        """Goes on by itself until the turn or the room ends; the tokens stay in the sequence."""
        ...

    def stream(self, settings: GenerationSettings) -> AsyncIterator[int]:
        """As `generate`, token by token, from the first that was not settled; what ends the turn is not among them."""
        ...


class Engine(Protocol):
    """Sequences running on one model."""

    @property
    def model(self) -> CausalModel:
        """The checkpoint."""
        ...

    @property
    def access(self) -> Access:
        """How much of the model is within reach."""
        ...

    @property
    def max_rows(self) -> int:
        """Most sequences at once."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most key/value positions in memory, rows times the longest row."""
        ...

    def open(self, ids: Sequence[int], *, rows: int = 1, room: int = 0) -> AbstractAsyncContextManager[TokenSequence]:
        """A sequence that starts with `ids`, closed with all its forks when the context ends.

        Args:
            ids: The prompt.
            rows: How many sequences there will be at most, forks included.
            room: How many tokens will be added at most.
        """
        ...
