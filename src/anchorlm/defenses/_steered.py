from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from anchorlm.defenses._base import DefenseSettings
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.defenses.inferaligner import SteeringDefense, SteeringSettings
from anchorlm.records import Access, Decision, Event, Request
from anchorlm.team import Needs

if TYPE_CHECKING:
    from anchorlm.engine import Steering, TokenSequence


class _Steered(SteeringDefense):
    """A target that is steered as a subclass says, and then goes on by itself."""

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Steers, or not, and speaks."""
        thinking, settings = Thinking(self.target, request), self.settings_for(request)
        room = request.generation.max_new_tokens + thinking.room
        async with self.target.open(thinking.prompt, room=room) as row:
            async with thinking.as_fitted(row) as plain:
                steering, decision = await self._steering(plain, request, settings)
            yield decision
            if steering is not None:
                row.steer(steering)
            async for event in said(thinking, row, self.target, settings.refusal):
                yield event

    @abstractmethod
    async def _steering(self, row: TokenSequence, request: Request, settings: Any) -> tuple[Steering | None, Decision]:
        """How to steer this prompt, and what to say of it in the trace."""


class CAA(_Steered):
    """Contrastive activation addition (arXiv 2312.06681): the same vectors with no gate, the always-on control."""

    name: ClassVar[str] = "caa"

    async def _steering(
        self, row: TokenSequence, request: Request, settings: SteeringSettings
    ) -> tuple[Steering, Decision]:
        steering = self.aligner.steering(alpha=settings.alpha, layers=settings.layers, positions=settings.positions)
        return steering, Decision("steer", {"layers": list(steering.edits), "alpha": steering.strength})


class CASTSettings(SteeringSettings):
    """The knobs of conditional activation steering (arXiv 2409.05907)."""

    threshold: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="From which cosine on the prompt is steered. By default the one with the best F1 on held-out "
        "prompts.",
    )


class CAST(_Steered):
    """Conditional activation steering: the cosine with a condition vector decides."""

    name: ClassVar[str] = "cast"
    settings_type: ClassVar[type[DefenseSettings]] = CASTSettings

    async def _steering(
        self, row: TokenSequence, request: Request, settings: CASTSettings
    ) -> tuple[Steering | None, Decision]:
        reading = await self.aligner.read_cosine(request.plain, self.target, row=row, threshold=settings.threshold)
        if not reading.open and (turn := request.schema_turn):
            other = await self.aligner.read_cosine(turn, self.target, threshold=settings.threshold)
            reading = other if other.open else reading
        steering = self.aligner.steering(alpha=settings.alpha, layers=settings.layers, positions=settings.positions)
        return (steering if reading.open else None), Decision("gate", reading.data)


class AlphaSteer(_Steered):
    """Null-space constrained steering (arXiv 2506.07022): a matrix that leaves harmless activations as they are."""

    name: ClassVar[str] = "alphasteer"
    needs: ClassVar[Needs] = Needs(target=Access.EDITS)

    async def _steering(
        self, row: TokenSequence, request: Request, settings: SteeringSettings
    ) -> tuple[Steering, Decision]:
        steering = self.aligner.null_space_steering(
            alpha=settings.alpha, layers=settings.layers, positions=settings.positions
        )
        return steering, Decision("steer", {"layers": list(steering.edits), "alpha": steering.strength})
