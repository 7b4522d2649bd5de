"""What stands for a model becomes an engine, a judge or a scorer. Together they are the team of a guard."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.team._build import build_judge, build_scorer
    from anchorlm.team._code import allow_code, code_allowed, require_leave
    from anchorlm.team._limits import in_time, timed
    from anchorlm.team._settings import EngineSettings, FirstJudgeSettings, JudgeSettings, ScorerSettings
    from anchorlm.team._start import (
        JudgeLike,
        ModelLike,
        Progress,
        ScorerLike,
        Started,
        start_engine,
        start_judge,
        start_scorer,
    )
    from anchorlm.team._team import Needs, Offer, Team
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_build": "build_judge build_scorer",
            "_code": "allow_code code_allowed require_leave",
            "_limits": "in_time timed",
            "_settings": "EngineSettings FirstJudgeSettings JudgeSettings ScorerSettings",
            "_start": "JudgeLike ModelLike Progress ScorerLike Started start_engine start_judge start_scorer",
            "_team": "Needs Offer Team",
        },
    )

__all__ = [
    "EngineSettings",
    "FirstJudgeSettings",
    "JudgeLike",
    "JudgeSettings",
    "ModelLike",
    "Needs",
    "Offer",
    "Progress",
    "ScorerLike",
    "ScorerSettings",
    "Started",
    "Team",
    "allow_code",
    "build_judge",
    "build_scorer",
    "code_allowed",
    "in_time",
    "require_leave",
    "start_engine",
    "start_judge",
    "start_scorer",
    "timed",
]
