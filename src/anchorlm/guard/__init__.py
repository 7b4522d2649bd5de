"""A target with a defense around it: the guard, its recipe, and what is checked before the first request."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.guard._check import Chosen, faults, gaps
    from anchorlm.guard._examine import examine
    from anchorlm.guard._findings import Findings
    from anchorlm.guard._guard import Guard
    from anchorlm.guard._probe import Door, Finding, Probe
    from anchorlm.guard._recipe import ProbeSettings, Recipe, put
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_check": "Chosen faults gaps",
            "_examine": "examine",
            "_findings": "Findings",
            "_guard": "Guard",
            "_probe": "Door Finding Probe",
            "_recipe": "ProbeSettings Recipe put",
        },
        moved={
            "anchorlm.team": "EngineSettings JudgeSettings ModelLike ScorerLike ScorerSettings Started "
            "build_judge build_scorer start_engine start_scorer",
        },
    )

__all__ = [
    "Chosen",
    "Door",
    "Finding",
    "Findings",
    "Guard",
    "Probe",
    "ProbeSettings",
    "Recipe",
    "examine",
    "faults",
    "gaps",
    "put",
]
