"""The front hall: a target with a defense around it."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.guard._check import faults, gaps
    from anchorlm.guard._code import allow_code, require_leave
    from anchorlm.guard._guard import Guard
    from anchorlm.guard._judges import build_judge, build_scorer
    from anchorlm.guard._probe import Door, Finding, Probe, ProbeSettings
    from anchorlm.guard._recipe import EngineSettings, JudgeSettings, Recipe, ScorerSettings, put
    from anchorlm.guard._start import ModelLike, ScorerLike, Started, start_engine, start_scorer
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_check": "faults gaps",
            "_code": "allow_code require_leave",
            "_guard": "Guard",
            "_judges": "build_judge build_scorer",
            "_probe": "Door Finding Probe ProbeSettings",
            "_recipe": "EngineSettings JudgeSettings Recipe ScorerSettings put",
            "_start": "ModelLike ScorerLike Started start_engine start_scorer",
        },
    )

__all__ = [
    "Door",
    "EngineSettings",
    "Finding",
    "Guard",
    "JudgeSettings",
    "ModelLike",
    "Probe",
    "ProbeSettings",
    "Recipe",
    "ScorerLike",
    "ScorerSettings",
    "Started",
    "allow_code",
    "build_judge",
    "build_scorer",
    "faults",
    "gaps",
    "put",
    "require_leave",
    "start_engine",
    "start_scorer",
]
