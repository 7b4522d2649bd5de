from __future__ import annotations

from pathlib import Path

from anchorlm.evaluation._contestants import Contestant, Pool
from anchorlm.evaluation._recipe import CompareRecipe
from anchorlm.guard import JudgeSettings, ScorerSettings
from anchorlm.records import UserError


def may_grade(recipe: CompareRecipe, pool: Pool, contestant: Contestant, data: str) -> list[str]:
    """Names of the graders that are not a judge or scorer of the defense; the truth only where it is known.

    Raises:
        UserError: There is none.
    """
    roles = (contestant.judge, contestant.cost, contestant.reward)
    own = {_source(pool, role) for role in roles if role is not None}
    judges = {name: one.judge for name, one in recipe.grader.items()} | {"refusal": JudgeSettings(kind="refusal")}
    known = recipe.data[data].embedded is not None
    fit = [
        name
        for name in recipe.graders
        if (known if name == "truth" else name not in judges or _source(pool, judges[name]) not in own)
    ]
    if not fit:
        raise UserError(
            f"Nobody may grade {contestant.label} on {data}: its own judges may not, and the truth is known for "
            "embedded prompts only; add a grader such as refusal to the recipe."
        )
    return fit


def _source(pool: Pool, settings: JudgeSettings | ScorerSettings) -> str:
    """What a judge or scorer is known by before its weights are loaded: its model, whatever it is asked for and however
    its path is spelled, and else its kind; a judge behind a cost is a judge.
    """
    if isinstance(settings, ScorerSettings) and settings.judge is not None:
        return _source(pool, settings.judge)
    if settings.model is None:
        return settings.kind
    model = pool.located(settings.model)
    places = [str(Path(one).resolve()) if Path(one).exists() else one for one in (model.path, model.adapter) if one]
    return " ".join(["model", *places])
