"""The front hall: a target with a defense around it."""

from anchorlm.guard._check import gaps
from anchorlm.guard._guard import Guard
from anchorlm.guard._judges import build_judge, build_scorer
from anchorlm.guard._probe import Door, Finding, Probe, ProbeSettings
from anchorlm.guard._recipe import EngineSettings, JudgeSettings, Recipe, ScorerSettings, put
from anchorlm.guard._start import ModelLike, ScorerLike, Started, start_engine, start_scorer

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
    "build_judge",
    "build_scorer",
    "gaps",
    "put",
    "start_engine",
    "start_scorer",
]
