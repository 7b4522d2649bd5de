from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from anchorlm.evaluation.runs._contestants import Contestant, Pool
from anchorlm.evaluation.runs._recipe import CompareRecipe
from anchorlm.guard import Guard
from anchorlm.judging import ENGLISH, HARM, THEN
from anchorlm.records import Artifact, UserError, instruments
from anchorlm.team import FirstJudgeSettings, JudgeSettings, ScorerSettings

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
    own = {source for role in roles if role is not None for source in _sources(pool, role)}
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
            else not any(_is_among(one, chosen) for one in (_sources(pool, judges[name]) if name in judges else {name}))
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
    judges = (getattr(team.judge, "first", None), getattr(team.judge, "judge", team.judge))
    roles = [one.name for one in (*judges, team.cost, team.reward) if one is not None]
    folders = (getattr(guard.defense.settings, knob, None) for knob in guard.defense.artifacts)
    made = artifact_instruments(folder for folder in folders if isinstance(folder, str))
    return sorted({name.removeprefix("judge:") for name in (*roles, *made)})


def artifact_instruments(folders: Iterable[Any]) -> set[str]:
    """What told good from bad while some artifacts were made.

    Raises:
        UserError: One that is missing or damaged.
    """
    found = (_instruments(str(folder), _changed(Path(folder))) for folder in folders)
    return {one for names in found for name in names for one in name.split(THEN)}


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


def _sources(pool: Pool, settings: JudgeSettings | ScorerSettings) -> set[str]:
    """What a judge or scorer is known by, and the judge in front of it."""
    judge = settings.judge or settings if isinstance(settings, ScorerSettings) else settings
    first = judge.first if isinstance(judge, JudgeSettings) else None
    return {_source(pool, judge)} | (set() if first is None else {_source(pool, first)})


def _source(pool: Pool, settings: JudgeSettings | FirstJudgeSettings | ScorerSettings) -> str:
    """What a judge or scorer is known by before its weights are loaded: its model, whatever it is asked for and however
    its path is spelled, and else its kind.
    """
    if settings.model is None:
        return settings.kind if settings.function is None else f"callable:{settings.function}"
    model = pool.located(settings.model)
    return " ".join(["model", *map(_place, (one for one in (model.path, model.adapter) if one))])


def _place(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path
