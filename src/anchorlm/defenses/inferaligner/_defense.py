from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from anchorlm.defenses._base import Defense, DefenseSettings, refuse
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.defenses.inferaligner._settings import InferAlignerSettings, SteeringSettings
from anchorlm.records import Access, Decision, Event, FormatSupport, Messages, Request, UserError
from anchorlm.steering import answer_of
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.defenses.inferaligner._aligner import Aligner
    from anchorlm.engine import TokenSequence
    from anchorlm.steering import Reading


class SteeringDefense(Defense):
    """A defense that steers the target by a fitted artifact.

    Raises:
        UserError: No artifact, one that was fitted on another model, or layers that the target does not have.
    """

    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    needs: ClassVar[Needs] = Needs(target=Access.ACTIVATIONS)
    settings_type: ClassVar[type[DefenseSettings]] = SteeringSettings
    artifacts: ClassVar[Mapping[str, str]] = {"artifact": "inferaligner"}

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        self.aligner = self._load()
        self.check(self.settings)

    def _load(self) -> Aligner:
        from anchorlm.defenses.inferaligner._aligner import Aligner

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
        from anchorlm.defenses.inferaligner._aligner import Aligner

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

    def vouches(self, settings: Any) -> bool:
        """See `Defense`: a gate that refuses has judged the request, whatever the answer would be; a shift has not."""
        mine: InferAlignerSettings = settings
        answer = mine.answer if mine.answer is not None else answer_of(self.aligner.artifact)
        return mine.gate == "auto" and answer == "refuse"

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Reads the gate on the unsteered prompt; only if it opens the prompt is read again, shifted."""
        settings: InferAlignerSettings = self.settings_for(request)
        thinking = Thinking(self.target, request)
        prompt, room = thinking.prompt, request.generation.max_new_tokens + thinking.room
        async with self.target.open(prompt, room=room) as row:
            opened = settings.gate == "open"
            if settings.gate == "auto":
                async with thinking.as_fitted(row) as plain:  # before the thought, in which the request may be weighed
                    reading = await self._read(request, request.plain, settings, plain)
                if not reading.open and request.schema_turn:
                    other = await self._read(request, request.schema_turn, settings)
                    reading = other if other.open else reading
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
            async for event in said(thinking, row, self.target, settings.refusal):
                yield event

    async def _read(
        self,
        request: Request,
        messages: Messages | str,
        settings: InferAlignerSettings,
        row: TokenSequence | None = None,
    ) -> Reading:
        """What the gate says of what a client wrote."""
        return await self.aligner.read(
            messages,
            settings.reader,
            self.target,
            None if self.team.anchor is None else self.anchor_for(request),
            row=row,
            bias=settings.bias,
            layers=settings.gate_layers,
        )

    def _answer(self, settings: InferAlignerSettings, request: Request) -> str:
        """As calibrated, whatever the other knobs: a request for another strength must not do away with the refusal.

        A shift is calibrated on answers that the target begins itself. Where the request may have begun one, in a raw
        text, in a last turn of the assistant's or by a response format, nothing shows that it refuses, so the fixed
        refusal is given.
        """
        turns, calibrated = request.messages, self.aligner.artifact.settings
        begun = request.generation.response_format is not None
        if begun or isinstance(turns, str) or turns[-1]["role"] != "user":
            return "refuse"
        if settings.answer is not None:
            return settings.answer
        alone = all(turn["role"] != "assistant" for turn in turns) or calibrated.get("talk_answer", "refuse") == "steer"
        return answer_of(self.aligner.artifact) if alone else "refuse"
