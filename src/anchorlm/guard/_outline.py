from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from anchorlm.defenses import Defense
from anchorlm.judging import Judge
from anchorlm.records import Access, DefenseError, GenerationSettings, Request, UserError
from anchorlm.team import EngineSettings

if TYPE_CHECKING:
    from anchorlm.engine import TokenSequence


class _ReachedError(Exception):
    """A rehearsal has come to where a model would run."""


class _Prompt:
    """Stands for a sequence that nobody has touched yet. Whoever wants to ends the rehearsal."""

    stops: frozenset[int] = frozenset()

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.prompt_length = len(ids)

    def __getattr__(self, name: str) -> Any:
        raise _ReachedError


@dataclass(slots=True)
class Outline:
    """Stands for an engine where nothing is run: defenses and judges can be prepared and rehearsed on it.

    Attributes:
        model: The checkpoint without its weights, or a model behind an endpoint.
        limits: Of the engine that it stands for.
        access: What that engine offers.
        rows: Most rows that were asked for at once.
        lacks: Why it gives no log-probabilities, and what helps.
        unread: How its activations can be had, where they cannot.
        continues: Whether it goes on with an answer that has begun.
    """

    model: Any
    limits: EngineSettings
    access: Access = Access.ALL
    rows: int = 1
    lacks: str = ""
    unread: str = ""
    continues: bool = True

    @property
    def max_rows(self) -> int:
        """See `Engine`."""
        return self.limits.max_rows

    @property
    def max_tokens(self) -> int:
        """See `Engine`."""
        return self.limits.max_tokens

    @asynccontextmanager
    async def open(self, ids: Sequence[int], *, rows: int = 1, room: int = 0) -> AsyncIterator[TokenSequence]:
        """As `LocalEngine.open`, as far as its limits go."""
        self.rows = max(self.rows, rows)
        length = min(len(ids) + room, self.model.context_length)
        if rows > self.max_rows or rows * length > self.max_tokens:
            raise UserError(
                f"This request needs {rows} rows of {length} tokens on {self.model.name}, but its engine holds "
                f"{self.max_rows} rows and {self.max_tokens} tokens: raise max_rows or max_tokens, or ask for less."
            )
        yield cast("TokenSequence", _Prompt(ids))


async def rehearse(defense: Defense, judge: Judge | None, target: Outline, generation: GenerationSettings) -> None:
    """Takes the shortest of requests to where its models would run, and its answers to the judge.

    Raises:
        UserError: A template refuses the prompt, or an engine can never hold what is asked of it.
    """
    request = Request([{"role": "user", "content": "?"}], generation)
    with suppress(_ReachedError, DefenseError):
        async for _ in defense.respond(request):
            pass
    if judge is not None:
        with suppress(_ReachedError, DefenseError):
            await judge(request.conversation, ["?"] * target.rows)
