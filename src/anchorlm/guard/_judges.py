from __future__ import annotations

from inspect import Parameter, signature

from anchorlm.engine import Engine
from anchorlm.guard._recipe import JudgeSettings
from anchorlm.judging import ClassifierJudge, Judge, RefusalMatcher, RubricJudge
from anchorlm.records import UserError


def build_judge(settings: JudgeSettings, engine: Engine | None, *, weights: bool = True) -> Judge:
    """The judge that a recipe describes.

    Args:
        settings: Its kind, model and options.
        engine: Runs the model of a rubric judge.
        weights: Without them a classifier can grade nothing, but is checked as far as its configuration goes.

    Raises:
        UserError: An option that this kind of judge does not have, or a value that does not fit.
    """
    kinds: dict[str, type[Judge]] = {"refusal": RefusalMatcher, "classifier": ClassifierJudge, "rubric": RubricJudge}
    parameters = signature(kinds[settings.kind]).parameters
    known = {name for name, one in parameters.items() if one.kind is Parameter.KEYWORD_ONLY} - {"name"}
    for name in settings.options:
        if name not in known:
            raise UserError(f"A {settings.kind} judge has no option {name!r}; it has: {', '.join(sorted(known))}.")
    try:
        if settings.kind == "refusal":
            return RefusalMatcher(**settings.options)
        if settings.kind == "classifier" and settings.model is not None:
            return ClassifierJudge.load(settings.model, weights=weights, **settings.options)
        if engine is not None:
            return RubricJudge(engine, **settings.options)
    except TypeError as error:
        raise UserError(f"An option of the {settings.kind} judge is of the wrong type: {error}.") from None
    raise UserError(f"A {settings.kind} judge needs a model: name one in the section judge.")
