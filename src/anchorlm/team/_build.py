from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from anchorlm.judging import CallableJudge, CallableScorer, Judge, JudgeScorer, Scorer
from anchorlm.records import UserError
from anchorlm.team._code import loaded
from anchorlm.team._settings import FirstJudgeSettings, JudgeSettings, ScorerSettings

if TYPE_CHECKING:
    from anchorlm.engine import Engine


def build_judge(settings: JudgeSettings, engine: Engine | None, *, weights: bool = True) -> Judge:
    """The judge that a recipe describes.

    Args:
        settings: Its kind, model and options.
        engine: Runs the model of a rubric or guard judge.
        weights: Without them a classifier can grade nothing, but is checked as far as its configuration goes. A
            Python function is not looked at.

    Raises:
        UserError: An option that this kind of judge does not have, a value that does not fit, or a Python function
            that is not allowed or not there.
    """
    from anchorlm.judging import CascadeJudge

    judge = _one_judge(settings, engine, weights)
    if settings.first is None:
        return judge
    first = settings.first
    return CascadeJudge(_one_judge(first, None, weights), judge, safe=first.safe, harmful=first.harmful)


def _one_judge(settings: JudgeSettings | FirstJudgeSettings, engine: Engine | None, weights: bool) -> Judge:
    from anchorlm.judging import ClassifierJudge, GuardJudge, RefusalMatcher, RubricJudge

    kinds: dict[str, type[Judge]] = {"refusal": RefusalMatcher, "classifier": ClassifierJudge, "rubric": RubricJudge,
                                     "guard": GuardJudge, "python": CallableJudge}  # fmt: skip
    _check_options(kinds[settings.kind], settings.options, f"{settings.kind} judge")
    try:
        if settings.kind == "refusal":
            return RefusalMatcher(**settings.options)
        if settings.kind == "classifier" and settings.model is not None:
            return ClassifierJudge.load(settings.model, weights=weights, **settings.options)
        if settings.function is not None:
            return CallableJudge(loaded(settings.function, weights), name=settings.function)
        if engine is not None:
            return (GuardJudge if settings.kind == "guard" else RubricJudge)(engine, **settings.options)
    except TypeError as error:
        raise UserError(f"An option of the {settings.kind} judge is of the wrong type: {error}.") from None
    raise UserError(f"A {settings.kind} judge needs a model: name one in the section judge.")


def build_scorer(
    settings: ScorerSettings, judge: Judge | None = None, grader: Engine | None = None, *, weights: bool = True
) -> Scorer:
    """The cost or reward model that a recipe describes.

    Args:
        settings: Its kind, source and options.
        judge: The judge that is turned into a cost, if it is one: what `settings.judged` describes.
        grader: Runs the model that grades by a rubric, if it is one.
        weights: Without them a classifier can score nothing, but is checked as far as its configuration goes. A
            Python function is not looked at.

    Raises:
        UserError: As `build_judge`, of scorers.
    """
    from anchorlm.judging import ClassifierScorer, GuardJudge, GuardScorer, RemoteScorer, RubricScorer

    kinds: dict[str, type[Scorer]] = {
        "classifier": ClassifierScorer,
        "rubric": RubricScorer,
        "guard": GuardScorer,
        "judge": JudgeScorer,
        "remote": RemoteScorer,
        "python": CallableScorer,
    }
    own = settings.options
    if settings.kind == "guard":  # the others are its judge's
        own = {name: value for name, value in own.items() if name in ("scale", "offset")}
    _check_options(kinds[settings.kind], own, f"{settings.kind} scorer")
    try:
        if settings.function is not None:
            return CallableScorer(loaded(settings.function, weights), name=settings.function)
        if isinstance(judge, GuardJudge) and settings.kind == "guard":
            return GuardScorer(judge, **own)
        if settings.kind == "classifier" and settings.model is not None:
            return ClassifierScorer.load(settings.model, weights=weights, **settings.options)
        if grader is not None:
            return RubricScorer(grader, **settings.options)
        if settings.url is not None:
            return RemoteScorer(settings.url, **settings.options)
        if judge is not None:
            return JudgeScorer(judge, **settings.options)
    except TypeError as error:
        raise UserError(f"An option of the {settings.kind} scorer is of the wrong type: {error}.") from None
    raise UserError("A judge that is turned into a cost needs its judge: describe one in the section judge of cost.")


def _check_options(kind: type[object], options: Mapping[str, Any], what: str) -> None:
    parameters = signature(kind).parameters
    known = {name for name, one in parameters.items() if one.kind is Parameter.KEYWORD_ONLY} - {"name"}
    for name in options:
        if name not in known:
            raise UserError(f"A {what} has no option {name!r}; it has: {', '.join(sorted(known))}.")
