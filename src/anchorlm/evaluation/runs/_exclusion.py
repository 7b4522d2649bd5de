from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from anchorlm.evaluation.runs._contestants import Contestant, Pool
from anchorlm.evaluation.runs._recipe import CompareRecipe
from anchorlm.guard import Guard
from anchorlm.judging import ENGLISH, HARM
from anchorlm.records import Artifact, UserError, instruments
from anchorlm.team import JudgeSettings, ScorerSettings

MATCHER = "refusal-matcher"
"""The grader `refusal`, as artifacts and judges call it."""

MATCHING = frozenset({"refusal", ENGLISH, HARM})
"""Graders that read the phrase matcher: what one of them chose, none of them grades. The first words of an answer,
which fits and calibrations read by themselves, are an instrument of their own."""


def may_grade(recipe: CompareRecipe, pool: Pool, contestant: Contestant, data: str) -> list[str]:
    """Names of the graders that have decided nothing for the defense: neither as its judge or scorer, nor while its
    artifacts were fitted and calibrated. The truth only where it is known.

    Raises:
        UserError: There is none.
    """
    roles = (contestant.judge, contestant.cost, contestant.reward)
    own = {_source(pool, role) for role in roles if role is not None}
    made = {_recorded(name) for name in artifact_instruments(pool.fitted(contestant))}
    judges = {name: one.judge for name, one in recipe.grader.items()} | {"refusal": JudgeSettings(kind="refusal")}
    known = recipe.data[data].embedded is not None
    chosen = own | made | (MATCHING if (own | made) & MATCHING else frozenset())
    fit = [
        name
        for name in recipe.graders
        if (
            known and "truth" not in made
            if name == "truth"
            else not _is_among(_source(pool, judges[name]) if name in judges else name, chosen)
        )
    ]
    if not fit:
        fitted = ", nor what its artifacts were made with" if made else ""
        add = "a judge as a grader" if "refusal" in chosen else "a grader such as refusal"
        again = ", or fit it again, which takes another instrument now" if "refusal" in made else ""
        raise UserError(
            f"No one may grade {contestant.label} on {data}: its own judges may not{fitted}, and the truth is known "
            f"for embedded prompts only; add {add} to the recipe{again}."
        )
    return fit


def _is_among(source: str, known: set[str]) -> bool:
    """Whether a grader is one of those that decided. An artifact names a model without its adapter."""
    return source in known or any(one.startswith("model ") and source.startswith(f"{one} ") for one in known)


def chosen_by(guard: Guard) -> list[str]:
    """Names of all that has decided for a guard: its judge, its scorers, and what its artifacts were made with."""
    team = guard.defense.team
    roles = [one.name for one in (team.judge, team.cost, team.reward) if one is not None]
    folders = (getattr(guard.defense.settings, knob, None) for knob in guard.defense.artifacts)
    made = artifact_instruments(folder for folder in folders if isinstance(folder, str))
    return sorted({name.removeprefix("judge:") for name in (*roles, *made)})


def artifact_instruments(folders: Iterable[Any]) -> set[str]:
    """What told good from bad while some artifacts were made.

    Raises:
        UserError: One that is missing or damaged.
    """
    return {name for folder in folders for name in _instruments(str(folder), _changed(Path(folder)))}


def _changed(folder: Path) -> int | None:
    """When an artifact was written. None where there is none."""
    file = folder / "artifact.json"
    return file.stat().st_mtime_ns if file.exists() else None


@cache
def _instruments(folder: str, changed: int | None) -> frozenset[str]:
    return frozenset(instruments(Artifact.load(folder)).values())


def _recorded(name: str) -> str:
    """An instrument's recorded name as `_source` tells judges and scorers apart."""
    kind, _, rest = name.removeprefix("judge:").partition(":")
    if kind == MATCHER:
        return "refusal"
    if kind in (ENGLISH, HARM):
        return kind
    if kind in ("rubric", "guard", "classifier"):
        return f"model {_place(rest)}"
    return name


def _source(pool: Pool, settings: JudgeSettings | ScorerSettings) -> str:
    """What a judge or scorer is known by before its weights are loaded: its model, whatever it is asked for and however
    its path is spelled, and else its kind. A judge behind a cost is a judge.
    """
    if isinstance(settings, ScorerSettings) and settings.judge is not None:
        return _source(pool, settings.judge)
    if settings.model is None:
        return settings.kind if settings.function is None else f"callable:{settings.function}"
    model = pool.located(settings.model)
    return " ".join(["model", *map(_place, (one for one in (model.path, model.adapter) if one))])


def _place(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path
