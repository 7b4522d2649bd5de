from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from typing import Any

from anchorlm.defenses.inferenceguard._settings import InferenceGuardSettings
from anchorlm.judging import Judge, Scorer
from anchorlm.records import Artifact, DefenseError, GenerationSettings, Request, UserError
from anchorlm.team import Team

CALIBRATION = "inferenceguard-calibration"
"""The kind of artifact that `anchorlm calibrate inferenceguard` writes."""

FITTED = ("budget", "block", "gamma")
"""Settings on which the states depend that a critic has learned from."""

_BEFORE = {"guide_thought": False}
"""Settings that a pipeline without them had: what was made for it then holds for it now."""


def scorers_digest(team: Team) -> str:
    """A short digest of the cost and reward models: what a critic was fitted to."""
    return _digest([_scorer(team, "cost"), _scorer(team, "reward")])


def check_critic(artifact: Artifact, team: Team, settings: InferenceGuardSettings) -> None:
    """Whether a critic was fitted to these models, scorers and settings.

    Raises:
        UserError: It was fitted to others.
    """
    from anchorlm.models import stamp

    artifact.require("target", stamp(team.target.model))
    if artifact.settings["scorers"] != scorers_digest(team):
        raise UserError(
            "This critic was fitted with another cost or reward model: fit one with `anchorlm fit inferenceguard`."
        )
    for name in FITTED:
        if (was := artifact.settings.get(name)) != (asked := getattr(settings, name)):
            told = "an unknown value" if was is None else f"{was:g}"
            raise UserError(
                f"This critic was fitted for {name} = {told}, not {asked:g}: fit one for it, or leave the {name}."
            )


def pipeline_parts(team: Team, settings: Mapping[str, Any], artifacts: Mapping[str, str]) -> dict[str, str]:
    """Short digests of everything that decides which response a prompt gets, before any calibrated limit.

    Args:
        team: The models.
        settings: The defense's knobs, but for the folders of artifacts: what lies there is known by its own digest.
        artifacts: Ids of the artifacts that it uses.
    """
    from anchorlm.models import identity

    engines = {role: engine for role, engine in (("target", team.target), ("anchor", team.anchor)) if engine}
    models = {
        # An attacked target is another one.
        role: [identity(engine.model), getattr(getattr(engine, "runner", None), "base", None) is not None]
        for role, engine in engines.items()
    }
    parts = {
        **{f"the {role}": data for role, data in models.items()},
        "the judge": [] if team.judge is None else _known(team.judge),
        "the cost model": _scorer(team, "cost"),
        "the reward model": _scorer(team, "reward"),
        "an artifact": dict(artifacts),
        "the settings of the defense": {
            name: value for name, value in settings.items() if name not in _BEFORE or value != _BEFORE[name]
        },
        # These decide how large a search may be.
        "the limits of an engine": [[engine.max_rows, engine.max_tokens] for engine in engines.values()],
        "the version of AnchorLM": version("anchorlm"),
    }
    return {name: _digest(data) for name, data in parts.items()}


def pipeline_digest(parts: Mapping[str, str]) -> str:
    """All parts in one."""
    return _digest(dict(parts))


def generation_data(generation: GenerationSettings) -> dict[str, Any]:
    """The settings of generation that a calibration holds for. A seed is part of the draw, and being told how likely
    the tokens are changes none of them.
    """
    return {name: value for name, value in generation.identity().items() if name not in ("seed", "logprobs")}


def _scorer(team: Team, kind: str) -> list[Any]:
    scorer = team.cost if kind == "cost" else team.reward
    return [] if scorer is None else _known(scorer)


def _known(reader: Judge | Scorer) -> list[Any]:
    """What a judge or scorer is known by. The name of one whose weights are known says where they lie: no matter."""
    settings = dict(reader.settings)
    placed = not settings.keys().isdisjoint(("weights", "model", "judge"))
    return [reader.name.partition(":")[0] if placed else reader.name, settings]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The limit that a calibration allows, and what it holds for.

    Attributes:
        limit: The highest cost at which a response is emitted. Infinite without a calibration.
        generation: How tokens were chosen when it was made.
    """

    limit: float = inf
    generation: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: str, parts: Mapping[str, str]) -> Calibrated:
        """The calibration in a folder, for this very pipeline.

        Raises:
            UserError: There is none, or it was made with another pipeline.
        """
        artifact = Artifact.load(folder, CALIBRATION)
        if artifact.settings["pipeline"] != pipeline_digest(parts):
            was = artifact.settings.get("parts", {})
            other = sorted(name for name in {*was, *parts} if was.get(name) != parts.get(name))
            raise UserError(
                f"The calibration in {folder!r} was made with another pipeline ({', '.join(other)} changed): calibrate "
                "this one with `anchorlm calibrate inferenceguard`, or leave it out."
            )
        limit = artifact.settings["limit"]
        return cls(inf if limit is None else limit, artifact.settings["generation"])

    def check(self, request: Request, changed: bool) -> None:
        """Refuses a request that is answered otherwise than the calibration's were.

        Raises:
            UserError: Knobs or generation settings differ.
        """
        if self.generation is None:
            return
        given = generation_data(request.generation)
        names = {*given, *self.generation}
        other = {name for name in names if self.generation.get(name) != given.get(name)}
        other |= {"stop"} if request.stops else set()
        if other or changed:
            what = ", ".join(sorted(other)) or "knobs of the defense"
            raise UserError(
                f"The calibration does not hold for this request, because its {what} differ: leave them as they were, "
                "or start a guard without the calibration."
            )


def admit(cost: float, limit: float) -> bool:
    """The hard gate: whether a whole text may be emitted.

    Args:
        cost: What the cost model says of this very text.
        limit: The most that it may cost.

    Raises:
        DefenseError: The cost is not a number.
    """
    if cost != cost:
        raise DefenseError("The cost model returned NaN. Check its output.")
    return cost <= limit
