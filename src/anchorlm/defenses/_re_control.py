from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from anchorlm.defenses._base import Defense, DefenseSettings
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.records import Access, Artifact, Decision, Event, Folder, FormatSupport, Request
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.defenses.inferenceguard import Critic


class REControlSettings(DefenseSettings):
    """The knobs of RE-Control (arXiv 2406.05954)."""

    critic: Folder = Field(description="Folder of the artifact of `anchorlm fit inferenceguard`, for this very target.")
    steps: int = Field(default=30, ge=0, le=1000, description="Steps of gradient ascent at each token. 0: none.")
    rate: float = Field(default=0.1, ge=0, description="Size of a step, in standard deviations of each activation.")
    weight: float = Field(
        default=0.0,
        ge=0,
        description="How much the log-probability of ending within budget counts, next to the value. 0 is RE-Control "
        "as published.",
    )


class Ascent:
    """What is added to the stream after the last block: gradient ascent on the value of its state (section 4.3).

    Args:
        critic: Values states.
        left: z, the budget left, which the critic reads, too.
        settings: Steps, their size, and what is climbed.
    """

    def __init__(self, critic: Critic, left: float, settings: REControlSettings) -> None:
        self._critic, self._left, self._settings = critic, left, settings

    def __call__(self, stream: Tensor) -> Tensor:
        """The change (B, T, H) of a stream; rows are aligned to the right, and only the last position is read on."""
        import torch

        change = torch.zeros_like(stream)
        change[:, -1] = self.climb(stream[:, -1].float()).to(stream)
        return change

    def climb(self, states: Tensor) -> Tensor:
        """What to add to last hidden states (B, H) so that they are worth more."""
        critic = self._critic = self._critic.to(states.device)
        start = critic.standardized(states, states.new_full((len(states),), self._left))
        inputs = start
        for _ in range(self._settings.steps):
            slope = critic.slope(inputs, self._settings.weight)
            slope[:, -1] = 0  # the budget left is no matter of choice
            inputs = inputs + self._settings.rate * slope
        return ((inputs - start) * critic.scale)[:, :-1]


class REControl(Defense):
    """Representation editing (RE-Control, arXiv 2406.05954): at every token the last hidden state climbs the value."""

    name: ClassVar[str] = "re_control"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    needs: ClassVar[Needs] = Needs(target=Access.EDITS)
    settings_type: ClassVar[type[DefenseSettings]] = REControlSettings
    artifacts: ClassVar[Mapping[str, str]] = {"critic": "inferenceguard"}

    def __init__(self, team: Team, **settings: Any) -> None:
        from anchorlm.defenses.inferenceguard import Critic
        from anchorlm.models import stamp

        super().__init__(team, **settings)
        artifact = Artifact.load(self.settings.critic, "inferenceguard")
        artifact.require("target", stamp(self.target.model))
        self._critic = Critic.of(artifact.tensors, artifact.settings["threshold"])
        self._budget = float(artifact.settings["budget"])

    async def start(self) -> None:
        """See `Defense.start`: whether the last block can be reached at all."""
        from anchorlm.steering import check_activations

        await check_activations(self.target)

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Speaks, while a hook on the last block edits each state before a token is chosen by it."""
        from anchorlm.engine import Steering

        settings: REControlSettings = self.settings_for(request)
        last = len(self.target.model.blocks) - 1
        ascent = Ascent(self._critic, self._budget, settings)
        yield Decision("steer", {"layers": [last], "steps": settings.steps, "rate": settings.rate})
        thinking = Thinking(self.target, request)
        async with self.target.open(thinking.prompt, room=request.generation.max_new_tokens + thinking.room) as row:
            if settings.steps and settings.rate:
                row.steer(Steering({last: ascent}))
            async for event in said(thinking, row, self.target, settings.refusal):
                yield event
