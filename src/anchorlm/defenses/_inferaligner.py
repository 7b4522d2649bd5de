from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from anchorlm.defenses._base import Defense, DefenseSettings, refuse, speak
from anchorlm.engine import Positions
from anchorlm.records import Access, Decision, Event, Folder, Request, UserError
from anchorlm.steering import Readers, Units, Vector, answer_of
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.steering import Aligner


class SteeringSettings(DefenseSettings):
    """What every defense that steers by a fitted artifact can be told; None: what was calibrated."""

    artifact: Folder = Field(description="Folder of the artifact of `anchorlm fit inferaligner`, for this very target.")
    alpha: float | None = Field(default=None, ge=0, le=100, description="Strength of the shift (see units).")
    layers: tuple[int, ...] | None = Field(default=None, description="Blocks after which the stream is shifted.")
    positions: Positions | None = Field(default=None, description="Shift the prompt's positions, or all.")


class InferAlignerSettings(SteeringSettings):
    """The knobs of InferAligner (arXiv 2401.11206)."""

    bias: float | None = Field(default=None, description="b: the larger, the more often the gate "
                               "opens; 1 is half the distance between harmless and harmful prompts.")  # fmt: skip
    gate: Literal["auto", "open", "closed"] = Field(default="auto", description="Let the prompt decide, or decide.")
    reader: Readers = Field(default="target", description="Whose activations the gate reads: the target's own; those "
                            "of the anchor, where the target cannot tell harm; or both, on average.")  # fmt: skip
    gate_layers: tuple[int, ...] | None = Field(default=None, description="Blocks whose scores the gate averages.")
    vector: Vector = Field(default="anchor", description="The anchor's vectors; or, as controls, the target's own or "
                           "random ones of equal length.")  # fmt: skip
    units: Units = Field(default="natural", description="Alpha in natural lengths of the vectors, or absolute.")
    answer: Literal["steer", "refuse"] | None = Field(default=None, description="Where the gate opens: the steered "
                               "model's answer, or the fixed refusal.")  # fmt: skip

    @model_validator(mode="after")
    def _in_units(self) -> Self:
        if self.units == "absolute" and self.alpha is None:
            raise ValueError('with units = "absolute" give alpha: the calibrated one is in natural lengths')
        return self


class SteeringDefense(Defense):
    """A defense that steers the target by a fitted artifact.

    Raises:
        UserError: No artifact, one that was fitted on another model, or layers that the target does not have.
    """

    needs: ClassVar[Needs] = Needs(target=Access.ACTIVATIONS)
    settings_type: ClassVar[type[DefenseSettings]] = SteeringSettings
    artifacts: ClassVar[Mapping[str, str]] = {"artifact": "inferaligner"}

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        self.aligner = self._load()
        self.check(self.settings)

    def _load(self) -> Aligner:
        from anchorlm.steering import Aligner

        return Aligner.load(self.settings.artifact, self.target)

    async def start(self) -> None:
        """See `Defense.start`: whether activations can be read at all."""
        from anchorlm.steering import check_activations

        await check_activations(self.target)
        if self.team.anchor is not None:
            await check_activations(self.team.anchor)

    def check(self, settings: Any) -> None:
        """See `Defense.check`: whether the target has these layers."""
        if settings.layers is not None:
            self.aligner.check_layers(settings.layers)


class InferAligner(SteeringDefense):
    """Where the target's own activations show harm (or the anchor's do), vectors of the anchor are added to them."""

    name: ClassVar[str] = "inferaligner"
    needs: ClassVar[Needs] = Needs(target=Access.ACTIVATIONS, anchor=Access.ACTIVATIONS, optional=("anchor",))
    settings_type: ClassVar[type[DefenseSettings]] = InferAlignerSettings
    fixed: ClassVar[tuple[str, ...]] = ("reader",)

    def _load(self) -> Aligner:
        from anchorlm.steering import Aligner

        mine: InferAlignerSettings = self.settings
        if (mine.reader != "target") != (self.team.anchor is not None):
            raise UserError(
                'With reader = "anchor" or "both" inferaligner needs the second reader of its artifact as the anchor, '
                'and with "target" it has no use for one: give both or neither.'
            )
        return Aligner.load(mine.artifact, self.target, self.team.anchor)

    def check(self, settings: Any) -> None:
        """See `Defense.check`: whether those who read have these layers."""
        super().check(settings)
        if settings.gate_layers is not None:
            for reader in self.aligner.gates:
                if settings.reader in (reader, "both"):
                    self.aligner.check_layers(settings.gate_layers, reader)

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Reads the gate on the unsteered prompt; only if it opens the prompt is read again, shifted."""
        settings: InferAlignerSettings = self.settings_for(request)
        prompt = self.target.model.encode(request.prompt)
        async with self.target.open(prompt, room=request.generation.max_new_tokens) as row:
            opened = settings.gate == "open"
            if settings.gate == "auto":
                reading = await self.aligner.read(
                    request.messages,
                    settings.reader,
                    self.target,
                    None if self.team.anchor is None else self.anchor_for(request),
                    row=row,
                    bias=settings.bias,
                    layers=settings.gate_layers,
                )
                opened = reading.open
                yield Decision("gate", reading.data)
            else:
                yield Decision("gate", {"open": opened, "why": f"the request says {settings.gate}"})
            if opened and self._answer(settings, request) == "refuse":
                for event in refuse(settings.refusal, "the gate opened", prompt_tokens=len(prompt)):
                    yield event
                return
            if opened:
                steering = self.aligner.steering(
                    alpha=settings.alpha,
                    layers=settings.layers,
                    positions=settings.positions,
                    vector=settings.vector,
                    units=settings.units,
                )
                row.steer(steering)
                yield Decision("steer", {"layers": list(steering.edits), "alpha": steering.strength})
            async for event in speak(row, self.target, request.generation):
                yield event

    def _answer(self, settings: InferAlignerSettings, request: Request) -> str:
        """As calibrated, whatever the other knobs: a request for another strength must not do away with the refusal.

        A shift is calibrated on answers that the target begins itself. Where the request may have begun one, in a raw
        text or in a last turn of the assistant's, nothing shows that it refuses, so that the fixed refusal is given.
        """
        turns, calibrated = request.messages, self.aligner.artifact.settings
        if isinstance(turns, str) or turns[-1]["role"] != "user":
            return "refuse"
        if settings.answer is not None:
            return settings.answer
        alone = all(turn["role"] != "assistant" for turn in turns) or calibrated.get("talk_answer", "refuse") == "steer"
        return answer_of(self.aligner.artifact) if alone else "refuse"
