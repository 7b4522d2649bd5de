from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from anchorlm.judging import CallableJudge, CallableScorer, Judge, JudgeScorer, Score, Scorer
from anchorlm.models import EndpointSettings, ModelSettings, VLLMSettings, model_settings
from anchorlm.records import UserError
from anchorlm.team._build import build_judge, build_scorer
from anchorlm.team._settings import EngineSettings, JudgeSettings, ScorerSettings

if TYPE_CHECKING:
    from anchorlm.engine import EndpointEngine, Engine, LocalEngine, VLLMEngine
    from anchorlm.models import CausalModel

ModelLike: TypeAlias = "str | Path | Mapping[str, Any] | ModelSettings | CausalModel | Engine"
Started: TypeAlias = "list[tuple[ModelSettings, EngineSettings, LocalEngine | EndpointEngine | VLLMEngine]]"
"""Engines by what they were started with."""

Progress: TypeAlias = "Callable[[str, int, int], None]"
"""Told what is done, how much of it, and how much there is."""

JudgeLike: TypeAlias = "Judge | JudgeSettings | Mapping[str, Any] | str | Path | CausalModel | Engine | Score"
ScorerLike: TypeAlias = "Scorer | Judge | ScorerSettings | Mapping[str, Any] | str | Path | Score"


def start_engine(model: ModelLike, limits: EngineSettings, started: Started) -> Engine:
    """An engine for whatever stands for a model. Equal settings share one, other limits share the weights."""
    if isinstance(model, str | Path | Mapping):
        model = model_settings(dict(model)) if isinstance(model, Mapping) else {"path": str(model)}
        model = model if isinstance(model, ModelSettings) else ModelSettings.parse(model, where="a model")
    if isinstance(model, EndpointSettings | VLLMSettings):
        return _start_elsewhere(model, limits, started)
    from anchorlm.engine import LocalEngine  # settings that do not fit are told before it is loaded
    from anchorlm.models import CausalModel, prepack

    if isinstance(model, CausalModel):
        return LocalEngine(model, **limits.model_dump())
    if not isinstance(model, ModelSettings):
        if not hasattr(model, "access"):
            raise UserError(
                f"A {type(model).__name__} is no model for a guard: give a Hub id, a folder, its settings, a "
                "CausalModel or an engine."
            )
        return model
    alike = [(bounds, engine) for settings, bounds, engine in started if settings == model]
    for bounds, engine in alike:
        if bounds == limits:
            return cast("Engine", engine)
    if alike:
        loaded = cast("CausalModel", alike[0][1].model)
    else:
        loaded = CausalModel.load(model)
        prepack(loaded.model)
    engine = LocalEngine(loaded, **limits.model_dump())
    started.append((model, limits, engine))
    return engine


def _start_elsewhere(settings: EndpointSettings | VLLMSettings, limits: EngineSettings, started: Started) -> Engine:
    """An engine for a model that another server or vLLM runs: limits of memory are theirs."""
    from anchorlm.engine import EndpointEngine, VLLMEngine

    for known, _, engine in started:
        if known == settings:
            return cast("Engine", engine)
    found: EndpointEngine | VLLMEngine
    found = EndpointEngine.start(settings) if isinstance(settings, EndpointSettings) else VLLMEngine.start(settings)
    started.append((settings, limits, found))
    return cast("Engine", found)  # its model is no checkpoint, but knows all that is asked of one here


def start_judge(judge: JudgeLike, limits: EngineSettings, started: Started) -> Judge:
    """A judge for whatever stands for one."""
    from anchorlm.judging import RubricJudge
    from anchorlm.models import CausalModel

    if isinstance(judge, Judge):
        return judge
    if isinstance(judge, str | Path):
        judge = {"kind": "refusal"} if judge == "refusal" else {"kind": "rubric", "model": judge}
    if isinstance(judge, CausalModel) or hasattr(judge, "access"):
        return RubricJudge(start_engine(cast(ModelLike, judge), limits, started))
    if callable(judge) and not isinstance(judge, JudgeSettings):
        return CallableJudge(judge)
    if not isinstance(judge, JudgeSettings | Mapping):
        raise UserError(
            f"A {type(judge).__name__} is no judge: give a Judge, its settings, a model that grades, or a function."
        )
    settings = judge if isinstance(judge, JudgeSettings) else JudgeSettings.parse(judge, where="judge")
    engine = (
        start_engine(settings.model, limits, started)
        if settings.model and settings.kind in ("rubric", "guard")
        else None
    )
    return build_judge(settings, engine)


def start_scorer(scorer: ScorerLike, limits: EngineSettings, started: Started) -> Scorer:
    """A cost or reward model for whatever stands for one."""
    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, Judge):
        return JudgeScorer(scorer)
    if isinstance(scorer, str | Path):
        scorer = {"model": str(scorer)}
    if callable(scorer) and not isinstance(scorer, ScorerSettings):
        return CallableScorer(scorer)
    if not isinstance(scorer, ScorerSettings | Mapping):
        raise UserError(
            f"A {type(scorer).__name__} is no cost or reward model: give a Scorer, its settings, the path of a "
            "classifier, a judge, or a function."
        )
    settings = scorer if isinstance(scorer, ScorerSettings) else ScorerSettings.parse(scorer, where="a scorer")
    grader = start_engine(settings.model, limits, started) if settings.kind == "rubric" and settings.model else None
    judged = settings.judged
    return build_scorer(settings, None if judged is None else start_judge(judged, limits, started), grader)
